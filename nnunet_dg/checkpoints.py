"""Reading trained models of other people: without running code, and held against what nnU-Net writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from nnunet_dg.errors import DataError, SettingsError
from nnunet_dg.extractors.nnunet_folder import read_checkpoint
from nnunet_dg.files import validate
from nnunet_dg.formats import Checkpoint

T = TypeVar("T")


def safe_checkpoint(path: Path, model: type[T] = Checkpoint) -> dict[str, Any]:  # type: ignore[assignment]
    """nnU-Net's checkpoint, on the CPU, from a reader that runs no code.

    nnU-Net's own commands and its predictor unpickle checkpoints, which runs whatever the file asks for. So every file
    of this package's commands is read here first, and refused if it holds more than tensors, numbers, strings,
    containers and what nnU-Net puts there.

    Args:
        path: The file.
        model: What it must hold, a type of `nnunet_dg.formats`.

    Raises:
        DataError: The file cannot be read in this way, lacks something, or its weights are not finite tensors.
    """
    try:
        checkpoint = read_checkpoint(path)
        validate(checkpoint, model)
    except ValueError as error:
        text = str(error) if str(path) in str(error) else f"{path}: {error} Use a checkpoint that nnU-Net has written."
        raise DataError(text) from error
    for name, weight in checkpoint["network_weights"].items():
        if problem := _problem(weight):
            raise DataError(f"{path}: the weight {name} {problem}. Use another checkpoint or fold, or train again.")
    return checkpoint


def _problem(weight: torch.Tensor) -> str:
    if weight.is_meta or weight.layout != torch.strided:
        return "has no dense content"
    finite = not weight.is_floating_point() or bool(torch.isfinite(weight).all())
    return "" if finite else "holds NaN or infinite values"


def check_trainer(folder: Path, plans: Mapping[str, Any], checkpoints: Mapping[Path, Mapping[str, Any]]) -> str:
    """The trainer of all checkpoints, which the name of a folder ``TRAINER__PLANS__CONFIGURATION`` must agree with.

    Folders of other names, such as exported ones, say nothing about the trainer.

    Args:
        folder: The model folder.
        plans: Content of its ``plans.json``.
        checkpoints: Content of the checkpoints by file.

    Raises:
        DataError: Trainers or configurations differ, or the plans have no such configuration.
    """
    parts = folder.resolve().name.split("__")
    named = len(parts) == 3 and parts[1] == plans.get("plans_name")
    trainer, configuration = (parts[0], parts[2]) if named else _trained_by(next(iter(checkpoints.values())))
    for path, checkpoint in checkpoints.items():
        found = _trained_by(checkpoint)
        if found != (trainer, configuration):
            raise DataError(
                f"{path} is a checkpoint of {found[0]}, {found[1]}; expected here: {trainer}, {configuration}. Restore "
                f"the checkpoint of this model."
            )
    if configuration not in plans.get("configurations", {}):
        raise DataError(f"{folder / 'plans.json'} has no configuration {configuration!r}. Restore the file.")
    return trainer


def _trained_by(checkpoint: Mapping[str, Any]) -> tuple[str, str]:
    return checkpoint["trainer_name"], checkpoint["init_args"]["configuration"]


def check_folds(folds: Sequence[int | str]) -> list[str]:
    """Folds as text.

    Raises:
        SettingsError: There are none, one is neither a number nor ``all``, or one is given twice.
    """
    names = [str(int(fold)) if str(fold).isdecimal() else str(fold) for fold in folds]
    for name in names:
        if name != "all" and not name.isdecimal():
            raise SettingsError(f"A fold is a number or all; got {name!r}.")
        if names.count(name) > 1:
            raise SettingsError(f"Fold {name} is given twice: an ensemble counts each fold once. Name it once.")
    if not names:
        raise SettingsError("Name at least one fold.")
    return names


def check_checkpoint_name(name: str) -> None:
    """Refuse what is not the name of a file in a fold's folder.

    Raises:
        SettingsError: The name has folders in it, or is empty.
    """
    if not name or name in (".", "..") or "/" in name or "\\" in name or "\0" in name:
        raise SettingsError(
            f"A checkpoint is the name of a file in fold_X, such as checkpoint_final.pth; got {name!r}."
        )
