"""Folders of a fold's validation cases for `nnunet-dg predict`: links to images, and to truths of in-domain cases."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from shutil import rmtree

from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw

from nnunet_dg import formats
from nnunet_dg.datasets.cases import training_images
from nnunet_dg.datasets.domains import locate, read_file
from nnunet_dg.errors import DataError
from nnunet_dg.files import read_json

ALL, UNSEEN, IN_DOMAIN, TRUTHS = "all", "unseen", "in_domain", "in_domain_truths"


def link_cases(dataset: str, fold: int, output: Path, need_both: bool) -> None:
    """Write the folders ``all``, ``unseen``, ``in_domain`` and ``in_domain_truths`` of a fold's validation cases.

    Args:
        dataset: Full name of the dataset.
        fold: Number of the fold.
        output: Folder to write to; folders of an earlier call are replaced.
        need_both: Whether missing in-domain or unseen cases are an error.

    Raises:
        DataError: Images or truths are missing; with ``need_both`` also if all cases are in-domain or all are unseen.
    """
    raw, preprocessed = Path(nnUNet_raw, dataset), Path(nnUNet_preprocessed, dataset)
    split = read_json(preprocessed / "splits_final.json", formats.Splits)[fold]
    ending = read_json(raw / "dataset.json", formats.Dataset)["file_ending"]
    domains = locate(raw, preprocessed)
    of_case = read_file(domains) if domains.is_file() else {}
    trained_on = {of_case.get(case) for case in split["train"]}
    in_domain = [case for case in split["val"] if of_case.get(case) in trained_on]
    unseen = [case for case in split["val"] if case not in in_domain]
    if need_both and not (in_domain and unseen):
        raise DataError(
            f"Fold {fold} of {dataset} has {len(in_domain)} in-domain and {len(unseen)} unseen validation cases by "
            f"{domains}. Adaptation that chooses a number on in-domain cases and predicts unseen ones needs both. Make "
            f"other splits, for example with in_domain, or remove sfb and alpha."
        )
    images = training_images(raw, split["val"], ending)
    truths = preprocessed / "gt_segmentations"
    if output.is_dir():
        rmtree(output)
    for name, cases in ((ALL, split["val"]), (UNSEEN, unseen), (IN_DOMAIN, in_domain)):
        for case in cases:
            files = {f"{case}_{i:04d}{ending}": path for i, path in enumerate(images[case])}
            _link(output / name, case, files)
    for case in in_domain:
        _link(output / TRUTHS, case, {f"{case}{ending}": truths / f"{case}{ending}"})


def _link(folder: Path, case: str, files: Mapping[str, Path]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if not files:
        raise DataError(f"There are no images of {case}, which the splits name. Restore the dataset.")
    for name, target in files.items():
        if not target.is_file():
            raise DataError(f"There is no file {target}. Restore the dataset and preprocess it again.")
        (folder / name).symlink_to(target.resolve())
        spacing = target.with_name(f"{case}.json")  # which nnU-Net's reader of TIFF files needs
        if spacing.is_file() and not (folder / spacing.name).is_symlink():
            (folder / spacing.name).symlink_to(spacing.resolve())
