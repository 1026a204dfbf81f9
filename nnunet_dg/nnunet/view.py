"""The files of a case, for a picture of it."""

from __future__ import annotations

import glob
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json
from nnunetv2.paths import nnUNet_raw

from nnunet_dg.evaluation.overlay import CaseView


def view(row: Mapping[str, Any]) -> CaseView | None:
    """Image, truth and prediction of a row of scores, read as nnU-Net reads them; None if they are not all there.

    The image is looked for where nnU-Net has it: in ``imagesTr`` or ``imagesTs`` beside the truth's folder, or in the
    raw dataset of preprocessed truths. Of several image files, the first is shown.
    """
    truth, prediction = Path(row["reference_file"]), Path(row["prediction_file"] or "none")
    ending = truth.name.removeprefix(row["case"])
    images = images_of(truth, row["case"], ending)
    if not images or not prediction.is_file() or not truth.is_file():
        return None
    dataset = next((p for p in list(prediction.parents)[:3] if (p / "dataset.json").is_file()), None)
    labels = {} if dataset is None else json.loads((dataset / "dataset.json").read_text())["labels"]
    reader = determine_reader_writer_from_dataset_json({"file_ending": ending}, str(truth), verbose=False)()
    image, properties = reader.read_images([str(images[0])])
    of_truth, of_prediction = (reader.read_seg(str(path))[0][0] for path in (truth, prediction))
    numbers = sorted({*np.unique(of_truth).tolist(), *np.unique(of_prediction).tolist()} - {0})
    names = {int(n): f"label {int(n)}" for n in numbers}
    names |= {number: name for name, number in labels.items() if isinstance(number, int) and number}
    return CaseView(image, of_truth, of_prediction, tuple(properties["spacing"]), names)


def images_of(truth: Path, case: str, ending: str) -> tuple[Path, ...]:
    """A case's image files, one per channel, from where its truth is; none if they are elsewhere."""
    folders = {
        "labelsTr": truth.parent.parent / "imagesTr",
        "labelsTs": truth.parent.parent / "imagesTs",
        "gt_segmentations": Path(nnUNet_raw or "", truth.parent.parent.name, "imagesTr"),
    }
    folder = folders.get(truth.parent.name)
    return () if folder is None else images_in(folder, case, ending)


def images_in(folder: Path, case: str, ending: str) -> tuple[Path, ...]:
    """A case's image files in nnU-Net's format, one per channel (or one for all colours)."""
    return tuple(sorted(folder.glob(f"{glob.escape(case)}_[0-9][0-9][0-9][0-9]{ending}")))
