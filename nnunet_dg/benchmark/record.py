"""``trainings.json`` in the folder of a benchmark: its trainings, for the steps that run as separate jobs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ConfigDict
from typing_extensions import TypedDict

from nnunet_dg.files import read_json, write_json

if TYPE_CHECKING:  # whose imports take seconds, which steps that only read the file do not need
    from nnunet_dg.benchmark.trainings import Training


class TrainingRecord(TypedDict):
    """A `Training` in types of JSON."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)  # type: ignore[misc]
    dataset: str
    configuration: str
    plans: str
    own_plans: str
    row: str
    trainer: str
    seed: int
    comparison: str
    results: str
    preprocessed: str
    folds: list[int]


def write_trainings(path: Path, trainings: Iterable[Training]) -> None:
    """Write the trainings by name."""
    write_json(path, {training.name: _recorded(training) for training in trainings})


def read_trainings(path: Path) -> dict[str, TrainingRecord]:
    """Read the trainings by name.

    Raises:
        DataError: The file is missing or damaged.
    """
    return read_json(path, dict[str, TrainingRecord], "Run nnunet-dg benchmark again, which writes it.")


def chosen_results(folder: Path, comparison: str, row: str, seed: int) -> Path:
    """The folder of a row that is chosen on the validation domain, with nnU-Net's names of files and folders.

    Args:
        folder: Folder of all chosen rows.
        comparison: Name of the comparison.
        row: Name of the row.
        seed: Seed of the trainings that it is chosen from.
    """
    return folder / f"{comparison}__{row}__seed{seed}"


def _recorded(training: Training) -> dict[str, Any]:
    t = training
    return {
        "dataset": t.folds.name, "configuration": t.configuration, "plans": t.plans, "own_plans": t.own_plans,
        "row": t.row, "trainer": t.trainer, "seed": t.seed, "comparison": t.comparison,
        "results": str(t.results), "preprocessed": str(t.preprocessed), "folds": list(t.folds.numbers),
    }  # fmt: skip
