"""The settings of every fold of a results folder: all folds share one ``plans.json``, so they must be the same.

A training writes its settings into its fold's folder before the first step. Folds of before, which have no such file,
are asked through ``plans.json`` or, where that is missing or damaged, through their checkpoints.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnunet_dg.errors import DataError
from nnunet_dg.files import read_json, validate, write_json
from nnunet_dg.formats import Plans, Sections
from nnunet_dg.nnunet.settings import KEY

FILE = "nnunet_dg.json"
CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_best.pth", "checkpoint_latest.pth")


def write_fold(fold: Path, sections: dict[str, dict[str, Any]]) -> None:
    """Write the settings of a fold, ``{method: {setting: value}}``, all of it or nothing."""
    write_json(fold / FILE, sections)


def is_trained(fold: Path) -> bool:
    """Whether there is a checkpoint in a fold's folder."""
    return any((fold / name).is_file() for name in CHECKPOINTS)


def read_folds(results: Path) -> dict[str, dict[str, Any]]:
    """The settings of all folds that were trained or started: ``{fold: {method: {setting: value}}}``.

    Args:
        results: The folder ``TRAINER__PLANS__CONFIGURATION``. It may be missing.

    Raises:
        DataError: A fold has checkpoints, and no file says with which settings it was trained.
    """
    folders = sorted(path for path in results.glob("fold_*") if (path / FILE).is_file() or is_trained(path))
    return {path.name: _read_fold(path) for path in folders}


def _read_fold(fold: Path) -> dict[str, Any]:
    problems = []
    for read in (_from_own_file, _from_plans, _from_checkpoints):
        try:
            return read(fold)
        except DataError as error:
            problems.append(str(error))
    raise DataError(
        f"Nothing says with which settings {fold} was trained: {' '.join(problems)} Restore plans.json, or move the "
        f"fold away."
    )


def _from_own_file(fold: Path) -> dict[str, Any]:
    return read_json(fold / FILE, Sections)


def _from_plans(fold: Path) -> dict[str, Any]:
    path = fold.parent / "plans.json"
    plans: Any = read_json(path, Plans)
    if KEY not in plans:
        raise DataError(f"{path} has no settings of this package.")
    return validate(plans[KEY], Sections)


def _from_checkpoints(fold: Path) -> dict[str, Any]:
    """From the plans in the first checkpoint that can be read; nothing where a model without settings was put here."""
    problems = []
    for path in filter(Path.is_file, map(fold.joinpath, CHECKPOINTS)):
        try:
            return validate(_plans_in(path).get(KEY, {}), Sections)
        except DataError as error:
            problems.append(str(error))
    raise DataError(" ".join(problems) or f"{fold} has no checkpoint.")


def _plans_in(checkpoint: Path) -> dict[str, Any]:
    """The plans in a checkpoint of nnU-Net, read without running code from it."""
    numpy_core: Any = getattr(np, "_core", None) or np.core  # numpy 2, numpy 1
    in_its_log = [numpy_core.multiarray.scalar, np.dtype, *{type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8")}]
    try:
        with torch.serialization.safe_globals(in_its_log):
            content = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
        plans: dict[str, Any] = content["init_args"]["plans"] | {}
    except (OSError, RuntimeError, pickle.UnpicklingError, KeyError, TypeError, EOFError) as error:
        raise DataError(f"{checkpoint} cannot be read as a checkpoint of nnU-Net: {error}.") from error
    return plans
