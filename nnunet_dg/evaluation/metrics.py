"""Dice and surface metrics of one structure in one case; distances in mm, surfaces and their areas by MONAI.

Surfaces are between voxels, each element with its area, and percentiles and means are weighted by it (Nikolov et al.,
J. Med. Internet Res. 2021). Where both masks are empty, every metric is NaN: there is nothing to measure. Where one is
empty, Dice and surface Dice are 0, and both distances are the diagonal of the image.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from monai.metrics.utils import get_edge_surface_distance

METRICS = ("Dice", "HD95", "ASSD", "NSD")


def structure_metrics(
    prediction: np.ndarray, truth: np.ndarray, spacing: Sequence[float], tolerance: float = 1.0
) -> dict[str, float]:
    """All `METRICS` of two masks.

    Args:
        prediction: boolean, two or three axes.
        truth: the same shape.
        spacing: in mm, per axis.
        tolerance: of the normalized surface Dice, in mm.

    Returns:
        By name: ``Dice`` and ``NSD`` in [0, 1], ``HD95`` and ``ASSD`` in mm.
    """
    total = int(prediction.sum()) + int(truth.sum())
    if total == 0:
        return dict.fromkeys(METRICS, math.nan)
    if not prediction.any() or not truth.any():
        diagonal = math.dist([0] * truth.ndim, [n * s for n, s in zip(truth.shape, spacing, strict=True)])
        return {"Dice": 0.0, "HD95": diagonal, "ASSD": diagonal, "NSD": 0.0}
    box = _box(prediction | truth)
    dice = 2 * int((prediction & truth).sum()) / total
    surfaces = _surfaces(prediction[box], truth[box], spacing)
    areas = [area.sum() for _, area in surfaces]
    return {
        "Dice": dice,
        "HD95": max(_percentile(distance, area, 0.95) for distance, area in surfaces),
        "ASSD": float(sum((distance * area).sum() for distance, area in surfaces) / sum(areas)),
        "NSD": float(sum(area[distance <= tolerance].sum() for distance, area in surfaces) / sum(areas)),
    }


def _box(mask: np.ndarray) -> tuple[slice, ...]:
    """What holds the mask: distances between surfaces inside it do not change when the rest is cut away."""
    return tuple(
        slice(int(where[0]), int(where[-1]) + 1)
        for axis in range(mask.ndim)
        for where in [np.flatnonzero(mask.any(tuple(a for a in range(mask.ndim) if a != axis)))]
    )


def _surfaces(
    prediction: np.ndarray, truth: np.ndarray, spacing: Sequence[float]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """For the prediction's surface and the truth's: the distance of each element to the other surface, and its area."""
    masks = (torch.from_numpy(np.ascontiguousarray(mask)) for mask in (prediction, truth))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        edges, distances, areas = get_edge_surface_distance(
            *masks, spacing=list(spacing), use_subvoxels=True, symmetric=True
        )
    return [
        (np.asarray(distance, dtype=np.float64), np.asarray(area[edge], dtype=np.float64))
        for edge, distance, area in zip(edges, distances, areas, strict=True)
    ]


def _percentile(distances: np.ndarray, areas: np.ndarray, share: float) -> float:
    """The smallest distance within which that share of the area lies."""
    order = np.argsort(distances)
    reached = np.cumsum(areas[order]) / areas.sum()
    return float(distances[order][min(int(np.searchsorted(reached, share)), len(order) - 1)])
