"""What is chosen on a validation set: the temperature of a stable model, and alpha."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.data_iterators import PreprocessAdapterFromNpy
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from torch import Tensor

from nnunet_dg.adaptation.alpha import both_logits
from nnunet_dg.adaptation.calibration import balanced, temperature
from nnunet_dg.adaptation.mixing import ALPHAS, mixed
from nnunet_dg.adaptation.predictor import deterministic
from nnunet_dg.errors import DataError
from nnunet_dg.evaluation.metrics import case_metrics
from nnunet_dg.robustness.corruptions import seed_of
from nnunet_dg.robustness.trained_model import Array, Case, TrainedModel

PER_LABEL = 2000  # voxels of each label that a case contributes to the calibration


def tuned_temperature(model: TrainedModel, cases: Iterable[Case], seed: int) -> float:
    """The temperature that calibrates a model on the voxels of validation cases.

    Up to 2000 random voxels of each label and case are used, every label with the same weight. Voxels with the ignore
    label are left out. Truths are resampled to the grid of the logits, as nnU-Net does for training.

    Args:
        model: Stable model.
        cases: Validation cases.
        seed: Seed of the random voxels.

    Raises:
        DataError: No voxel has a label.
    """
    logits, labels = [], []
    for case in cases:
        volume, truth = _labeled(model, case)
        with deterministic():
            predicted = model.predictor.predict_logits_from_preprocessed_data(volume).flatten(1)
        chosen = _voxels(truth, model.labels.ignore, torch.Generator().manual_seed(seed_of(case.name, seed)))
        logits.append(predicted[:, chosen].T.float())
        labels.append(truth[chosen])
    label = torch.cat(labels) if labels else torch.zeros(0)
    if not len(label):
        raise DataError("The validation cases have no labeled voxel. Name another validation set.")
    return temperature(torch.cat(logits), _targets(model.predictor.label_manager, label), balanced(label))


def _labeled(model: TrainedModel, case: Case) -> tuple[Tensor, Tensor]:
    """Preprocessed image ``(C, X, Y, Z)`` and its label of each voxel ``(V,)``, int64."""
    image, truth, properties = model.read(case)
    p = model.predictor
    preprocessor = p.configuration_manager.preprocessor_class(verbose=False)
    with redirect_stdout(StringIO()):
        data, segmentation, _ = preprocessor.run_case_npy(
            image.astype(np.float32), truth[None].astype(np.int16), properties, p.plans_manager,
            p.configuration_manager, p.dataset_json,
        )  # fmt: skip
    label = torch.from_numpy(np.ascontiguousarray(segmentation[0])).long().flatten()
    return torch.from_numpy(data), label.clamp(min=0)  # -1: background outside the mask of nonzero voxels


def _voxels(label: Tensor, ignore: int | None, generator: torch.Generator) -> Tensor:
    """Random positions of up to `PER_LABEL` voxels of each label."""
    chosen = []
    for value in label.unique().tolist():
        if value != ignore:
            places = torch.nonzero(label == value).flatten()
            chosen.append(places[torch.randperm(len(places), generator=generator)[:PER_LABEL]])
    return torch.cat(chosen) if chosen else torch.zeros(0, dtype=torch.long)


def _targets(manager: Any, label: Tensor) -> Tensor:
    """What `calibration.log_loss` compares with: the index of the class, or the membership in each region."""
    if not manager.has_regions:
        return torch.searchsorted(torch.tensor([int(value) for value in manager.all_labels]), label)
    regions = [torch.tensor(region).flatten() for region in manager.foreground_regions]
    return torch.stack([torch.isin(label, region) for region in regions], dim=1)


def alpha_scores(stable: TrainedModel, unstable: TrainedModel, cases: Iterable[Case]) -> dict[float, float]:
    """Mean foreground Dice of validation cases for each of `ALPHAS`.

    A label that is empty in both truth and prediction of a case is left out.

    Args:
        stable, unstable: Models for the same preprocessed data.
        cases: Validation cases.

    Raises:
        DataError: Truths and predictions of all cases are empty for an alpha.
    """
    dice: dict[float, list[float]] = {alpha: [] for alpha in ALPHAS}
    for case in cases:
        image, truth, properties = unstable.read(case)
        with redirect_stdout(StringIO()), deterministic():
            volume, details = preprocessed(unstable.predictor, image, properties)
            logits = both_logits(stable.predictor, unstable.predictor, volume)
        for alpha in ALPHAS:
            prediction = _segmentation(unstable.predictor, mixed(*logits, alpha), details)
            scores = case_metrics(
                prediction,
                truth,
                details["spacing"],
                unstable.labels.foreground,
                unstable.labels.ignore,
                surfaces=False,
            )
            dice[alpha] += [score["dice"] for score in scores.values() if np.isfinite(score["dice"])]
    if empty := [alpha for alpha, values in dice.items() if not values]:
        raise DataError(
            f"With alpha {empty[0]}, truths and predictions of all validation cases are empty. Name another validation "
            f"set."
        )
    return {alpha: float(np.mean(values)) for alpha, values in dice.items()}


def preprocessed(predictor: nnUNetPredictor, image: Array, properties: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
    """A raw image ``(C, *spatial)``, preprocessed as `predict_single_npy_array` does, and its properties."""
    adapter = PreprocessAdapterFromNpy(
        [image.astype(np.float32)], [None], [properties], [None], predictor.plans_manager, predictor.dataset_json,
        predictor.configuration_manager, num_threads_in_multithreaded=1, verbose=False,
    )  # fmt: skip
    content = next(adapter)
    return content["data"], content["data_properties"]


def _segmentation(predictor: nnUNetPredictor, logits: Tensor, properties: dict[str, Any]) -> Array:
    segmentation: Array = convert_predicted_logits_to_segmentation_with_correct_shape(
        logits, predictor.plans_manager, predictor.configuration_manager, predictor.label_manager, properties
    )
    return segmentation
