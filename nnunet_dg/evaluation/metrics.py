"""Overlap and surface metrics of one segmentation, per label or region.

Surfaces come from marching cubes, with elements weighted by area (Nikolov et al., "Clinically applicable segmentation
of head and neck anatomy", 2021), as implemented in MONAI. A mask that touches the image border is closed there. A
volume that is one voxel thick is measured in 2-D.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nnunet_dg.extras import require

METRICS = ("dice", "hd95_mm", "assd_mm", "nsd")
HIGHER_IS_BETTER = {"dice": True, "hd95_mm": False, "assd_mm": False, "nsd": True}
DEFAULT_TOLERANCE_MM = 1.0
NOT_MEASURED = dict.fromkeys(("hd95_mm", "assd_mm", "nsd"), math.nan)

Array = NDArray[Any]


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
    counted = np.ones(truth.shape, bool) if ignore is None else truth != ignore
    masks = {
        name: (np.isin(prediction, integers) & counted, np.isin(truth, integers) & counted)
        for name, integers in labels.items()
    }
    return {name: mask_metrics(*pair, spacing_mm, tolerance_mm, surfaces) for name, pair in masks.items()}


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
    if surfaces:
        require("report", "Measuring surfaces")
    prediction, truth, spacing_mm = _in_plane(prediction, truth, spacing_mm)
    sizes = {"truth_voxels": float(truth.sum()), "predicted_voxels": float(prediction.sum())}
    if not any(sizes.values()):
        return dict.fromkeys(METRICS, math.nan) | sizes
    if not all(sizes.values()):
        diagonal = math.hypot(*(n * mm for n, mm in zip(truth.shape, spacing_mm, strict=True)))
        worst = {"hd95_mm": diagonal, "assd_mm": diagonal, "nsd": 0.0}
        return {"dice": 0.0} | (worst if surfaces else NOT_MEASURED) | sizes
    dice = 2 * float((prediction & truth).sum()) / sum(sizes.values())
    if not surfaces:
        return {"dice": dice} | NOT_MEASURED | sizes
    return {"dice": dice} | _surface_metrics(prediction, truth, spacing_mm, tolerance_mm) | sizes


def _surface_metrics(
    prediction: NDArray[np.bool_], truth: NDArray[np.bool_], spacing_mm: Sequence[float], tolerance_mm: float
) -> dict[str, float]:
    from monai.metrics.utils import get_edge_surface_distance

    predicted, true = (torch.from_numpy(np.ascontiguousarray(mask)) for mask in (prediction, truth))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # MONAI 1.5 and 1.6 call their own deprecated functions
        edges, distances, areas = get_edge_surface_distance(
            predicted, true, spacing=list(spacing_mm), use_subvoxels=True, symmetric=True
        )
    directions = [(d.double().numpy(), a[e].double().numpy()) for e, d, a in zip(edges, distances, areas, strict=True)]
    total = sum(float(area.sum()) for _, area in directions)
    return {
        "hd95_mm": max(_percentile(distance, area, 0.95) for distance, area in directions),
        "assd_mm": sum(float((distance * area).sum()) for distance, area in directions) / total,
        "nsd": sum(float(area[distance <= tolerance_mm].sum()) for distance, area in directions) / total,
    }


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
