"""Pictures of single cases: the slice on which truth and prediction differ most, with both outlined."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from numpy.typing import NDArray

from nnunet_dg.reporting.style import COLORS, LINES, plain, style_of

Array = NDArray[Any]

WIDTH = 7.0  # width of the figure, in inches
LONGEST_LABEL = 30  # maximum number of characters of a name in the legend


@dataclass(frozen=True)
class CaseView:
    """Image ``(C, *spatial)``, truth and prediction ``(*spatial)``, spacing of each axis, and names of the labels."""

    image: Array
    truth: Array
    prediction: Array
    spacing: tuple[float, ...]
    labels: Mapping[int, str] = field(default_factory=dict)

    def slice(self) -> CaseView:
        """The 2-D slice, perpendicular to the axis with the largest spacing, on which most voxels differ.

        If no voxels differ, the slice on which most voxels have a label. The first channel of the image is kept, or all
        three of a color image in [0, 1].
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

    def shown(self) -> list[int]:
        """The labels in truth or prediction, sorted."""
        return [int(n) for n in np.union1d(self.truth, self.prediction) if n > 0]


def overlay(views: Mapping[str, CaseView], model: str = "prediction") -> tuple[Figure, NDArray[Any]]:
    """Cases in rows: the image, the truth on it, and the prediction on it.

    Up to 32 labels have different colors and lines; after that, they repeat. The legend names only the labels in the
    pictures.

    Args:
        views: Cases of one dataset, by title.
        model: Name of what predicted them, the title of the last column.

    Returns:
        The figure and its axes, ``(len(views), 3)``.
    """
    slices = {title: case.slice() for title, case in views.items()}
    names = {n: case.labels.get(n, f"label {n}") for case in slices.values() for n in case.shown()}
    few = max(names, default=0) <= len(COLORS) * len(LINES)  # if so, a label looks the same in every figure
    styles = {label: style_of(label - 1 if few else number) for number, label in enumerate(sorted(names))}
    legend = [plain(names[label], LONGEST_LABEL) for label in styles]
    columns = _columns(legend)
    height = 2.4 * len(slices) + 0.2 * -(-len(legend) // columns)
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots(len(slices), 3, squeeze=False)
    for row, (title, case) in zip(axes, slices.items(), strict=True):
        _draw(row, case, styles)
        row[0].set_ylabel("\n".join(plain(line, LONGEST_LABEL) for line in title.split("\n")), fontsize="small")
    for ax, title in zip(axes[0], ("image", "truth", plain(model, LONGEST_LABEL)), strict=True):
        ax.set_title(title, fontsize="medium")
    if legend:
        _legend(figure, axes[0, 0], legend, [styles[label] for label in styles], columns)
    return figure, axes


def _draw(row: Sequence[Axes], case: CaseView, styles: Mapping[int, tuple[str, str, str]]) -> None:
    for ax, mask in zip(row, (None, case.truth, case.prediction), strict=True):
        _show(ax, case)
        for label in [] if mask is None else [int(n) for n in np.unique(mask[mask > 0])]:
            color, line, _ = styles[label]
            ax.contour(mask == label, levels=[0.5], linewidths=1.5, colors=color, linestyles=line)


def _legend(
    figure: Figure, ax: Axes, names: Sequence[str], styles: Sequence[tuple[str, str, str]], columns: int
) -> Legend:
    handles = [
        ax.plot([], [], color=color, linestyle=line, label=name)[0]
        for name, (color, line, _) in zip(names, styles, strict=True)
    ]
    return figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize="small")


def _columns(names: Sequence[str]) -> int:
    """Number of legend columns that fit into the figure, at about 0.08 inches per character."""
    longest = max((len(name) for name in names), default=0)
    return max(1, min(len(names), int(WIDTH / (0.6 + 0.08 * longest))))


def _show(ax: Axes, view: CaseView) -> None:
    image = np.nan_to_num(view.image.astype(float), posinf=0, neginf=0)
    low, high = np.percentile(image, (0.5, 99.5))
    scaled = np.clip((image - low) / max(high - low, 1e-8), 0, 1)
    pixels = np.moveaxis(scaled, 0, -1) if len(scaled) == 3 else scaled[0]
    ax.imshow(pixels, cmap="gray", vmin=0, vmax=1, aspect=view.spacing[0] / view.spacing[1])
    ax.set(xticks=[], yticks=[])
