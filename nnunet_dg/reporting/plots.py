"""Figures of the report, drawn from its tables."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nnunet_dg.reporting.scores import SETTINGS, paired
from nnunet_dg.reporting.style import COLORS, MARKERS, NAMES, plain, style_of

PAGE = 8.1  # width of the report's page in inches, with 110 pixels per inch
TALLEST = 200.0  # maximum height in inches; matplotlib draws at most 65536 pixels


def box_plot(cases: pd.DataFrame, metric: str) -> tuple[Figure, list[Axes]]:
    """One panel per setting and domain, in-domain first, with one box per trainer and one point per case, fold and run.

    Trainers are in the order of the table, from top to bottom, and all panels have the same axes.

    Args:
        cases: Table returned by `per_case`.
        metric: Name of the metric's column.

    Returns:
        The figure and its panels. Boxes show the quartiles and the median, whiskers extend by 1.5 interquartile ranges.
    """
    trainers = list(dict.fromkeys(cases["trainer"]))
    names = [plain(trainer) for trainer in trainers]
    panels = sorted(set(zip(cases["setting"], cases["domain"], strict=True)))  # in-domain before unseen
    beside = 0.5 + 0.07 * max(map(len, names))  # inches
    columns = max(1, min(3, len(panels), int((PAGE - beside) // 2.3)))
    columns = 2 if columns == 3 and len(panels) == 4 else columns
    rows = -(-len(panels) // columns)
    width, height = (PAGE - beside) / max(columns, 2), 0.7 + 0.22 * len(trainers)
    size = (beside + columns * width, min(TALLEST, 0.5 + rows * height))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for ax in axes[len(panels) :]:
        ax.set_axis_off()
    rng = np.random.default_rng(0)
    for ax, (setting, domain) in zip(axes, panels, strict=False):
        shown = cases[(cases["setting"] == setting) & (cases["domain"] == domain)]
        for number, trainer in enumerate(trainers):
            _draw_box(ax, number, shown[shown["trainer"] == trainer][metric].to_numpy(), rng)
        title = [plain(domain, int(9 * width)), setting] if domain else [setting]
        ax.set_title("\n".join(title), fontsize="medium")
        ax.grid(axis="x", linewidth=0.4)
    for ax in axes[: len(panels)][-columns:]:
        ax.tick_params(labelbottom=True)  # also above a place without a panel
    axes[0].set_yticks(range(len(trainers)), names)
    axes[0].set_ylim(len(trainers) - 0.5, -0.5)
    figure.supxlabel(NAMES[metric], fontsize="medium")
    return figure, list(axes[: len(panels)])


def _draw_box(ax: Axes, number: int, values: np.ndarray, rng: np.random.Generator) -> None:
    if not len(values):
        return
    color, _, marker = style_of(number)
    style = {"color": color}
    ax.boxplot(values, positions=[number], widths=0.6, orientation="horizontal", showfliers=False, manage_ticks=False,
               medianprops={"color": "black", "linewidth": 1.5}, boxprops=style, whiskerprops=style,
               capprops=style)  # fmt: skip
    jittered = number + rng.uniform(-0.2, 0.2, len(values))
    ax.scatter(values, jittered, s=12, color=color, marker=marker, alpha=0.6)


def scatter(cases: pd.DataFrame, metric: str, baseline: str, trainer: str) -> tuple[Figure, Axes]:
    """One point per case and fold, baseline (x) against trainer (y), on equal axes with the diagonal."""
    pairs = paired(cases, metric)[[baseline, trainer]].dropna()
    settings = pairs.index.get_level_values("setting")
    figure = Figure(figsize=(4, 4.4), layout="constrained")
    ax = figure.subplots()
    for number, setting in enumerate(SETTINGS):
        chosen = pairs[settings == setting]
        if len(chosen):
            ax.scatter(
                chosen[baseline], chosen[trainer], s=18, color=COLORS[number], marker=MARKERS[number], label=setting
            )
    both = pairs[[baseline, trainer]].to_numpy()
    limits = (0, 1) if metric in ("dice", "nsd") else (0, 1.05 * max(1e-6, both.max(initial=0)))
    ax.plot(limits, limits, color="black", linewidth=0.8, linestyle=":")
    ax.set(xlim=limits, ylim=limits, aspect="equal", xlabel=f"{NAMES[metric]}, {plain(baseline)}")
    ax.set_ylabel(plain(trainer))
    figure.legend(loc="outside lower center", ncols=2)
    return figure, ax


def curves(
    table: pd.DataFrame, x: str, y: str, lines: str, identity: float | None = None, title: str = ""
) -> tuple[Figure, Axes]:
    """One line per value of the column ``lines``: the mean of ``y`` over rows with equal ``x``, with standard errors.

    Args:
        table: One row per measurement.
        x: Name of the column on the horizontal axis.
        y: Name of the column that is averaged.
        lines: Name of the column with one value per line.
        identity: Value of ``x`` that leaves the input unchanged, drawn as a dashed vertical line; None for no line.
        title: Title of the figure.
    """
    figure = Figure(figsize=(4.2, 3.2), layout="constrained")
    ax = figure.subplots()
    draw_curves(ax, table, x, y, lines)
    if identity is not None:
        ax.axvline(identity, color="black", linewidth=0.8, linestyle="--")
    ax.set(xlabel=x, ylabel=NAMES.get(y, y), title=plain(title))
    ax.legend(fontsize="small")
    return figure, ax


def draw_curves(ax: Axes, table: pd.DataFrame, x: str, y: str, lines: str) -> None:
    """Draw the lines of `curves` on existing axes."""
    for number, name in enumerate(dict.fromkeys(table[lines])):
        summary = table[table[lines] == name].groupby(x)[y].agg(["mean", "sem"])
        color, line, marker = style_of(number)
        ax.errorbar(
            summary.index, summary["mean"], summary["sem"].fillna(0), color=color, linestyle=line, marker=marker,
            markersize=4, capsize=2, label=plain(str(name)),
        )  # fmt: skip


def grid(panels: Sequence[str], width: float = 3.2, height: float = 2.6) -> tuple[Figure, list[Axes]]:
    """One figure with a panel per title, at most four in a row."""
    columns = max(1, min(4, len(panels)))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax in axes[len(panels) :]:
        ax.set_axis_off()
    for ax, title in zip(axes, panels, strict=False):
        ax.set_title(plain(title), fontsize="medium")
    return figure, list(axes[: len(panels)])
