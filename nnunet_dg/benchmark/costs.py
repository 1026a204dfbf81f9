"""Costs of trainings, read from the logs that nnU-Net and `nnunet_dg.training.planned_run` write, and of adaptation."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

import pandas as pd

from nnunet_dg.benchmark.record import TrainingRecord
from nnunet_dg.files import read_json, write_csv
from nnunet_dg.formats import Adaptation

EPOCH = re.compile(r"Epoch time: ([0-9.]+) s")
END = re.compile(r"Steps per epoch: ([0-9]+)\. Peak memory: ([0-9.]+|nan) GiB(?:, GPU ([0-9.]+) GiB)?")


def write_costs(trainings: Sequence[TrainingRecord], output: Path, adapted: Sequence[tuple[str, Path]] = ()) -> None:
    """Write a CSV file with the mean costs of each row of a comparison.

    Args:
        trainings: Trainings of the comparison.
        output: CSV file.
        adapted: Names of adapted rows, and their folders of predictions, which have the folds of the trainings.
    """
    costs = [
        {"trainer": training["row"], **fold_costs(Path(training["results"], f"fold_{number}"))}
        for training in trainings
        for number in training["folds"]
    ]
    costs += [
        {"trainer": row, **adaptation_costs(folder / f"fold_{number}" / "validation")}
        for row, folder in adapted
        for number in trainings[0]["folds"]
    ]
    means = pd.DataFrame(costs).groupby("trainer", sort=False).mean().dropna(axis="columns", how="all")
    output.parent.mkdir(parents=True, exist_ok=True)
    write_csv(output, means.map(_readable).reset_index())


def fold_costs(fold: Path) -> dict[str, float]:
    """Costs of one training by column of the table; a column whose values are not in the logs is missing.

    Args:
        fold: nnU-Net's results folder of the fold.
    """
    text = "\n".join(_read(path) for path in sorted(fold.glob("training_log_*.txt")))
    epochs = [float(seconds) for seconds in EPOCH.findall(text)]
    ends: list[Any] = END.findall(text)
    costs: dict[str, float] = {}
    if epochs:
        costs["training (min)"] = sum(epochs) / 60
    if epochs and ends:
        costs["step (ms)"] = 1000 * median(epochs) / int(ends[-1][0])
    if ends:
        costs["memory (GiB)"] = _largest(end[1] for end in ends)
        costs["GPU memory (GiB)"] = _largest(end[2] for end in ends)
    return costs


def adaptation_costs(predictions: Path) -> dict[str, float]:
    """Costs of the adapted predictions of one fold by column of the table; none if their record has no times.

    Args:
        predictions: Folder that `nnunet-dg predict` has written to.
    """
    record = read_json(predictions / "adaptation.json", Adaptation, "Predict again with nnunet-dg predict.")
    seconds = record.get("seconds", {})
    return {"adaptation (s per case)": mean(seconds.values())} if seconds else {}


def _readable(value: float) -> str:
    if math.isnan(value):
        return ""  # a cost that this row does not have
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _largest(values: Iterable[str]) -> float:
    return max((float(value) for value in values if value), default=float("nan"))


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")
