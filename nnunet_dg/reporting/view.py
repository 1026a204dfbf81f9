"""Loading the files of a case for its picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json

from nnunet_dg import formats
from nnunet_dg.datasets.cases import images_of
from nnunet_dg.errors import DataError
from nnunet_dg.evaluation.evaluate import Labels
from nnunet_dg.files import read_json
from nnunet_dg.reporting.overlay import CaseView


def view(row: Mapping[str, Any]) -> CaseView | None:
    """Image, truth and prediction for a row of scores, read by nnU-Net's readers; None if one of them is missing.

    The image is searched in nnU-Net's folders: ``imagesTr`` or ``imagesTs`` next to the truth's folder, the raw dataset
    that belongs to preprocessed truths, or the path in the raw ``dataset.json``. If there are several channels, the
    first is shown.

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
            raise DataError(f"{path} has shape {mask.shape}, but {images[0]} has {image.shape[1:]}.")
    numbers = [int(n) for n in np.union1d(*masks) if n > 0]
    names = {n: f"label {n}" for n in numbers} | ({} if content is None else _names(content))
    return CaseView(image, masks[0], masks[1], tuple(properties["spacing"]), names)


def _read(read: Any, argument: Any, path: Path) -> Any:
    try:
        return read(argument)
    except Exception as error:  # nnU-Net's readers wrap several libraries that raise unrelated exceptions
        raise DataError(f"{path} cannot be read: {' '.join(str(error).split())}") from error


def _names(dataset: Mapping[str, Any]) -> dict[int, str]:
    """Names of the labels that are a single number. Regions of several numbers are left out."""
    labels = Labels.of_dataset(dataset)
    names = {int(values[0]): name for name, values in labels.foreground.items() if len(values) == 1}
    return names if labels.ignore is None else names | {labels.ignore: "ignore"}
