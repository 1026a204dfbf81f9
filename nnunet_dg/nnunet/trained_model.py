"""A trained model folder and labelled cases, for measuring what a change of image or network does to Dice."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
from numpy.typing import NDArray
from torch import nn

from nnunet_dg.evaluation.metrics import case_metrics
from nnunet_dg.nnunet.evaluate import Labels
from nnunet_dg.nnunet.pairs import validated_cases
from nnunet_dg.nnunet.unwrap import unwrap
from nnunet_dg.nnunet.view import images_in

Array = NDArray[Any]


class ModelError(RuntimeError):
    """A model cannot be measured, and why."""


@dataclass(frozen=True)
class Case:
    """A labelled case: its image files, one per channel, and its truth."""

    name: str
    images: tuple[Path, ...]
    truth: Path


class TrainedModel:
    """A model folder, ready to predict by nnU-Net's own predictor.

    Args:
        folder: ``TRAINER__PLANS__CONFIGURATION``, as nnU-Net leaves it.
        folds: several are an ensemble; None: the one that is there.
        checkpoint: the file of each fold.
        device: ``"cpu"``, ``"cuda"`` or ``"mps"``.
        mirroring: test-time mirroring, as nnU-Net does by default.

    Raises:
        ModelError: there is no such model, none that can be meant, or it is the second stage of a cascade.
    """

    def __init__(
        self, folder: Path, folds: Sequence[str] | None, checkpoint: str, device: str, mirroring: bool = True
    ) -> None:
        there = sorted(path.parent.name.removeprefix("fold_") for path in folder.glob(f"fold_*/{checkpoint}"))
        if folds is None and len(there) > 1:
            raise ModelError(f"{folder} has fold {', '.join(there)}. Choose one with -f, or an ensemble of several.")
        self.folds = there if folds is None else list(folds)
        if not (folder / "plans.json").is_file() or not self.folds or set(self.folds) - set(there):
            raise ModelError(
                f"{folder} is no trained model with {checkpoint} of fold {', '.join(self.folds) or 'any'}. Expected: "
                f"nnU-Net's TRAINER__PLANS__CONFIGURATION folder; folds there: {', '.join(there) or 'none'}."
            )
        if device == "cuda" and not torch.cuda.is_available():
            raise ModelError("-device cuda needs a GPU that PyTorch can use, and there is none. Use -device cpu.")
        self.folder = folder
        self.checkpoints = [folder / f"fold_{fold}" / checkpoint for fold in self.folds]
        on_gpu = device == "cuda"
        self.predictor = nnUNetPredictor(
            use_mirroring=mirroring, perform_everything_on_device=on_gpu, device=torch.device(device), allow_tqdm=False
        )
        self.predictor.initialize_from_trained_model_folder(str(folder), tuple(self.folds), checkpoint)
        if self.predictor.configuration_manager.previous_stage_name:
            raise ModelError(f"{folder} is the second stage of a cascade, which needs another model's prediction.")
        self.labels = Labels.of_dataset(self.predictor.dataset_json)

    @property
    def network(self) -> nn.Module:
        """The network, whose weights nnU-Net's predictor fills in from `predictor.list_of_parameters`."""
        return unwrap(self.predictor.network)

    def cases(self, images: Path | None = None, truths: Path | None = None) -> list[Case]:
        """The labelled cases of two folders in nnU-Net's format, or the validation cases of the fold.

        Raises:
            ModelError: there are none, images or truths are missing, or several folds have no such cases in common.
        """
        ending = self.predictor.dataset_json["file_ending"]
        if (images is None) != (truths is None):
            raise ModelError("Images (-i) and their truths (-t) go together: give both or none.")
        names = None
        if images is None or truths is None:
            images, truths, names = self._validation()
        found = {path.name.removesuffix(ending): path for path in sorted(truths.glob(f"*{ending}"))}
        cases = [Case(n, images_in(images, n, ending), t) for n, t in found.items() if names is None or n in names]
        channels = max([1, *(len(case.images) for case in cases)])
        if odd := [case for case in cases if len(case.images) < channels]:
            raise ModelError(
                f"{len(odd)} cases lack images: {odd[0].name} has {len(odd[0].images)} of {channels} in {images}. The "
                f"first is called {odd[0].name}_0000{ending}."
            )
        if not cases or (names is not None and len(cases) < len(names)):
            raise ModelError(f"{len(cases)} cases with a truth in {truths}; expected: {len(names or ()) or 'some'}.")
        return cases

    def _validation(self) -> tuple[Path, Path, list[str]]:
        """Folders of images and of truths, and the cases that the one fold was validated on."""
        dataset = self.predictor.plans_manager.dataset_name
        preprocessed = Path(nnUNet_preprocessed or "", dataset)
        splits = preprocessed / "splits_final.json"
        known = json.loads(splits.read_text()) if splits.is_file() else []
        fold = self.folds[0]
        if len(self.folds) > 1 or not fold.isdecimal() or int(fold) >= len(known):
            raise ModelError(
                f"No validation cases of fold {', '.join(self.folds)}: they are of one numbered fold, and read from "
                f"{splits}. Choose one fold, or give images and truths, -i and -t."
            )
        if not nnUNet_raw:
            raise ModelError(
                "nnUNet_raw is not set, where the images are. Set it, or give images and truths, -i and -t."
            )
        names = known[int(fold)]["val"]
        validation = self.folder / f"fold_{fold}" / "validation"
        validated = validated_cases(validation, self.predictor.dataset_json["file_ending"])
        if validated is not None and validated != set(names):
            raise ModelError(
                f"{self.folder} was not validated on the cases that {splits} names for fold {fold}; they may be its "
                f"training cases. Put back the splits of that training, or give images and truths, -i and -t."
            )
        return Path(nnUNet_raw, dataset, "imagesTr"), preprocessed / "gt_segmentations", names

    def read(self, case: Case) -> tuple[Array, Array, dict[str, Any]]:
        """Image ``(C, *spatial)``, truth ``(*spatial)``, and what nnU-Net's reader says beside them."""
        reader = self.predictor.plans_manager.image_reader_writer_class()
        image, properties = reader.read_images([str(path) for path in case.images])
        return image, reader.read_seg(str(case.truth))[0][0], properties

    def in_range(self, image: Array) -> Array:
        """The image ``(C, *spatial)`` as nnU-Net accepts it: colours are in [0, 255] where it scales them by that."""
        schemes = self.predictor.configuration_manager.normalization_schemes
        return np.clip(image, 0, 255) if "RGBTo01Normalization" in schemes else image

    def score(self, image: Array, truth: Array, properties: dict[str, Any]) -> dict[str, dict[str, float]]:
        """Predict a raw image as nnU-Net does; metrics by label, and voxels, see `case_metrics`."""
        if image.shape[1:] != truth.shape:
            raise ModelError(f"An image's shape is {image.shape[1:]}, and its truth's {truth.shape}.")
        with redirect_stdout(StringIO()):  # what nnU-Net prints of each image
            prediction = self.predictor.predict_single_npy_array(image.astype(np.float32), properties)
        return case_metrics(prediction, truth, properties["spacing"], self.labels.foreground, self.labels.ignore)
