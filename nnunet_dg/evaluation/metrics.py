"""Overlap and surface metrics of one segmentation, per label or region.

Surfaces come from marching cubes, with elements weighted by area (Nikolov et al., "Clinically applicable segmentation
of head and neck anatomy", 2021), with MONAI's tables. A mask that touches the image border is closed there. A volume
that is one voxel thick is measured in 2-D. Each label is measured in the box that contains it.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects
from scipy.spatial import KDTree

from nnunet_dg.extras import require

METRICS = ("dice", "hd95_mm", "assd_mm", "nsd")
HIGHER_IS_BETTER = {"dice": True, "hd95_mm": False, "assd_mm": False, "nsd": True}
DEFAULT_TOLERANCE_MM = 1.0
NOT_MEASURED = dict.fromkeys(("hd95_mm", "assd_mm", "nsd"), math.nan)

Array = NDArray[Any]
Box = tuple[slice, ...]


def case_metrics(
    prediction: Array,
    truth: Array,
    spacing_mm: Sequence[float],
    labels: Mapping[str, Sequence[int]],
    ignore: int | None = None,
    tolerance_mm: float = DEFAULT_TOLERANCE_MM,
    surfaces: bool = True,
) -> dict[str, dict[str, float]]:
    """`mask_metrics` of every label or region of one case.

    Args:
        prediction: Integer labels ``(*spatial)``.
        truth: Integer labels ``(*spatial)``.
        spacing_mm: Voxel size along each axis, in mm.
        labels: ``{name: integers}``, with more than one integer for a region.
        ignore: Value of the ignore label in ``truth``; both masks are background there. None if there is no such label.
        tolerance_mm: Tolerance of the normalized surface Dice, in mm.
        surfaces: See `mask_metrics`.

    Raises:
        ValueError: The shapes differ.
        ExtraError: See `mask_metrics`.
    """
    if prediction.shape != truth.shape:
        raise ValueError(f"The shapes differ: the prediction's shape is {prediction.shape}, the truth's {truth.shape}.")
    prediction, truth, spacing_mm = _in_plane(prediction, truth, spacing_mm)
    found = [find_objects(segmentation) for segmentation in (prediction, truth)]
    result = {}
    for name, integers in labels.items():
        box = _box(found, integers, truth.shape)
        counted = True if ignore is None else truth[box] != ignore
        masks = [np.isin(segmentation[box], integers) & counted for segmentation in (prediction, truth)]
        result[name] = _metrics_in_box(masks[0], masks[1], truth.shape, spacing_mm, tolerance_mm, surfaces)
    return result


def mask_metrics(
    prediction: NDArray[np.bool_],
    truth: NDArray[np.bool_],
    spacing_mm: Sequence[float],
    tolerance_mm: float = DEFAULT_TOLERANCE_MM,
    surfaces: bool = True,
) -> dict[str, float]:
    """Metrics of one pair of masks, in 2-D or 3-D.

    Args:
        prediction: Predicted mask ``(*spatial)``.
        truth: True mask ``(*spatial)``.
        spacing_mm: Voxel size along each axis, in mm.
        tolerance_mm: Largest distance that counts as agreement in ``nsd``, in mm.
        surfaces: Whether surfaces are measured, which needs MONAI. If not, ``hd95_mm``, ``assd_mm`` and ``nsd`` are
            NaN.

    Returns:
        ``dice`` in [0, 1]; ``hd95_mm``: the 95th percentile of the distances from one surface to the other, the larger
        of the two directions; ``assd_mm``: the average of all these distances; ``nsd``: the fraction of both surfaces
        within the tolerance (normalized surface Dice); ``truth_voxels`` and ``predicted_voxels``.

        If both masks are empty, all four metrics are NaN, like nnU-Net's Dice. If only one is empty, ``dice`` and
        ``nsd`` are 0, and both distances are the diagonal of the image, the largest possible value.

    Raises:
        ExtraError: Surfaces are to be measured, and the extra "report" is not installed.
    """
    prediction, truth = np.asarray(prediction, bool), np.asarray(truth, bool)  # as bytes, masks of integers are wider
    prediction, truth, spacing_mm = _in_plane(prediction, truth, spacing_mm)
    box = _box([find_objects((prediction | truth).view(np.uint8))], [1], truth.shape)
    return _metrics_in_box(prediction[box], truth[box], truth.shape, spacing_mm, tolerance_mm, surfaces)


def _box(found: Sequence[Sequence[Box | None]], integers: Sequence[int], shape: Sequence[int]) -> Box:
    """The smallest box that contains these labels, from SciPy's ``find_objects`` of several segmentations."""
    if min(integers) < 1:  # find_objects leaves these out
        return tuple(slice(length) for length in shape)
    boxes = [b for objects in found for i in integers if i <= len(objects) and (b := objects[i - 1]) is not None]
    if not boxes:
        return tuple(slice(0) for _ in shape)
    return tuple(slice(min(s.start for s in axis), max(s.stop for s in axis)) for axis in zip(*boxes, strict=True))


def _metrics_in_box(
    prediction: NDArray[np.bool_],
    truth: NDArray[np.bool_],
    shape: Sequence[int],
    spacing_mm: Sequence[float],
    tolerance_mm: float,
    surfaces: bool,
) -> dict[str, float]:
    """`mask_metrics` of a part of an image of this shape, outside of which both masks are empty."""
    if surfaces:
        require("report", "Measuring surfaces")
    sizes = {
        "truth_voxels": float(np.count_nonzero(truth)),
        "predicted_voxels": float(np.count_nonzero(prediction)),
    }
    if not any(sizes.values()):
        return dict.fromkeys(METRICS, math.nan) | sizes
    if not all(sizes.values()):
        diagonal = math.hypot(*(n * mm for n, mm in zip(shape, spacing_mm, strict=True)))
        worst = {"hd95_mm": diagonal, "assd_mm": diagonal, "nsd": 0.0}
        return {"dice": 0.0} | (worst if surfaces else NOT_MEASURED) | sizes
    dice = 2 * float(np.count_nonzero(prediction & truth)) / sum(sizes.values())
    if not surfaces:
        return {"dice": dice} | NOT_MEASURED | sizes
    return {"dice": dice} | _surface_metrics(prediction, truth, spacing_mm, tolerance_mm) | sizes


def _surface_metrics(
    prediction: NDArray[np.bool_], truth: NDArray[np.bool_], spacing_mm: Sequence[float], tolerance_mm: float
) -> dict[str, float]:
    predicted, true = (_surface(mask, spacing_mm) for mask in (prediction, truth))
    directions = [(_distances(predicted, true), predicted.areas), (_distances(true, predicted), true.areas)]
    total = sum(float(area.sum()) for _, area in directions)
    return {
        "hd95_mm": max(_percentile(distance, area, 0.95) for distance, area in directions),
        "assd_mm": sum(float((distance * area).sum()) for distance, area in directions) / total,
        "nsd": sum(float(area[distance <= tolerance_mm].sum()) for distance, area in directions) / total,
    }


@dataclass(frozen=True)
class _Surface:
    """The surface of a mask, which crosses cubes of neighboring voxels.

    Attributes:
        crossed: Whether it crosses a cube; one cube more along each axis than the mask has voxels.
        indices: Indices of the crossed cubes along each axis.
        points: Places of the crossed cubes ``(N, n_axes)``, in mm.
        areas: Area of the surface in each crossed cube ``(N,)``, in mm².
    """

    crossed: NDArray[np.bool_]
    indices: tuple[NDArray[np.intp], ...]
    points: NDArray[np.float64]
    areas: NDArray[np.float64]


def _surface(mask: NDArray[np.bool_], spacing_mm: Sequence[float]) -> _Surface:
    """As MONAI's ``get_mask_edges``, with the same areas, but with codes in 8 bits instead of by a convolution."""
    areas, weights = _areas_by_code(tuple(map(float, spacing_mm)))
    voxels = np.pad(mask, 1).view(np.uint8)
    codes = np.zeros([length - 1 for length in voxels.shape], np.uint8)
    for corner, weight in np.ndenumerate(weights):
        codes += weight * voxels[tuple(slice(i, i + n) for i, n in zip(corner, codes.shape, strict=True))]
    crossed = (codes != 0) & (codes != len(areas) - 1)
    indices = np.nonzero(crossed)
    return _Surface(crossed, indices, np.stack(indices, 1) * np.asarray(spacing_mm, float), areas[codes[indices]])


@functools.lru_cache(maxsize=8)
def _areas_by_code(spacing_mm: tuple[float, ...]) -> tuple[NDArray[np.float64], NDArray[np.uint8]]:
    """MONAI's areas of surface elements by the code of a cube's corners, and each corner's weight in that code."""
    from monai.metrics.utils import get_code_to_measure_table

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # MONAI 1.5 and 1.6 call their own deprecated functions
        areas, weights = get_code_to_measure_table(list(spacing_mm))
    return areas.double().numpy(), weights[0, 0].numpy().astype(np.uint8)


def _distances(surface: _Surface, other: _Surface) -> NDArray[np.float64]:
    """The distance of each point of a surface to the closest one of the other, in mm, in single precision."""
    distances = np.zeros(len(surface.points))
    apart = ~other.crossed[surface.indices]  # the distance of points of both surfaces is 0
    if apart.any():
        tree = KDTree(other.points, leafsize=32, compact_nodes=False, balanced_tree=False)
        distances[apart] = tree.query(surface.points[apart])[0].astype(np.float32)
    return distances


def _percentile(distances: NDArray[np.float64], areas: NDArray[np.float64], fraction: float) -> float:
    """The smallest distance that at least ``fraction`` of the area does not exceed."""
    order = np.argsort(distances)
    cumulated = np.cumsum(areas[order]) / areas.sum()
    return float(distances[order][min(int(np.searchsorted(cumulated, fraction)), len(order) - 1)])


def _in_plane(prediction: Array, truth: Array, spacing_mm: Sequence[float]) -> tuple[Array, Array, list[float]]:
    """Remove the axis along which a 3-D volume is one voxel thick; nnU-Net adds such an axis to 2-D images."""
    thin = [axis for axis, length in enumerate(truth.shape) if length == 1]
    if truth.ndim != 3 or len(thin) != 1:
        return prediction, truth, list(spacing_mm)
    return prediction.squeeze(thin[0]), truth.squeeze(thin[0]), [mm for i, mm in enumerate(spacing_mm) if i != thin[0]]
