"""The settings of every fold of a results folder: all folds share one ``plans.json``, so they must be the same.

A training writes its settings into its fold's folder before the first step. Folds of before, which have no such file,
are asked through ``plans.json`` or, where that is missing or damaged, through their checkpoints.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nnunet_dg.errors import DataError
from nnunet_dg.extractors.nnunet_folder import read_checkpoint
from nnunet_dg.files import read_json, replacing, validate, write_json
from nnunet_dg.formats import Plans, Sections
from nnunet_dg.names import is_fold
from nnunet_dg.training.plans import KEY

FILE = "nnunet_dg.json"
CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_best.pth", "checkpoint_latest.pth")


@contextmanager
def writing_fold(fold: Path, sections: dict[str, dict[str, Any]]) -> Iterator[None]:
    """Write the settings of a fold, ``{method: {setting: value}}``; if the block raises, they are taken back.

    Those of a fold with checkpoints are then what they were before. A fold without one has none.
    """
    path = fold / FILE
    before = path.read_bytes() if is_trained(fold) and path.is_file() else None
    write_json(path, sections)
    try:
        yield
    except BaseException:
        _put_back(path, before)
        raise


def withdraw_fold(fold: Path) -> None:
    """Remove the settings of a fold that was started and has no checkpoint: no training has used them."""
    if not is_trained(fold):
        _put_back(fold / FILE, None)


def _put_back(path: Path, content: bytes | None) -> None:
    if content is None:
        path.unlink(missing_ok=True)
        return
    with replacing(path) as partial:
        partial.write_bytes(content)


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
    named = [path for path in results.glob("fold_*") if is_fold(path.name)]  # not one that was renamed, fold_0_old
    folders = sorted(path for path in named if (path / FILE).is_file() or is_trained(path))
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
            plans = validate(read_checkpoint(path)["init_args"].get("plans"), Plans)
            return validate(plans.get(KEY, {}), Sections)
        except DataError as error:
            problems.append(str(error))
    raise DataError(" ".join(problems) or f"{fold} has no checkpoint.")
