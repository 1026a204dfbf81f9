"""A report from a table of scores: tables (CSV, Markdown, LaTeX), and one self-contained HTML page with pictures."""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from matplotlib.figure import Figure
from tabulate import tabulate

from nnunet_dg.evaluation.metrics import HIGHER_IS_BETTER, METRICS
from nnunet_dg.evaluation.overlay import CaseView, overlay
from nnunet_dg.evaluation.plots import box_plot, scatter
from nnunet_dg.evaluation.scores import ALL, SETTINGS, UNSEEN, against_baseline, average_rank, by_domain, per_case
from nnunet_dg.evaluation.style import NAMES

PERCENT = ("dice", "nsd")
WORST_CASES = 4
CASE = ("trainer", "run", "fold", "case")
NOTE = (
    "Mean ± standard error over cases (number of cases); a case is the mean of its labels, and repeated trainings are "
    "averaged case by case. Unseen: no training case was from that domain. Nothing was selected on unseen domains: "
    "every case of every fold and run that was given is counted."
)
PAGE = jinja2.Environment(autoescape=True).from_string("""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{{ title }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; color: #111; }
table { border-collapse: collapse; margin: 1em 0; } th, td { padding: .2em .8em; text-align: right; }
th { border-bottom: 1px solid #111; } th:first-child, td:first-child { text-align: left; }
img { max-width: 100%; display: block; margin: 1em 0; } p.note { color: #444; }
</style>
<h1>{{ title }}</h1>
{% for part in parts %}<h2>{{ part.title }}</h2>
<p class="note">{{ part.note }}</p>
{{ part.table | safe }}
{% for image in part.images %}<img alt="{{ part.title }}" src="data:image/png;base64,{{ image }}">
{% endfor %}{% endfor %}</html>
""")


@dataclass(frozen=True)
class Part:
    """A section: a table as people read it, and pictures by file name."""

    title: str
    note: str
    table: pd.DataFrame
    figures: Mapping[str, Figure]


def write_report(
    scores: pd.DataFrame,
    output: Path,
    baseline: str | None = None,
    metric: str = "dice",
    view: Callable[[Mapping[str, Any]], CaseView | None] | None = None,
) -> pd.DataFrame:
    """Write ``report.html``, ``.md`` and ``.tex``, the tables as CSV, and the pictures as PNG.

    Args:
        scores: the table that `nnunet_dg.evaluation.scores` describes.
        output: a folder.
        baseline: the trainer that others are tested against; None: nnUNetTrainer, or else the first.
        metric: the one that ranks, tests and pictures are of. Tables of the others are written where there are any.
        view: of a row of scores, for pictures of the worst cases; may return None.

    Returns:
        The first table, as people read it.

    Raises:
        ValueError: no case has the metric, or there is no such baseline.
    """
    trainers = list(dict.fromkeys(scores["trainer"]))
    baseline = baseline or ("nnUNetTrainer" if "nnUNetTrainer" in trainers else trainers[0])
    cases = per_case(scores, metric)
    if cases.empty:
        raise ValueError(f"These results have no {NAMES[metric]}. nnunet-dg evaluate measures it.")
    output.mkdir(parents=True, exist_ok=True)
    scores.to_csv(output / "scores.csv", index=False)
    tests = against_baseline(cases, metric, baseline)
    tests.to_csv(output / "comparisons.csv", index=False)
    _all_metrics(scores).to_csv(output / "domains.csv", index=False)
    parts = [
        Part(f"{_unit(metric)}, in-domain and unseen", NOTE, overview(cases, metric),
             {"cases": box_plot(cases, metric)[0]}),
        *_repeated(cases, metric),
        Part(f"Against {baseline}", "Wilcoxon's signed-rank test, paired by case, two-sided; p corrected by Holm's "
             "method over all rows. Points above the diagonal are cases that got larger.", _readable(tests, metric),
             {f"against_{baseline}_{t}": scatter(cases, metric, baseline, t)[0] for t in trainers if t != baseline}),
        *(Part(_unit(other), "As above.", overview(per_case(scores, other), other), {})
          for other in METRICS if other != metric and other in scores and scores[other].notna().any()),
        *_worst(scores, cases, metric, view),
    ]  # fmt: skip
    title = f"{', '.join(trainers)}: what unseen domains cost"
    (output / "report.md").write_text(_text(title, parts, "github"))
    (output / "report.tex").write_text(_latex(parts))
    (output / "report.html").write_text(_html(title, parts))
    for part in parts:
        for name, figure in part.figures.items():
            figure.savefig(output / f"{re.sub('[^A-Za-z0-9.-]+', '_', name).strip('_')}.png", dpi=150)
    return parts[0].table


def readable_means(table: pd.DataFrame) -> pd.DataFrame:
    """Of a table of cases and labels: one row per label, and the mean of them."""
    means = table.groupby("label", sort=False)[list(METRICS)].mean()
    means.loc["mean"] = means.mean()
    for metric in METRICS:
        means[metric] = [_number(metric, value) for value in means[metric]]
    return means.rename(columns={metric: _unit(metric) for metric in METRICS}).reset_index()


def overview(cases: pd.DataFrame, metric: str, runs_apart: bool = False) -> pd.DataFrame:
    """One row per trainer: all in-domain cases, all unseen, each domain, and the average rank over unseen domains."""
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
    rank = average_rank(summary, metric)
    if len(rank) > 1 and not runs_apart:
        table["average rank"] = rank.round(2).astype(str)
    return table.fillna("").rename_axis("trainer").reset_index()


def _unit(metric: str) -> str:
    return f"{NAMES[metric]} (%)" if metric in PERCENT else NAMES[metric]


def _cell(metric: str, mean: float, error: float, n: int) -> str:
    return f"{_number(metric, mean)} ± {_number(metric, error)} ({n})"


def _number(metric: str, value: float) -> str:
    if math.isnan(value):
        return "-"
    return f"{100 * value:.1f}" if metric in PERCENT else f"{value:.2f}"


def _readable(tests: pd.DataFrame, metric: str) -> pd.DataFrame:
    shown = tests.assign(mean_difference=[f"{_number(metric, v)}" for v in tests["mean_difference"]])
    shown[["p", "p_holm"]] = shown[["p", "p_holm"]].map("{:.2g}".format)
    return shown.rename(columns={"mean_difference": "mean difference", "p_holm": "p (Holm)"})


def _repeated(cases: pd.DataFrame, metric: str) -> list[Part]:
    if (cases["run"] == 1).all():
        return []
    note = "The same trainer, trained again: how much chance there is in one training."
    return [Part("Repeated trainings", note, overview(cases, metric, runs_apart=True), {})]


def _all_metrics(scores: pd.DataFrame) -> pd.DataFrame:
    metrics = [metric for metric in METRICS if metric in scores and scores[metric].notna().any()]
    tables = [by_domain(per_case(scores, m), m, runs_apart=True).assign(metric=m) for m in metrics]
    return pd.concat(tables, ignore_index=True)


def _worst(
    scores: pd.DataFrame, cases: pd.DataFrame, metric: str, view: Callable[[Mapping[str, Any]], CaseView | None] | None
) -> list[Part]:
    setting = UNSEEN if (cases["setting"] == UNSEEN).any() else SETTINGS[0]
    chosen = cases[cases["setting"] == setting].sort_values(metric, ascending=HIGHER_IS_BETTER[metric])
    table = chosen.groupby("trainer", sort=False).head(WORST_CASES).sort_values("trainer", kind="stable")
    figures = {}
    for trainer, rows in table.groupby("trainer", sort=False):
        views = {}
        for row in rows.to_dict("records"):
            same = (scores[list(CASE)] == [row[name] for name in CASE]).all(axis=1)
            found = None if view is None else view(scores[same].iloc[0].to_dict())
            if found is not None:
                views[f"{row['case']}\n{row['domain']}\n{_number(metric, row[metric])}"] = found
        if views:
            figures[f"worst_{trainer}"] = overlay(views)[0]
    readable = table[["trainer", "case", "domain", "fold"]].copy()
    readable[NAMES[metric]] = [_number(metric, value) for value in table[metric]]
    return [Part(f"Worst {setting} cases", f"The {WORST_CASES} of each trainer.", readable, figures)]


def _text(title: str, parts: list[Part], form: str) -> str:
    texts = [f"# {title}"]
    for part in parts:
        texts.append(f"## {part.title}\n\n{part.note}")
        if len(part.table):
            texts.append(_table(part.table, form))
    return "\n\n".join(texts) + "\n"


def _latex(parts: list[Part]) -> str:
    return "\n\n".join(
        f"% {part.title}\n" + _table(part.table, "latex_booktabs").replace("±", r"$\pm$")
        for part in parts
        if len(part.table)
    ) + "\n"  # fmt: skip


def _html(title: str, parts: list[Part]) -> str:
    sections = [
        {
            "title": part.title,
            "note": part.note,
            "table": "" if part.table.empty else _table(part.table, "html"),
            "images": [_embedded(figure) for figure in part.figures.values()],
        }
        for part in parts
    ]
    return PAGE.render(title=title, parts=sections)


def _table(table: pd.DataFrame, form: str) -> str:
    return tabulate(table.astype(str), headers="keys", tablefmt=form, showindex=False, disable_numparse=True)


def _embedded(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return base64.b64encode(buffer.getvalue()).decode()
