"""Test-time adaptation in a benchmark: every row is predicted again by each method, as a row of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_dg.adaptation.settings import METHODS
from nnunet_dg.benchmark.plan import Plan, check_choice
from nnunet_dg.benchmark.trainings import Training
from nnunet_dg.errors import SettingsError
from nnunet_dg.names import did_you_mean


@dataclass(frozen=True)
class Adapted:
    """The folds of a training, predicted with test-time adaptation.

    Attributes:
        training: Training whose models adapt; the unstable ones of two.
        method: Name of the method, as for ``nnunet-dg predict --adapt``.
        settings: Settings that are not the method's defaults.
        stable: Training of the stable models, for methods with two.
    """

    training: Training
    method: str
    settings: Mapping[str, Any]
    stable: Training | None

    @property
    def row(self) -> str:
        """Name of the row in the comparison."""
        return f"{self.training.row}+{self.method}"

    @property
    def name(self) -> str:
        """Name within the benchmark, with the settings, so that predictions with others stay what they are."""
        settings = "".join(f"_{key}{value}" for key, value in sorted(self.settings.items()))
        return f"{self.training.name}+{self.method}{settings}"

    def results(self, output: Path) -> Path:
        """Folder of the predictions in the folder of a benchmark, with nnU-Net's names of files and folders."""
        return output / "adapted" / self.name


def adapted_of(plan: Plan, trainings: Sequence[Training]) -> list[Adapted]:
    """What the plan adapts, after checking its settings.

    Args:
        plan: Plan.
        trainings: All its trainings.

    Raises:
        SettingsError: A method, a setting or the stable row is not accepted, or a dataset has no in-domain validation
            cases, on which sfb and alpha choose numbers.
    """
    for method, settings in plan["adaptation"].items():
        check_choice("adaptation", method, METHODS)
        _check_settings(method, settings)
    two = [method for method in plan["adaptation"] if METHODS[method].two_models]
    _check_stable(plan, two)
    for training in trainings if two else ():
        if training.folds.protocol != "existing" and not training.folds.in_domain:
            raise SettingsError(
                f"adaptation: {two[0]} chooses a number on in-domain validation cases, but {training.folds.name} has "
                f"none. Give the dataset in_domain, for example 0.2."
            )
    return [adapted for training in trainings for adapted in _of_training(plan, training, trainings)]


def _of_training(plan: Plan, training: Training, trainings: Sequence[Training]) -> Iterator[Adapted]:
    same = (t for t in trainings if (t.comparison, t.seed) == (training.comparison, training.seed))
    stable = next((t for t in same if t.row == plan["stable"]), None)
    for method, settings in plan["adaptation"].items():
        if not METHODS[method].two_models:
            yield Adapted(training, method, settings, None)
        elif training.row != plan["stable"]:
            yield Adapted(training, method, settings, stable)


def _check_settings(method: str, settings: Mapping[str, Any]) -> None:
    accepted = METHODS[method].names()
    for name in settings:
        if name not in accepted:
            known = ", ".join(accepted) or "none"
            raise SettingsError(
                f"Unknown setting {name!r} in adaptation.{method}.{did_you_mean(name, accepted)} Accepted are {known}."
            )
    try:
        METHODS[method](**settings)
    except SettingsError as error:
        raise SettingsError(f"adaptation.{method}: {error}") from error


def _check_stable(plan: Plan, two: Sequence[str]) -> None:
    rows, stable = list(plan["trainers"]), plan["stable"]
    if stable is not None and not two:
        raise SettingsError("stable is used by the adaptations sfb and alpha, which the plan does not have. Remove it.")
    if two and stable is None:
        raise SettingsError(
            f"adaptation: {two[0]} needs a stable model next to each unstable one. Name its row with the key stable, "
            f"one of {', '.join(rows)}."
        )
    if two and len(rows) == 1:
        raise SettingsError(f"adaptation: {two[0]} needs a second row next to the stable one, {stable}. Add a trainer.")
