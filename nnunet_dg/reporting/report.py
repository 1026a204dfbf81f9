"""A report on a table of scores: trainers side by side, in-domain and unseen, with tests and worst cases."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from nnunet_dg.errors import DataError, SettingsError, UserError
from nnunet_dg.evaluation.metrics import HIGHER_IS_BETTER, METRICS
from nnunet_dg.extras import require
from nnunet_dg.files import write_csv
from nnunet_dg.names import printable
from nnunet_dg.reporting.overlay import CaseView, overlay
from nnunet_dg.reporting.plots import box_plot, scatter
from nnunet_dg.reporting.rendering import Part, write
from nnunet_dg.reporting.scores import (
    ALL,
    IN_DOMAIN,
    SETTINGS,
    UNSEEN,
    VALIDATION,
    against_baseline,
    average_rank,
    by_domain,
    by_label,
    common,
    paired,
    per_case,
)
from nnunet_dg.reporting.style import NAMES

PERCENT = ("dice", "nsd")
WORST_CASES = 4
CASE = ("trainer", "run", "fold", "case")
View = Callable[[Mapping[str, Any]], CaseView | None]
NOTE = (
    "Mean ± standard error over cases (number of cases). The score of a case is the mean over its labels; folds with "
    "the same case, and repeated trainings, are averaged case by case. Unseen: no training case was from that domain. "
    "All cases are included except those where both masks are empty. Validations made with nnU-Net's --val_best use "
    "checkpoints that were selected on the same cases."
)
COSTS = (
    "Means over folds and repeated trainings. The time of a step is the median time of an epoch, which includes "
    "validation steps, divided by its number of training steps. The time of adaptation includes prediction. Times can "
    "be compared only if no other job ran on the machine."
)


def write_report(
    scores: pd.DataFrame,
    output: Path,
    baseline: str | None = None,
    metric: str = "dice",
    view: View | None = None,
    remarks: Sequence[str] = (),
    costs: pd.DataFrame | None = None,
    choices: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Write ``report.html``, ``.md`` and ``.tex``, the tables as CSV, and the figures as PNG.

    Args:
        scores: Table of scores, described in `nnunet_dg.reporting.scores`. Cases of a validation domain are in
            ``scores.csv`` only.
        output: Folder to write to.
        baseline: Trainer that the others are tested against; by default nnUNetTrainer.
        metric: Metric of ranks, tests and figures. Other metrics get a table if the scores have them.
        view: Function that loads the files of a row of scores, for pictures of the worst cases. It may return None, or
            raise a UserError. None for no pictures.
        remarks: Sentences to print in the report, for example about a missing fold.
        costs: Table of costs, printed as it is; None for none.
        choices: Table of what was chosen on the validation domain, printed as it is; None for none.

    Returns:
        The first table, with formatted numbers.

    Raises:
        SettingsError: There is no such metric or baseline, or the default baseline is ambiguous.
        DataError: A trainer has no score for this metric, or only cases of the validation domain, or the output is not
            a folder.
        ExtraError: The extra "report" is not installed.
    """
    require("report", "The report")
    if metric not in METRICS:
        raise SettingsError(f"`metric` must be one of {', '.join(METRICS)}; got {metric!r}.")
    all_scores, scores = scores, _without_validation_domain(scores)
    cases = per_case(scores, metric)
    trainers = list(dict.fromkeys(scores["trainer"]))
    if without := [t for t in trainers if t not in set(cases["trainer"])]:
        raise DataError(f"{without[0]} has no {NAMES[metric]}. nnunet-dg evaluate measures it.")
    baseline = baseline or _usual_baseline(trainers)
    tests = against_baseline(cases, metric, baseline)
    parts = [
        _overview(scores, cases, metric, [*_validation_domain(all_scores), *remarks]),
        *_repeated(cases, metric),
        _against(cases, metric, baseline, tests),
        *(_other(scores, cases, other) for other in _measured(scores) if other != metric),
        _by_label(scores, metric),
        *([] if choices is None else [Part("Chosen on the validation domain", _choice(metric), choices, {})]),
        *([] if costs is None else [Part("Costs", COSTS, costs, {})]),
        _worst(scores, cases, metric, view),
    ]
    _make_folder(output)
    tables = {"domains": _all_metrics(scores), "labels": _all_labels(scores), "comparisons": tests}
    for name, table in {"scores": all_scores, **tables}.items():
        write_csv(output / f"{name}.csv", table)
    write(f"{', '.join(trainers)}: in-domain and unseen", parts, output)
    return parts[0].table


def _make_folder(output: Path) -> None:
    if output.exists() and not output.is_dir():
        raise DataError(f"{output} is not a folder. Choose another one for the report.")
    output.mkdir(parents=True, exist_ok=True)


def _overview(scores: pd.DataFrame, cases: pd.DataFrame, metric: str, remarks: Sequence[str]) -> Part:
    note = " ".join([NOTE, *_remarks(cases, metric), *remarks])
    figures = {"cases": box_plot(cases, metric)[0]}
    return Part(f"{_unit(metric)}, in-domain and unseen", note, overview(cases, metric), figures)


def _other(scores: pd.DataFrame, cases: pd.DataFrame, metric: str) -> Part:
    return Part(_unit(metric), _note(metric, scores, cases), overview(per_case(scores, metric), metric), {})


def _note(metric: str, scores: pd.DataFrame, cases: pd.DataFrame) -> str:
    tolerances = scores["tolerance_mm"].dropna().unique() if "tolerance_mm" in scores else []
    within = f"Surfaces within {tolerances[0]:g} mm. " if metric == "nsd" and len(tolerances) else ""
    fewer = len(per_case(scores, metric)) < len(cases)
    return f"{within}Mean ± standard error, as above{', but not all cases were evaluated with it' if fewer else ''}."


def _without_validation_domain(scores: pd.DataFrame) -> pd.DataFrame:
    others = scores[scores["setting"] != VALIDATION]
    if without := sorted(set(scores["trainer"]) - set(others["trainer"])):
        raise DataError(f"All cases of {without[0]} are from the validation domain, which no result can be about.")
    return others


def _validation_domain(scores: pd.DataFrame) -> list[str]:
    """A remark on the validation domain, if there is one."""
    names = scores[scores["setting"] == VALIDATION]["domain"].unique()
    return [
        f"The validation domain, on which settings and trainers are chosen, is {name}. Its cases count neither as "
        f"in-domain nor as unseen, and are left out of all scores, ranks and tests."
        for name in names
    ]


def _choice(metric: str) -> str:
    best = "highest" if HIGHER_IS_BETTER[metric] else "lowest"
    return (
        f"The chosen trainer has the {best} mean {_unit(metric)} over the cases of the validation domain, for each "
        f"seed and fold. Of equal ones, the first is chosen. Cases of other domains do not affect the choice."
    )


def _usual_baseline(trainers: list[str]) -> str:
    plain = [trainer for trainer in trainers if trainer.partition(" ")[0] == "nnUNetTrainer"] or trainers
    if len(plain) > 1:
        known = ", ".join(map(repr, trainers))
        raise SettingsError(f"Choose the trainer that the others are tested against: `baseline`, one of {known}.")
    return plain[0]


def _remarks(cases: pd.DataFrame, metric: str) -> list[str]:
    """Limitations of these results."""
    remarks = []
    if IN_DOMAIN not in set(cases["setting"]):
        remarks.append("No in-domain cases were given, so this report does not show in-domain performance.")
    if UNSEEN not in set(cases["setting"]):
        remarks.append("No unseen cases were given, so this report does not show generalization.")
    shared = paired(common(cases, metric), metric)
    counts = {trainer: len(paired(rows, metric)) for trainer, rows in cases.groupby("trainer", sort=False)}
    if set(counts.values()) != {len(shared)}:
        given = ", ".join(f"{trainer} {count}" for trainer, count in counts.items())
        remarks.append(
            f"Trainers have different cases and folds ({given}). Ranks use the {len(shared)} that all of them have; "
            f"tests and scatter plots use those that both trainers have."
        )
    return remarks


def _against(cases: pd.DataFrame, metric: str, baseline: str, tests: pd.DataFrame) -> Part:
    others = [trainer for trainer in dict.fromkeys(cases["trainer"]) if trainer != baseline]
    better = "better" if HIGHER_IS_BETTER[metric] else "worse"
    note = (
        f"Two-sided Wilcoxon signed-rank test, paired by case and fold, with Holm's correction over all rows. "
        f"Cases above the diagonal are {better} than with {baseline}."
    )
    figures = {f"against_{baseline}_{t}": scatter(cases, metric, baseline, t)[0] for t in others}
    return Part(f"Against {baseline}", note, _readable(tests, metric), figures)


def readable_means(table: pd.DataFrame) -> pd.DataFrame:
    """Means of a table of cases and labels, formatted: one row per label, then the mean of these rows."""
    means = table.groupby("label", sort=False)[list(METRICS)].mean()
    mean = means.mean().rename("mean").to_frame().T.rename_axis("label")
    rows = pd.concat([means, mean])  # a label may be called "mean"
    for metric in METRICS:
        rows[metric] = [readable_number(metric, value) for value in rows[metric]]
    return rows.rename(columns={metric: _unit(metric) for metric in METRICS}).reset_index()


def overview(cases: pd.DataFrame, metric: str, runs_apart: bool = False) -> pd.DataFrame:
    """One row per trainer with in-domain cases, unseen cases, each domain, and the average rank over unseen domains."""
    summary = by_domain(cases, metric, runs_apart)
    if runs_apart:
        summary["trainer"] += ", run " + summary.pop("run").astype(str)
    columns = {}
    for setting in SETTINGS:
        domains = sorted(set(summary[summary["setting"] == setting]["domain"]) - {ALL})
        for domain in [ALL, *(domains if len(domains) > 1 else [])]:
            chosen = summary[(summary["setting"] == setting) & (summary["domain"] == domain)]
            numbers = zip(chosen["mean"], chosen["standard_error"], chosen["n"], strict=True)
            values = dict(zip(chosen["trainer"], (_cell(metric, *row) for row in numbers), strict=True))
            if values:
                columns[setting if domain == ALL else f"{domain}, {setting}"] = values
    table = pd.DataFrame(columns, index=list(dict.fromkeys(summary["trainer"]))).fillna("")
    rank = average_rank(by_domain(common(cases, metric), metric), metric)
    if len(rank) > 1 and not runs_apart:
        table["average rank"] = rank.round(2).astype(str)
    return table.fillna("").rename_axis("trainer").reset_index()


def _unit(metric: str) -> str:
    return f"{NAMES[metric]} (%)" if metric in PERCENT else NAMES[metric]


def _cell(metric: str, mean: float, error: float, n: int) -> str:
    shown = readable_number(metric, mean)
    return f"{shown} ({n})" if math.isnan(error) else f"{shown} ± {readable_number(metric, error)} ({n})"


def readable_number(metric: str, value: float) -> str:
    """A value of a metric in the unit of the report; "-" for NaN."""
    if math.isnan(value):
        return "-"
    return f"{100 * value:.1f}" if metric in PERCENT else f"{value:.2f}"


def _readable(tests: pd.DataFrame, metric: str) -> pd.DataFrame:
    shown = tests.assign(mean_difference=[f"{readable_number(metric, v)}" for v in tests["mean_difference"]])
    shown[["p", "p_holm"]] = shown[["p", "p_holm"]].map("{:.2g}".format)
    return shown.rename(columns={"mean_difference": "mean difference", "p_holm": "p (Holm)"})


def _repeated(cases: pd.DataFrame, metric: str) -> list[Part]:
    if (cases["run"] == 1).all():
        return []
    note = "Separate results of repeated trainings of one trainer, which show the variation by chance."
    return [Part("Repeated trainings", note, overview(cases, metric, runs_apart=True), {})]


def _by_label(scores: pd.DataFrame, metric: str) -> Part:
    """A table with labels and trainers in rows, so that many trainers do not make it wide, and settings in columns."""
    summary = by_label(scores, metric)
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for label, trainer in product(dict.fromkeys(summary["label"]), dict.fromkeys(summary["trainer"])):
        rows[label, trainer] = {}
    for row in summary.to_dict("records"):
        cell = _cell(metric, row["mean"], row["standard_error"], row["n"])
        rows[row["label"], row["trainer"]][row["setting"]] = cell
    settings = [setting for setting in SETTINGS if any(setting in cells for cells in rows.values())]
    lines = [[*names, *(cells.get(setting, "-") for setting in settings)] for names, cells in rows.items()]
    note = "Mean ± standard error over the cases that have the label in truth or prediction (number of cases)."
    return Part(f"{_unit(metric)} by label", note, pd.DataFrame(lines, columns=["label", "trainer", *settings]), {})


def _measured(scores: pd.DataFrame) -> list[str]:
    return [metric for metric in METRICS if metric in scores and scores[metric].notna().any()]


def _all_metrics(scores: pd.DataFrame) -> pd.DataFrame:
    tables = [by_domain(per_case(scores, m), m, runs_apart=True).assign(metric=m) for m in _measured(scores)]
    return pd.concat(tables, ignore_index=True)


def _all_labels(scores: pd.DataFrame) -> pd.DataFrame:
    return pd.concat([by_label(scores, m).assign(metric=m) for m in _measured(scores)], ignore_index=True)


def _worst(scores: pd.DataFrame, cases: pd.DataFrame, metric: str, view: View | None) -> Part:
    setting = UNSEEN if UNSEEN in set(cases["setting"]) else SETTINGS[0]
    chosen = cases[cases["setting"] == setting].sort_values(metric, ascending=HIGHER_IS_BETTER[metric])
    table = chosen.groupby("trainer", sort=False).head(WORST_CASES).sort_values("trainer", kind="stable")
    figures: dict[str, Figure] = {}
    notes = [f"The {WORST_CASES} worst cases of each trainer."]
    for trainer, rows in table.groupby("trainer", sort=False):
        figure, problems = _pictures(scores, rows, metric, view)
        figures |= {} if figure is None else {f"worst_{trainer}": figure}
        notes += [f"{trainer}: no picture of {text}." for text in problems]
    readable = table[["trainer", "case", "domain", "fold", "run"]].copy()
    readable[NAMES[metric]] = [readable_number(metric, value) for value in table[metric]]
    return Part(f"Worst {setting} cases", " ".join(notes), readable, figures)


def _pictures(
    scores: pd.DataFrame, rows: pd.DataFrame, metric: str, view: View | None
) -> tuple[Figure | None, list[str]]:
    """A figure of one trainer's cases, if any can be shown, and the cases that are not in it, with the reason."""
    views, problems, missing = {}, [], 0
    for row in rows.to_dict("records"):
        same = (scores[list(CASE)] == [row[name] for name in CASE]).all(axis=1)
        try:
            found = None if view is None else view(scores[same].iloc[0].to_dict())
        except UserError as error:
            problems.append(f"{row['case']} ({error})")
            continue
        missing += found is None
        if found is not None:
            lines = [", ".join(filter(None, (row["case"], row["domain"]))), f"fold {row['fold']}, run {row['run']}"]
            views["\n".join([*map(printable, lines), readable_number(metric, row[metric])])] = found
    if missing:
        problems.append(f"{missing} cases whose files were not found")
    return overlay(views, rows["trainer"].iloc[0])[0] if views else None, problems
