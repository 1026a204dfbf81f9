"""The files of a case, for a picture of it."""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json
from nnunetv2.paths import nnUNet_raw
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

from nnunet_dg import formats
from nnunet_dg.errors import DataError
from nnunet_dg.evaluation.overlay import CaseView
from nnunet_dg.files import read_json
from nnunet_dg.nnunet.evaluate import Labels


def view(row: Mapping[str, Any]) -> CaseView | None:
    """Image, truth and prediction of a row of scores, read as nnU-Net reads them; None if they are not all there.

    The image is looked for where nnU-Net has it: in ``imagesTr`` or ``imagesTs`` next to the truth's folder, in the raw
    dataset of preprocessed truths, or where the raw ``dataset.json`` says. Of several image files, the first is shown.

    Raises:
        DataError: A file cannot be read, or image, truth and prediction have different shapes.
    """
    truth, prediction = Path(row["reference_file"]), Path(row["prediction_file"])
    ending = truth.name.removeprefix(row["case"])
    if not prediction.is_file() or not truth.is_file():
        return None
    images = [path for path in images_of(truth, row["case"], ending) if path.is_file()]
    if not images:
        return None
    dataset = next((p for p in list(prediction.parents)[:3] if (p / "dataset.json").is_file()), None)
    content = None if dataset is None else read_json(dataset / "dataset.json", formats.Dataset)
    reader = determine_reader_writer_from_dataset_json({"file_ending": ending}, str(truth), verbose=False)()
    image, properties = _read(reader.read_images, [str(images[0])], images[0])
    masks = [_read(reader.read_seg, str(path), path)[0][0] for path in (truth, prediction)]
    for path, mask in zip((truth, prediction), masks, strict=True):
        if mask.shape != image.shape[1:]:
            raise DataError(f"{path} has the shape {mask.shape}, and {images[0]} has {image.shape[1:]}.")
    numbers = [int(n) for n in np.union1d(*masks) if n > 0]
    names = {n: f"label {n}" for n in numbers} | ({} if content is None else _names(content))
    return CaseView(image, masks[0], masks[1], tuple(properties["spacing"]), names)


def images_of(truth: Path, case: str, ending: str) -> tuple[Path, ...]:
    """A case's image files, one per channel, found from where its truth is; empty if they are elsewhere."""
    name, dataset = truth.parent.name, truth.parent.parent
    if name == "labelsTs":
        return images_in(dataset / "imagesTs", case, ending)
    if name == "labelsTr":
        return training_images(dataset, [case], ending)[case]
    if name == "gt_segmentations" and nnUNet_raw:
        return training_images(Path(nnUNet_raw, dataset.name), [case], ending)[case]
    return ()


def training_images(raw: Path, cases: Sequence[str], ending: str) -> dict[str, tuple[Path, ...]]:
    """Image files of training cases: those that the raw ``dataset.json`` lists, or those in ``imagesTr``."""
    path = raw / "dataset.json"
    content = dict(read_json(path, formats.ListedDataset)) if path.is_file() else {}
    if "dataset" not in content:
        return {case: images_in(raw / "imagesTr", case, ending) for case in cases}
    listed = get_filenames_of_train_images_and_targets(str(raw), content)
    return {case: tuple(Path(image) for image in listed.get(case, {}).get("images", ())) for case in cases}


def images_in(folder: Path, case: str, ending: str) -> tuple[Path, ...]:
    """A case's image files in nnU-Net's format, one per channel (or one for all colors)."""
    return tuple(sorted(folder.glob(f"{glob.escape(case)}_[0-9][0-9][0-9][0-9]{glob.escape(ending)}")))


def _read(read: Any, argument: Any, path: Path) -> Any:
    try:
        return read(argument)
    except Exception as error:  # nnU-Net's readers wrap several libraries that raise unrelated exceptions
        raise DataError(f"{path} cannot be read: {' '.join(str(error).split())}") from error


def _names(dataset: Mapping[str, Any]) -> dict[int, str]:
    """Names of the labels that are a single number; a region of several numbers has no number of its own."""
    labels = Labels.of_dataset(dataset)
    names = {int(values[0]): name for name, values in labels.foreground.items() if len(values) == 1}
    return names if labels.ignore is None else names | {labels.ignore: "ignore"}
