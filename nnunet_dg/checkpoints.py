"""Reading trained models from other people: their files are validated, and no code in them is run."""

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
    """Read nnU-Net's checkpoint to the CPU without running code from the file.

    nnU-Net's own commands and its predictor unpickle checkpoints, which can run arbitrary code. This package's commands
    therefore read every checkpoint here first. It is refused if it contains anything other than tensors, numbers,
    strings, containers and the objects that nnU-Net saves.

    Args:
        path: Checkpoint file.
        model: Expected content, a type of `nnunet_dg.formats`.

    Raises:
        DataError: The file cannot be read safely, lacks a required entry, or has weights that are not finite tensors.
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
    """The trainer that wrote all checkpoints. A folder named ``TRAINER__PLANS__CONFIGURATION`` must agree with it.

    Folders with other names, such as exported models, are not compared.

    Args:
        folder: Model folder.
        plans: Content of its ``plans.json``.
        checkpoints: Content of the checkpoints, by file.

    Raises:
        DataError: Trainers or configurations differ, or the plans lack the configuration.
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
    """The folds as strings.

    Raises:
        SettingsError: No fold is given, one is neither a number nor ``all``, or one is given twice.
    """
    names = [str(int(fold)) if str(fold).isdecimal() else str(fold) for fold in folds]
    for name in names:
        if name != "all" and not name.isdecimal():
            raise SettingsError(f"A fold must be a number or all; got {name!r}.")
        if names.count(name) > 1:
            raise SettingsError(f"Fold {name} is given twice. An ensemble uses each fold once; name it once.")
    if not names:
        raise SettingsError("Name at least one fold.")
    return names


def check_checkpoint_name(name: str) -> None:
    """Refuse a checkpoint that is not given as the plain name of a file in the fold's folder.

    Raises:
        SettingsError: The name is empty or contains a folder.
    """
    if not name or name in (".", "..") or "/" in name or "\\" in name or "\0" in name:
        raise SettingsError(
            f"`checkpoint` must be the name of a file in fold_X, such as checkpoint_final.pth; got {name!r}."
        )
