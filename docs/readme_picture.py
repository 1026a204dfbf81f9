"""Draws README's picture from the table in docs/results: python docs/readme_picture.py."""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

DOCS = Path(__file__).parent
TABLE = DOCS / "results" / "2026-11-21-corruption.md"
PICTURE = DOCS / "corruption_small.png"
KINDS = {  # with what their strength is
    "inversion": "part inverted",
    "bias field": "coefficient",
    "noise": "deviation / range",
    "blur": "sigma, voxels",
}
STYLES = (("nnUNetTrainer", "#0072B2", "o-"), ("nnUNetTrainerDropGen_MIND", "#E69F00", "s--"))


def read_table(text: str) -> dict[str, list[tuple[float, float, float]]]:
    """``{kind: [(strength, Dice of the first trainer, of the second), ...]}`` from the page's Markdown table."""
    rows: dict[str, list[tuple[float, float, float]]] = {}
    for kind, *numbers in re.findall(r"^\| ([a-z ]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", text, re.M):
        strength, first, second = map(float, numbers)
        rows.setdefault(kind, []).append((strength, first, second))
    return rows


def draw(rows: dict[str, list[tuple[float, float, float]]]) -> Figure:
    """One panel per kind in `KINDS`, all with the same axis of Dice."""
    figure = Figure(figsize=(9, 2.4), layout="constrained")
    for axes, (kind, strength) in zip(figure.subplots(1, len(KINDS), sharey=True), KINDS.items(), strict=True):
        x, *dice = zip(*rows[kind], strict=True)
        for (name, color, style), y in zip(STYLES, dice, strict=True):
            axes.plot(x, y, style, color=color, label=name, markersize=4)
        axes.set(title=kind, xlabel=strength, ylim=(0, 100))
    figure.axes[0].set_ylabel("Dice (%)")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    return figure


if __name__ == "__main__":
    mpl.rcParams["font.size"] = 9
    draw(read_table(TABLE.read_text(encoding="utf-8"))).savefig(PICTURE, dpi=120)
