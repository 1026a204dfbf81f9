"""Finding the image files of cases in nnU-Net's folders."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path

from nnunetv2.paths import nnUNet_raw
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

from nnunet_dg import formats
from nnunet_dg.files import read_json


def images_of(truth: Path, case: str, ending: str) -> tuple[Path, ...]:
    """A case's image files, one per channel, found from the location of its truth; empty if they cannot be found."""
    name, dataset = truth.parent.name, truth.parent.parent
    if name == "labelsTs":
        return images_in(dataset / "imagesTs", case, ending)
    if name == "labelsTr":
        return training_images(dataset, [case], ending)[case]
    if name == "gt_segmentations" and nnUNet_raw:
        return training_images(Path(nnUNet_raw, dataset.name), [case], ending)[case]
    return ()


def training_images(raw: Path, cases: Sequence[str], ending: str) -> dict[str, tuple[Path, ...]]:
    """Image files of training cases, as listed in the raw ``dataset.json``, or else found in ``imagesTr``."""
    path = raw / "dataset.json"
    content = dict(read_json(path, formats.ListedDataset)) if path.is_file() else {}
    if "dataset" not in content:
        return {case: images_in(raw / "imagesTr", case, ending) for case in cases}
    listed = get_filenames_of_train_images_and_targets(str(raw), content)
    return {case: tuple(Path(image) for image in listed.get(case, {}).get("images", ())) for case in cases}


def images_in(folder: Path, case: str, ending: str) -> tuple[Path, ...]:
    """A case's image files in nnU-Net's format, one per channel (or one for all colors)."""
    return tuple(sorted(folder.glob(f"{glob.escape(case)}_[0-9][0-9][0-9][0-9]{glob.escape(ending)}")))
