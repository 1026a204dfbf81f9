"""A trained model folder and labeled cases, for measuring the effect of changed images or weights on Dice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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

from nnunet_dg.checkpoints import (
    check_checkpoint_name,
    check_folds,
    check_trainer,
    safe_checkpoint,
)
from nnunet_dg.datasets.cases import images_in, training_images
from nnunet_dg.errors import DataError
from nnunet_dg.evaluation.evaluate import Labels
from nnunet_dg.evaluation.metrics import case_metrics
from nnunet_dg.evaluation.pairs import validated_cases
from nnunet_dg.evaluation.segmentations import SegmentationReader, check_whole
from nnunet_dg.files import read_json, validate
from nnunet_dg.formats import Dataset, PlannedConfiguration, Splits, TrainedPlans
from nnunet_dg.host import trainer_class, unwrap

RESTORE = "Restore the file: nnU-Net writes it when a training starts."

Array = NDArray[Any]


class ModelError(DataError, RuntimeError):
    """A model cannot be measured; the message says why."""


@dataclass(frozen=True)
class Case:
    """A labeled case: its image files, one per channel, and its truth."""

    name: str
    images: tuple[Path, ...]
    truth: Path


class TrainedModel:
    """A trained model, ready to predict with nnU-Net's own predictor.

    Args:
        folder: nnU-Net's results folder ``TRAINER__PLANS__CONFIGURATION``.
        folds: Folds to use, several as an ensemble; by default the only trained fold.
        checkpoint: File name of the checkpoint in each fold.
        device: ``"cpu"``, ``"cuda"`` or ``"mps"``.
        mirroring: Whether to use test-time mirroring, as nnU-Net does by default.

    Raises:
        ModelError: There is no such model, the fold is ambiguous, or the model is the second stage of a cascade.
    """

    def __init__(
        self, folder: Path, folds: Sequence[int | str] | None, checkpoint: str, device: str, mirroring: bool = True
    ) -> None:
        check_checkpoint_name(checkpoint)
        self.folder = folder
        self.folds = _choose_folds(folder, folds, checkpoint)
        check_device(device)
        self.checkpoints = [folder / f"fold_{fold}" / checkpoint for fold in self.folds]
        self.predictor = self._load(checkpoint, device, mirroring)
        if self.predictor.configuration_manager.previous_stage_name:
            raise ModelError(
                f"{folder} is the second stage of a cascade, which needs the predictions of the first. Choose a model "
                f"of another configuration."
            )
        self.labels = Labels.of_dataset(self.predictor.dataset_json, folder / "dataset.json")

    def _load(self, checkpoint: str, device: str, mirroring: bool) -> nnUNetPredictor:
        """nnU-Net's predictor with this model, after checking all files that the predictor reads."""
        plans = read_json(self.folder / "plans.json", TrainedPlans, RESTORE)
        read_json(self.folder / "dataset.json", Dataset, RESTORE)
        described = {path: _without_weights(safe_checkpoint(path)) for path in self.checkpoints}
        trainer_class(check_trainer(self.folder, plans, described))
        predictor = nnUNetPredictor(
            use_mirroring=mirroring,
            perform_everything_on_device=device == "cuda",
            device=torch.device(device),
            allow_tqdm=False,
        )
        try:
            predictor.initialize_from_trained_model_folder(str(self.folder), tuple(self.folds), checkpoint)
        except KeyError as error:
            raise ModelError(f"{self.folder / 'plans.json'} does not describe a network: it lacks {error}.") from error
        except RuntimeError as error:
            if not str(error).startswith("Error(s) in loading state_dict"):
                raise
            raise ModelError(f"{self.checkpoints[0]} does not match the network in its plans.json: {error}") from error
        try:
            validate(predictor.configuration_manager.configuration, PlannedConfiguration)
        except DataError as error:
            raise ModelError(f"{self.folder / 'plans.json'}: {error} {RESTORE}") from error
        _check_same_network(unwrap(predictor.network), described)
        return predictor

    @property
    def network(self) -> nn.Module:
        """The network. nnU-Net's predictor loads its weights from `predictor.list_of_parameters`."""
        return unwrap(self.predictor.network)

    def cases(self, images: Path | None = None, truths: Path | None = None) -> list[Case]:
        """The labeled cases in two folders in nnU-Net's format, or by default the validation cases of the fold.

        Raises:
            ModelError: There are no cases, images or truths are missing, or validation cases are requested for an
                ensemble of folds.
        """
        if (images is None) != (truths is None):
            raise ModelError("`images` and `truths` belong together: give both or none.")
        cases = self._validation() if images is None or truths is None else self._in_folders(images, truths)
        channels = max([1, *(len(case.images) for case in cases)])
        ending = self.predictor.dataset_json["file_ending"]
        if odd := [case for case in cases if len(case.images) < channels]:
            raise ModelError(
                f"{len(odd)} cases lack images: {odd[0].name} has {len(odd[0].images)} of {channels} in "
                f"{images or 'the raw dataset'}. The first channel must be named {odd[0].name}_0000{ending}."
            )
        return cases

    def _in_folders(self, images: Path, truths: Path) -> list[Case]:
        ending = self.predictor.dataset_json["file_ending"]
        for folder in (images, truths):
            if not folder.is_dir():
                raise ModelError(f"There is no folder {folder}.")
        found = _visible(truths, ending)
        if not found:
            raise ModelError(f"There are 0 cases with a truth in {truths}. Truths are files that end in {ending}.")
        return [Case(name, images_in(images, name, ending), truth) for name, truth in found.items()]

    def _validation(self) -> list[Case]:
        """The validation cases of the fold, from nnU-Net's folders."""
        dataset = self.predictor.plans_manager.dataset_name
        preprocessed = Path(nnUNet_preprocessed or "", dataset)
        names = self._validation_names(preprocessed / "splits_final.json")
        if not nnUNet_raw:
            raise ModelError(
                "nnUNet_raw, which contains the images, is not set. Set it, or give `images` and `truths`."
            )
        images = training_images(Path(nnUNet_raw, dataset), names, self.predictor.dataset_json["file_ending"])
        truths = _visible(preprocessed / "gt_segmentations", self.predictor.dataset_json["file_ending"])
        if lacking := [name for name in names if name not in truths]:
            raise ModelError(
                f"{preprocessed / 'gt_segmentations'} has truths of {len(names) - len(lacking)} of {len(names)} cases: "
                f"{lacking[0]} is missing. Preprocess the dataset again."
            )
        if gone := [name for name in names if not images[name]]:
            raise ModelError(
                f"{preprocessed / 'splits_final.json'} names {gone[0]!r}, which has no images in "
                f"{Path(nnUNet_raw, dataset)}. If it was removed from the dataset, remove it from the splits, or give "
                f"`images` and `truths`."
            )
        return [Case(name, images[name], truths[name]) for name in names]

    def _validation_names(self, splits: Path) -> list[str]:
        known = read_json(splits, Splits, "nnU-Net writes it when a training starts.") if splits.exists() else []
        fold = self.folds[0]
        if len(self.folds) > 1 or not fold.isdecimal() or int(fold) >= len(known):
            raise ModelError(
                f"There are no validation cases for fold {', '.join(self.folds)}: only a single numbered fold has "
                f"them, in {splits}. Choose one of the `folds`, or give `images` and `truths`."
            )
        names = sorted(known[int(fold)]["val"])
        if not names or len(set(names)) < len(names):
            raise ModelError(
                f"{splits}: fold {fold} has no validation cases, or one case twice. Restore the splits of the training."
            )
        validation = self.folder / f"fold_{fold}" / "validation"
        validated = validated_cases(validation, self.predictor.dataset_json["file_ending"])
        if validated is not None and validated != set(names):
            raise ModelError(
                f"{self.folder} was not validated on the cases that {splits} names for fold {fold}; they may be its "
                f"training cases. Restore the splits of that training, or give `images` and `truths`."
            )
        return names

    def read(self, case: Case) -> tuple[Array, Array, dict[str, Any]]:
        """Image ``(C, *spatial)``, truth ``(*spatial)``, and the properties that nnU-Net's reader returns.

        Raises:
            DataError: A file cannot be read, or does not match the model's dataset and plans.
        """
        image, properties = self.read_image(case.images)
        reader = self.predictor.plans_manager.image_reader_writer_class
        truth = SegmentationReader(reader, self.labels, self.folder / "dataset.json").read(case.truth).values
        if image.shape[1:] != truth.shape:
            files = ", ".join(str(path) for path in case.images)
            raise ModelError(f"{files} has shape {image.shape[1:]}, but its truth {case.truth} has {truth.shape}.")
        return image, truth, properties

    def read_image(self, images: Sequence[Path]) -> tuple[Array, dict[str, Any]]:
        """Image ``(C, *spatial)`` of a case's files, one per channel, and the properties that nnU-Net's reader returns.

        Raises:
            DataError: A file cannot be read, or does not match the model's dataset and plans.
        """
        reader = self.predictor.plans_manager.image_reader_writer_class
        files = ", ".join(str(path) for path in images)
        for path in images:
            check_whole(path)
        image, properties = _read(reader().read_images, [str(path) for path in images], files)
        expected = len(self.predictor.configuration_manager.normalization_schemes)
        if len(image) != expected:
            raise ModelError(f"{files}: {len(image)} channels; {self.folder} was trained on {expected}.")
        if not np.isfinite(image).all():
            raise ModelError(f"{files} contains NaN or infinite values. Correct the image, or leave the case out.")
        return image, properties

    def in_range(self, image: Array) -> Array:
        """The image ``(C, *spatial)`` clipped to [0, 255] if nnU-Net divides it by 255, as it does for colors."""
        schemes = self.predictor.configuration_manager.normalization_schemes
        return np.clip(image, 0, 255) if "RGBTo01Normalization" in schemes else image

    def score(self, image: Array, truth: Array, properties: dict[str, Any]) -> dict[str, dict[str, float]]:
        """Predict a raw image as nnU-Net does, and return metrics and voxel counts by label; see `case_metrics`."""
        with redirect_stdout(StringIO()):  # nnU-Net prints lines for each image
            prediction = self.predictor.predict_single_npy_array(image.astype(np.float32), properties)
        return case_metrics(prediction, truth, properties["spacing"], self.labels.foreground, self.labels.ignore)


def _choose_folds(folder: Path, folds: Sequence[int | str] | None, checkpoint: str) -> list[str]:
    """The folds to use, after checking that each has the checkpoint."""
    trained = {path.name.removeprefix("fold_"): path for path in sorted(folder.glob("fold_*"))}
    present = [f for f, path in trained.items() if (f == "all" or f.isdecimal()) and (path / checkpoint).is_file()]
    if folds is None and len(present) > 1:
        raise ModelError(f"{folder} has fold {', '.join(present)}. Choose one or more (an ensemble) as `folds`.")
    chosen = present if folds is None else check_folds(folds)
    if not (folder / "plans.json").is_file() or not chosen or set(chosen) - set(present):
        raise ModelError(
            f"{folder} is not a trained model with {checkpoint} of fold {', '.join(chosen) or 'any'}. Expected is "
            f"nnU-Net's folder TRAINER__PLANS__CONFIGURATION; its folds: {', '.join(present) or 'none'}."
        )
    return chosen


def check_device(device: str) -> None:
    """Raise a ModelError if this machine has no such device, ``"cpu"``, ``"cuda"`` or ``"mps"``."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ModelError("`device` cuda needs a GPU that PyTorch can use, but there is none. Use `device` cpu.")
    if device == "mps" and not torch.backends.mps.is_available():
        raise ModelError("`device` mps needs a Mac with Metal, but this machine is not one. Use `device` cpu.")


def _without_weights(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a checkpoint that is checked later, without its weights, to save memory."""
    kept = {key: checkpoint[key] for key in ("trainer_name", "init_args")}
    return kept | {"shapes": {name: weight.shape for name, weight in checkpoint["network_weights"].items()}}


def _check_same_network(network: nn.Module, described: Mapping[Path, Mapping[str, Any]]) -> None:
    """Check that the checkpoints of all folds match the network. nnU-Net loads later folds only when it predicts."""
    own = {name: weight.shape for name, weight in network.state_dict().items()}
    for path, checkpoint in described.items():
        given = checkpoint["shapes"]
        if differ := [name for name in {**own, **given} if own.get(name) != given.get(name)]:
            raise ModelError(
                f"{path} does not match the network in its plans.json: {len(differ)} tensors differ, for example "
                f"{differ[0]}. Use the folds of one training."
            )


def _visible(folder: Path, ending: str) -> dict[str, Path]:
    """Files of a folder by case, sorted, without hidden ones such as ``._case.nii.gz`` from macOS."""
    files = [path for path in sorted(folder.glob(f"*{ending}")) if not path.name.startswith(".")]
    return {path.name.removesuffix(ending): path for path in files}


def _read(reader: Any, argument: Any, files: str) -> Any:
    try:
        with redirect_stdout(StringIO()):
            return reader(argument)
    except Exception as error:  # nnU-Net's readers wrap several libraries that raise unrelated exceptions
        reason = (str(error) or type(error).__name__).strip().splitlines()[-1]
        raise ModelError(f"{files} cannot be read: {reason}") from error
