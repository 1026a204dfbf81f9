"""Curves of the loss terms, one panel each, below those in nnU-Net's progress picture."""

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
LOG_PREFIX = "loss_"  # prefix of the terms' names in nnU-Net's logger


def draw_term_curves(curves: Mapping[str, Sequence[float]], width: float = 30) -> tuple[Figure, list[Axes]]:
    """Draw one panel per term with its mean over each epoch, three panels in a row.

    Args:
        curves: Values by term, ``{term: [value of each epoch]}``.
        width: Width of the figure, in inches; default 30.

    Returns:
        The figure and the axes of its panels.
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
    """Append the panels to the bottom of a picture.

    Args:
        picture: PNG file, which is overwritten. The panels get its width.
        curves: Values by term, ``{term: [value of each epoch]}``.
    """
    with Image.open(picture) as opened:
        above = opened.convert("RGB")
    figure, _ = draw_term_curves(curves)
    figure.set_dpi(above.width / figure.get_figwidth())
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    below = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    combined = Image.new("RGB", (above.width, above.height + below.height), "white")
    combined.paste(above, (0, 0))
    combined.paste(below, (0, above.height))
    combined.save(picture, compress_level=1)  # fast, since it is written after every epoch


def log_key(term: str) -> str:
    """The name of a loss term in nnU-Net's logger."""
    return f"{LOG_PREFIX}{term}"
