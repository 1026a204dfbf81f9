"""Rows that are chosen on the validation domain: per seed and fold, the best of several trainings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from shutil import rmtree
from typing import Any

import pandas as pd

from nnunet_dg.benchmark.record import TrainingRecord, chosen_results
from nnunet_dg.errors import DataError
from nnunet_dg.evaluation.metrics import HIGHER_IS_BETTER
from nnunet_dg.files import read_json, write_csv, write_json
from nnunet_dg.reporting.report import readable_number
from nnunet_dg.reporting.results import read_sources
from nnunet_dg.reporting.scores import VALIDATION, per_case
from nnunet_dg.reporting.sources import Source


def choose(
    trainings: Sequence[TrainingRecord],
    rows: Mapping[str, Sequence[str]],
    validation_domain: str,
    metric: str,
    output: Path,
) -> None:
    """Choose the rows of a comparison, and write what was chosen to ``COMPARISON.csv``.

    Each chosen row gets a folder per seed, like a results folder of nnU-Net, with links to the folds that were chosen.
    Folders of an earlier call are replaced.

    Args:
        trainings: Trainings of the comparison.
        rows: ``{chosen row: rows to choose from}``.
        validation_domain: Domain on whose cases the mean is compared. No other case is used.
        metric: Metric that is compared. Of equal rows, the first is chosen.
        output: Folder to write to.

    Raises:
        DataError: A training has no score of this metric on the validation domain.
    """
    table = []
    for seed in dict.fromkeys(training["seed"] for training in trainings):
        listed = {name for names in rows.values() for name in names}
        candidates = {t["row"]: t for t in trainings if t["seed"] == seed and t["row"] in listed}
        means = _validation_means(list(candidates.values()), validation_domain, metric)
        for row, names in rows.items():
            best = {fold: _best(scores[list(names)], metric) for fold, scores in means.iterrows()}
            folder = chosen_results(output, trainings[0]["comparison"], row, seed)
            _link(folder, {str(fold): Path(candidates[name]["results"]) for fold, name in best.items()})
            for fold, name in best.items():
                shown = _shown(means.loc[fold, list(names)], metric)
                table.append({"row": row, "seed": seed, "fold": fold, "chosen": name, "means": shown})
    write_csv(output / f"{trainings[0]['comparison']}.csv", pd.DataFrame(table))


def _validation_means(trainings: Sequence[TrainingRecord], validation_domain: str, metric: str) -> pd.DataFrame:
    """Mean over the cases of the validation domain; a row per fold, a column per training."""
    sources = [Source(Path(training["results"]), training["row"]) for training in trainings]
    scores = read_sources(sources, validation_domain=validation_domain)
    cases = per_case(scores[scores["setting"] == VALIDATION], metric)
    means = cases.pivot_table(index="fold", columns="trainer", values=metric)
    folds = [str(number) for number in trainings[0]["folds"]]
    means = means.reindex(index=folds, columns=[training["row"] for training in trainings])
    missing = means.isna().stack()
    for fold, row in missing[missing].index:
        raise DataError(
            f"Fold {fold} of the row {row!r} has no {metric} of a case of the validation domain {validation_domain!r}. "
            f"Repeat its validation, or choose on another domain."
        )
    return means


def _best(scores: Any, metric: str) -> str:
    return str(scores.idxmax() if HIGHER_IS_BETTER[metric] else scores.idxmin())  # the first of equal ones


def _shown(scores: Any, metric: str) -> str:
    return ", ".join(f"{name} {readable_number(metric, value)}" for name, value in scores.items())


def _link(folder: Path, folds: Mapping[str, Path]) -> None:
    if folder.is_dir():
        rmtree(folder)
    folder.mkdir(parents=True)
    for fold, results in folds.items():
        (folder / f"fold_{fold}").symlink_to(results.resolve() / f"fold_{fold}", target_is_directory=True)
    for name in ("plans.json", "dataset.json"):  # for the report, which reads what all trainings have in common
        write_json(folder / name, read_json(next(iter(folds.values())) / name, dict), indent=4)
