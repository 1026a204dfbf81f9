"""One case as a picture: the slice on which truth and prediction differ most, with both outlined."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from nnunet_dg.evaluation.style import COLORS, LINES

Array = NDArray[Any]


@dataclass(frozen=True)
class CaseView:
    """Image ``(C, *spatial)``, truth and prediction ``(*spatial)``, spacing of each axis, and names of the labels."""

    image: Array
    truth: Array
    prediction: Array
    spacing: tuple[float, ...]
    labels: Mapping[int, str] = field(default_factory=dict)

    def slice(self) -> CaseView:
        """In 2-D, across the axis with the widest spacing: where most voxels differ, or if none do, most have a label.

        Of the image, a first channel is kept, or three as colours in [0, 1].
        """
        axis = int(np.argmax(self.spacing))
        others = tuple(i for i in range(self.truth.ndim) if i != axis)
        wrong = (self.truth != self.prediction).sum(others)
        index = int(np.argmax(wrong if wrong.any() else (self.truth > 0).sum(others)))
        image, truth, prediction = (
            np.take(array, index, axis - self.truth.ndim) for array in (self.image, self.truth, self.prediction)
        )
        spacing = tuple(mm for i, mm in enumerate(self.spacing) if i != axis)
        return CaseView(image if len(image) == 3 else image[:1], truth, prediction, spacing, self.labels)


def overlay(views: Mapping[str, CaseView]) -> tuple[Figure, NDArray[Any]]:
    """Cases in rows: the image, the truth on it, and the prediction on it. Labels differ by colour and by line.

    Args:
        views: by title, of one dataset.

    Returns:
        The figure and its axes, ``(len(views), 3)``.
    """
    figure = Figure(figsize=(7, 2.4 * len(views)), layout="constrained")
    axes = figure.subplots(len(views), 3, squeeze=False)
    for row, (title, case) in zip(axes, views.items(), strict=True):
        view = case.slice()
        for ax, mask in zip(row, (None, view.truth, view.prediction), strict=True):
            _show(ax, view)
            for label in [] if mask is None else np.unique(mask[mask > 0]):
                style = {"colors": COLORS[int(label) % len(COLORS)], "linestyles": LINES[int(label) % len(LINES)]}
                ax.contour(mask == label, levels=[0.5], linewidths=1.5, **style)
        row[0].set_ylabel(title, fontsize="small")
    for ax, title in zip(axes[0], ("image", "truth", "prediction"), strict=True):
        ax.set_title(title, fontsize="medium")
    handles = [
        axes[0, 0].plot([], [], color=COLORS[n % len(COLORS)], linestyle=LINES[n % len(LINES)], label=name)[0]
        for n, name in next(iter(views.values())).labels.items()
    ]
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure, axes


def _show(ax: Axes, view: CaseView) -> None:
    low, high = np.percentile(view.image, (0.5, 99.5))
    scaled = np.clip((view.image - low) / max(high - low, 1e-8), 0, 1)
    pixels = np.moveaxis(scaled, 0, -1) if len(scaled) == 3 else scaled[0]
    ax.imshow(pixels, cmap="gray", vmin=0, vmax=1, aspect=view.spacing[0] / view.spacing[1])
    ax.set(xticks=[], yticks=[])
