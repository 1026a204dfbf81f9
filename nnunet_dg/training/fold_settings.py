"""The settings of all folds of a results folder. They must be equal, since all folds share one ``plans.json``.

A training writes its settings into its fold's folder before the first step. For folds of earlier versions, which lack
this file, settings are read from ``plans.json`` or, if that is missing or damaged, from their checkpoints.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nnunet_dg.errors import DataError, SettingsError
from nnunet_dg.extractors.nnunet_folder import read_checkpoint
from nnunet_dg.files import read_json, replacing, validate, write_json
from nnunet_dg.formats import Plans, Sections
from nnunet_dg.method import Method
from nnunet_dg.names import is_fold
from nnunet_dg.training.plans import KEY, refuse_other_settings, resolve

FILE = "nnunet_dg.json"
CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_best.pth", "checkpoint_latest.pth")


@contextmanager
def writing_fold(fold: Path, sections: dict[str, dict[str, Any]]) -> Iterator[None]:
    """Write the settings of a fold, ``{method: {setting: value}}``, and undo this if the block raises an exception.

    A fold with checkpoints then gets its previous settings back; the file of a fold without checkpoints is removed.
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
    """Remove the settings of a fold without checkpoints, since no training has used them."""
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
        results: Folder ``TRAINER__PLANS__CONFIGURATION``; it may be missing.

    Raises:
        DataError: A fold has checkpoints, but its settings cannot be read from any file.
    """
    folds = [path for path in results.glob("fold_*") if is_fold(path.name)]  # without renamed ones, such as fold_0_old
    folders = sorted(path for path in folds if (path / FILE).is_file() or is_trained(path))
    return {path.name: _read_fold(path) for path in folders}


def _read_fold(fold: Path) -> dict[str, Any]:
    problems = []
    for read in (_from_own_file, _from_plans, _from_checkpoints):
        try:
            return read(fold)
        except DataError as error:
            problems.append(str(error))
    raise DataError(
        f"The settings with which {fold} was trained cannot be read: {' '.join(problems)} Restore plans.json, or move "
        f"the fold away."
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
    """The settings in the first readable checkpoint; empty for a model that was trained without this package."""
    problems = []
    for path in filter(Path.is_file, map(fold.joinpath, CHECKPOINTS)):
        try:
            plans = validate(read_checkpoint(path)["init_args"].get("plans"), Plans)
            return validate(plans.get(KEY, {}), Sections)
        except DataError as error:
            problems.append(str(error))
    raise DataError(" ".join(problems) or f"{fold} has no checkpoint.")


class Folds:
    """The settings of the folds in one results folder, as seen by the training of one of them.

    Args:
        results: Folder ``TRAINER__PLANS__CONFIGURATION``.
        fold: Name of the fold that is trained, such as ``fold_0``.
        defaults: Methods of the trainer, whose settings are used for folds that recorded none.
    """

    def __init__(self, results: Path, fold: str, defaults: Sequence[Method]) -> None:
        self.results, self.fold = results, fold
        self.defaults = {method.key: method for method in defaults}

    def completed(self, method: Method, log: Any) -> Method:
        """A method's settings after `Method.completed`, checked against those of the other folds.

        Args:
            method: Settings of this training.
            log: Function that writes a line to the training log.

        Raises:
            SettingsError: Another fold was trained or started with other settings.
        """
        folds = read_folds(self.results)
        others = self._others(method, folds)
        earlier: list[Method | None] = list(others.values())
        if self.fold in folds:  # its settings may change, but values that it filled in are reused if they still apply
            try:
                earlier.insert(0, self._as_trained(self.fold, method, folds[self.fold]))
            except SettingsError:
                log(f"An earlier training in {self.fold} has settings of another version, which are not reused.")
        completed = method.completed(earlier[0] if earlier else None)
        self._refuse(completed, others)
        return completed

    def refuse_others(self, methods: Sequence[Method]) -> None:
        """Raise an error if another fold was trained or started with other settings.

        Args:
            methods: Methods of this training.

        Raises:
            SettingsError: Another fold has other settings. The message names the fold and the settings.
        """
        folds = read_folds(self.results)
        for method in methods:
            self._refuse(method, self._others(method, folds))

    def _others(self, method: Method, folds: Mapping[str, Mapping[str, Any]]) -> dict[str, Method]:
        others = {
            fold: self._as_trained(fold, method, sections) for fold, sections in folds.items() if fold != self.fold
        }
        return {fold: settings for fold, settings in others.items() if settings is not None}

    def _as_trained(self, fold: str, method: Method, sections: Mapping[str, Any]) -> Method | None:
        if method.key not in sections:
            return None
        try:
            return resolve({KEY: {method.key: sections[method.key]}}, self.defaults[method.key])
        except SettingsError as error:
            folder = self.results / fold
            raise SettingsError(f"{folder} has settings of an earlier training: {error} Move it away.") from error

    def _refuse(self, settings: Method, others: Mapping[str, Method]) -> None:
        for fold, other in others.items():
            trained = is_trained(self.results / fold)
            subject = f"{fold} in {self.results} was {'trained' if trained else 'started'}"
            restart = "" if trained else f", or start {fold} again with the new settings first"
            advice = f"{restart}, or move that fold away: folds share one plans.json"
            refuse_other_settings(settings, other, subject, advice)
