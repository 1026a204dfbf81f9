"""`nnunet-dg splits`: where nnU-Net keeps a dataset's cases, domains and folds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name
from rich.console import Console
from rich.table import Table

from nnunet_dg.evaluation.splits import Fold, write
from nnunet_dg.nnunet.domains import read_domains


def split_dataset(
    dataset: str,
    make: Callable[[dict[str, str], dict[str, str] | None], list[Fold]],
    groups: Path | None = None,
    force: bool = False,
) -> Path:
    """Write ``splits_final.json`` of a preprocessed dataset, and print which fold is which.

    Args:
        dataset: name or number, as nnU-Net takes it.
        make: the folds, from ``{case: domain}`` and ``{case: group}``.
        groups: a JSON file ``{case: group}``.
        force: write over splits that are there.

    Returns:
        The file.

    Raises:
        ValueError: the dataset is not preprocessed, the groups do not fit its cases, or there are no such folds.
        FileExistsError: there are splits already.
    """
    name = maybe_convert_to_dataset_name(int(dataset) if dataset.isdecimal() else dataset)
    folder = Path(nnUNet_preprocessed, name)
    cases = _cases(folder, name)
    console = Console()
    raw = Path(nnUNet_raw, name) if nnUNet_raw else None
    domains = read_domains(raw, folder, cases, console.print)
    of_case = {case: domains.names[number] for case, number in domains.of_case.items()}
    folds = make(of_case, None if groups is None else _groups(groups, cases))
    write(folds, folder / "splits_final.json", force)
    table = Table("fold", "what it does", "train", "val", title=f"splits of {name}")
    for number, fold in enumerate(folds):
        table.add_row(str(number), fold.description, str(len(fold.train)), str(len(fold.val)))
    console.print(table)
    return folder / "splits_final.json"


def _cases(folder: Path, name: str) -> list[str]:
    truths = folder / "gt_segmentations"
    if not truths.is_dir():
        raise ValueError(
            f"{folder} holds no preprocessed dataset. First: nnUNetv2_plan_and_preprocess -d {int(name[7:10])}"
        )
    ending = json.loads((folder / "dataset.json").read_text())["file_ending"]
    return sorted(path.name.removesuffix(ending) for path in truths.iterdir() if path.name.endswith(ending))


def _groups(path: Path, cases: list[str]) -> dict[str, str]:
    try:
        given = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(given, dict) or not all(isinstance(group, str) for group in given.values()):
        raise ValueError(f'{path} must look like {{"case": "group", ...}}.')
    if set(given) != set(cases):
        odd = sorted(set(given) ^ set(cases))[0]
        raise ValueError(f"{path} must name every case of the dataset and no other; {odd!r} is in one of them alone.")
    return given
