"""Writing the splits of a preprocessed dataset in nnU-Net's folders, for `nnunet-dg splits`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nnunet_dg import formats
from nnunet_dg.datasets.domains import read_domains, read_file
from nnunet_dg.datasets.splits import Fold, write
from nnunet_dg.errors import DataError, HostError
from nnunet_dg.files import read_json
from nnunet_dg.host import reason
from nnunet_dg.names import printable


def split_dataset(
    dataset: str,
    make: Callable[[dict[str, str], dict[str, str] | None], list[Fold]],
    groups: Path | None = None,
    force: bool = False,
    keep: bool = False,
) -> Path:
    """Write ``splits_final.json`` of a preprocessed dataset, and print a table of the folds.

    Args:
        dataset: Dataset name or number, as for nnU-Net's commands.
        make: Function that makes the folds from ``{case: domain}`` and ``{case: group}`` (or None without groups).
        groups: JSON file ``{case: group}``.
        force: Whether to replace existing splits.
        keep: Whether existing splits are left as they are if they are the same. Others are an error.

    Returns:
        Path of the file.

    Raises:
        HostError: There is no such dataset, or nnU-Net's folders are not set.
        DataError: The dataset is not preprocessed, the groups do not match its cases, or the folds are impossible.
        SplitsExistError: The dataset already has splits, or others with ``keep``.
    """
    name = dataset_name(dataset)
    folder = Path(nnUNet_preprocessed, name)
    raw = Path(nnUNet_raw, name) if nnUNet_raw else None
    console = Console(markup=False, highlight=False, emoji=False)  # names are not markup
    log = partial(console.print, soft_wrap=True)
    cases = cases_of(folder, name, log)
    if not cases:
        raise DataError(f"{folder} has no cases. Preprocess again: nnUNetv2_plan_and_preprocess -d {number_of(name)}")
    domains = read_domains(raw, folder, cases, log)
    domain_of_case = {case: domains.names[number] for case, number in domains.of_case.items()}
    folds = make(domain_of_case, None if groups is None else _groups(groups, cases))
    path = folder / "splits_final.json"
    if not (keep and path.is_file() and _same(folds, path)):
        write(folds, path, force)
    console.print(_table(name, folds))
    return path


def _same(folds: Sequence[Fold], path: Path) -> bool:
    """Whether the file has these folds. The order of cases does not matter."""
    existing = read_json(path, formats.Splits)
    return [(f.train, f.val) for f in folds] == [(sorted(f["train"]), sorted(f["val"])) for f in existing]


def dataset_name(dataset: str) -> str:
    """The full name of a dataset given by name or number, for example ``Dataset501_Heart``.

    Raises:
        HostError: nnU-Net's folders are not set, or there is not exactly one dataset with that number.
    """
    if not nnUNet_preprocessed:
        raise HostError("nnUNet_preprocessed is not set. Set it as for nnU-Net's own commands.")
    if not re.fullmatch(r"\d{1,9}|Dataset\d+_[^/\\]+", dataset, re.ASCII):
        raise HostError(f"`dataset` must be a number, or a name such as Dataset501_Heart; got {dataset!r}.")
    try:
        name = str(maybe_convert_to_dataset_name(int(dataset) if dataset.isdecimal() else dataset))
    except RuntimeError as error:
        raise HostError(reason(error)) from error
    if dataset.isdecimal() and number_of(name) != str(int(dataset)):  # nnU-Net compares only the first digits
        raise HostError(f"There is no dataset {dataset}; nnU-Net takes that number for {name}. Give the full name.")
    return name


def number_of(name: str) -> str:
    """The number in a dataset's name without leading zeros, or the name itself if it has no number."""
    found = re.match(r"Dataset(\d+)_", name)
    return str(int(found[1])) if found else name


def _table(name: str, folds: Sequence[Fold]) -> Table:
    table = Table("fold", "what it does", "train", "val", title=Text(f"splits of {printable(name)}"))
    left_out = any(fold.left_out for fold in folds)
    if left_out:
        table.add_column("left out")
    for number, fold in enumerate(folds):
        counts = [fold.train, fold.val, *([fold.left_out] if left_out else [])]
        table.add_row(str(number), Text(printable(fold.description)), *(str(len(cases)) for cases in counts))
    return table


def cases_of(folder: Path, name: str, log: Callable[[str], None]) -> list[str]:
    """The cases that nnU-Net would train on: those that every preprocessed configuration has.

    When a case is removed from a dataset, its truth stays in ``gt_segmentations``. So the truths are used only if there
    is no preprocessed configuration.

    Args:
        folder: Preprocessed dataset folder.
        name: Name of the dataset, for error messages.
        log: Function that receives messages for the user.

    Raises:
        DataError: The dataset is not preprocessed.
    """
    truths = folder / "gt_segmentations"
    if not truths.is_dir():
        raise DataError(
            f"{folder} is not a preprocessed dataset. Run first: nnUNetv2_plan_and_preprocess -d {number_of(name)}"
        )
    preprocessed = [cases for path in sorted(folder.iterdir()) if path.is_dir() and (cases := _identifiers(path))]
    if preprocessed:
        cases = set.intersection(*preprocessed)
        if any(cases != others for others in preprocessed):
            log(f"{folder}: the configurations have different cases. The splits use the {len(cases)} that all have.")
        return sorted(cases)
    ending = read_json(folder / "dataset.json", formats.Dataset)["file_ending"]
    return _visible(path.name.removesuffix(ending) for path in truths.iterdir() if path.name.endswith(ending))


def _identifiers(folder: Path) -> set[str]:
    """The cases of a preprocessed configuration; empty for any other folder."""
    try:
        return set(_visible(infer_dataset_class(str(folder)).get_identifiers(str(folder))))
    except (AssertionError, KeyError, IndexError):  # nnU-Net raises these for any other folder
        return set()


def _visible(cases: Iterable[str]) -> list[str]:
    """The cases, sorted, without hidden files such as those that macOS leaves on other file systems."""
    return sorted(case for case in cases if not case.startswith("."))


def _groups(path: Path, cases: Sequence[str]) -> dict[str, str]:
    given = read_file(path, "group")
    if odd := sorted(set(given) ^ set(cases)):
        where = "is in the dataset only" if odd[0] in cases else "is in the file only"
        raise DataError(f"{path} must name exactly the cases of the dataset; {odd[0]!r} {where}.")
    return given
