"""The loss terms, one panel each, under the curves of nnU-Net's progress picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

COLUMNS = 3
LOG_PREFIX = "loss_"  # of the terms, in nnU-Net's logger


def draw_term_curves(curves: Mapping[str, Sequence[float]], width: float = 30) -> tuple[Figure, list[Axes]]:
    """One panel per term, its mean over each epoch; three in a row.

    Args:
        curves: ``{term: [value of each epoch]}``.
        width: in inches.
    """
    rows = math.ceil(len(curves) / COLUMNS)
    figure = Figure(figsize=(width, rows * width / 4), layout="constrained")
    axes = figure.subplots(rows, COLUMNS, squeeze=False).flatten().tolist()
    for ax, (name, values) in zip(axes, curves.items(), strict=False):
        ax.plot(range(len(values)), values, color="b", linewidth=4)
        ax.set(title=name, xlabel="epoch", ylabel="loss term")
    for ax in axes[len(curves) :]:
        ax.remove()
    return figure, axes[: len(curves)]


def add_term_curves(picture: Path, curves: Mapping[str, Sequence[float]]) -> None:
    """Put the panels under ``picture``, a PNG file, in its width."""
    with Image.open(picture) as opened:
        above = opened.convert("RGB")
    figure, _ = draw_term_curves(curves)
    figure.set_dpi(above.width / figure.get_figwidth())
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    below = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    together = Image.new("RGB", (above.width, above.height + below.height), "white")
    together.paste(above, (0, 0))
    together.paste(below, (0, above.height))
    together.save(picture, compress_level=1)  # written anew after every epoch


def log_key(term: str) -> str:
    """The name under which nnU-Net's logger has a loss term."""
    return f"{LOG_PREFIX}{term}"
