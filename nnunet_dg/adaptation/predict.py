"""Predicting a folder of images with test-time adaptation."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from nnunet_dg.adaptation.alpha import AlphaPredictor
from nnunet_dg.adaptation.cases import Images, Validation, input_images, validation_cases
from nnunet_dg.adaptation.mixing import best
from nnunet_dg.adaptation.models import check_same_data
from nnunet_dg.adaptation.predictor import AdaptingPredictor
from nnunet_dg.adaptation.record import Record, setup_of
from nnunet_dg.adaptation.settings import SFB, Adaptation, Tent
from nnunet_dg.adaptation.sfb import SFBPredictor
from nnunet_dg.adaptation.tent import TentPredictor
from nnunet_dg.adaptation.validation import alpha_scores, tuned_temperature
from nnunet_dg.errors import SettingsError
from nnunet_dg.files import locked, write_json
from nnunet_dg.robustness.trained_model import Case, TrainedModel


def predict(
    images: Path,
    output: Path,
    settings: Adaptation,
    model: Path,
    stable: Path | None = None,
    validation: Validation | None = None,
    *,
    folds: Sequence[int | str] = (0, 1, 2, 3, 4),
    checkpoint: str = "checkpoint_final.pth",
    device: str = "cuda",
    mirroring: bool = True,
    step_size: float = 0.5,
    on_device: bool = True,
    save_probabilities: bool = False,
    resume: bool = False,
    seed: int = 0,
    progress: bool = True,
) -> Record:
    """Predict images with a trained model that adapts to each of them. Files of the models never change.

    Args:
        images: Folder of images in nnU-Net's format.
        output: Folder for the predictions, ``adaptation.json``, and nnU-Net's ``dataset.json`` and ``plans.json``.
        settings: Method and its settings.
        model: Results folder of the model that adapts; the unstable one of two.
        stable: Results folder of the stable model, for methods with two.
        validation: Validation set, for methods that choose a number.
        folds, checkpoint, device, mirroring: See `TrainedModel`; for both models.
        step_size: Step of the sliding window as a fraction of the patch, in (0, 1].
        on_device: Whether logits are kept on the GPU, as nnU-Net does.
        save_probabilities: Whether probabilities are written, as nnU-Net does.
        resume: Whether cases that were already predicted with the same setup are skipped.
        seed: Seed of all random numbers. Those of a case do not depend on other cases.
        progress: Whether progress bars are shown.

    Returns:
        The record that was written.

    Raises:
        UserError: A model, an image, the validation set or a setting is not accepted. The message says why.
    """
    _check(settings, stable, validation, step_size)
    models = _load(model, stable, folds, checkpoint, device, mirroring)
    first = next(iter(models.values()))
    for trained in models.values():
        trained.predictor.tile_step_size = step_size
        trained.predictor.perform_everything_on_device &= on_device
    targets = input_images(images, first.predictor.dataset_json["file_ending"])
    cases, described = validation_cases(first, validation, targets) if validation else ([], None)
    setup = setup_of(
        settings, models, described, seed=seed, device=device, mirroring=mirroring, step_size=step_size,
        save_probabilities=save_probabilities,
    )  # fmt: skip
    output.mkdir(parents=True, exist_ok=True)
    with locked(output, "nnunet-dg predict"):
        record = Record(output, setup, resume)
        if record.chosen is None:
            shown = tqdm(cases, "validation", unit="case", disable=not (progress and cases))
            record.choose(_choose(settings, models, shown, seed))
        predictor = _predictor(settings, models, record.chosen or {}, seed)
        record.adapted = predictor.adapted()
        _predict_all(first, predictor, targets, output, record, save_probabilities, progress)
    return record


def _check(settings: Adaptation, stable: Path | None, validation: Validation | None, step_size: float) -> None:
    if settings.two_models and stable is None:
        raise SettingsError(f"{settings.key} needs a stable model next to the unstable one: name its folder, `stable`.")
    if settings.two_models and validation is None:
        raise SettingsError(f"{settings.key} chooses a number on a validation set: name it, `validation`.")
    if not settings.two_models and (stable is not None or validation is not None):
        raise SettingsError(
            f"{settings.key} needs one model and no validation set: leave out `stable` and `validation`."
        )
    if not 0 < step_size <= 1:
        raise SettingsError(f"`step_size` must be in (0, 1]; got {step_size!r}.")


def _load(model: Path, stable: Path | None, *options: Any) -> dict[str, TrainedModel]:
    """The models by role, the one that adapts first, with the options of `TrainedModel`."""
    roles = {"unstable": model, "stable": stable} if stable else {"adapted": model}
    with redirect_stdout(StringIO()):  # nnU-Net prints lines for each model
        models = {name: TrainedModel(path, *options) for name, path in roles.items()}
    if stable:
        check_same_data(models["stable"], models["unstable"])
    return models


def _choose(settings: Adaptation, models: dict[str, TrainedModel], cases: Iterable[Case], seed: int) -> dict[str, Any]:
    """The numbers that a method takes from the validation set."""
    if isinstance(settings, Tent):
        return {}
    if isinstance(settings, SFB):
        return {"temperature": tuned_temperature(models["stable"], cases, seed)}
    scores = alpha_scores(models["stable"], models["unstable"], cases)
    return {"alpha": best(scores), "validation_dice": {f"{alpha:g}": dice for alpha, dice in scores.items()}}


def _predictor(
    settings: Adaptation, models: dict[str, TrainedModel], chosen: dict[str, Any], seed: int
) -> AdaptingPredictor:
    if isinstance(settings, Tent):
        return TentPredictor(models["adapted"].predictor, settings, seed)
    unstable, stable = (models[role].predictor for role in ("unstable", "stable"))
    if isinstance(settings, SFB):
        return SFBPredictor(unstable, stable, chosen["temperature"], settings, seed)
    return AlphaPredictor(unstable, stable, chosen["alpha"])


def _predict_all(
    model: TrainedModel, predictor: AdaptingPredictor, targets: Images, output: Path, record: Record,
    save_probabilities: bool, progress: bool,
) -> None:  # fmt: skip
    """Predict the cases that the record lacks."""
    ending = predictor.dataset_json["file_ending"]
    write_json(output / "dataset.json", predictor.dataset_json, indent=4)
    write_json(output / "plans.json", predictor.plans_manager.plans, indent=4)
    todo = [case for case in targets if case not in record.cases or not (output / f"{case}{ending}").is_file()]
    shown = tqdm(todo, "prediction", len(targets), initial=len(targets) - len(todo), unit="case", disable=not progress)
    for case in shown:
        began = time.perf_counter()
        image, properties = model.read_image(targets[case])
        predictor.case = case
        with redirect_stdout(StringIO()):  # nnU-Net prints lines for each image
            predictor.predict_single_npy_array(
                image.astype(np.float32), properties, None, str(output / case), save_probabilities
            )
        record.add(case, predictor.notes, time.perf_counter() - began)
