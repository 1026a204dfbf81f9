"""The voxels that enter the losses: the same ones in both views, many of them near a boundary."""

from __future__ import annotations

import torch
from torch import Tensor

from nnunet_dg.synthesis import Draws, Pair

OUTSIDE = 0.02  # how often a voxel outside is drawn, compared with one inside
BOUNDARY = 3.0  # how often a voxel next to another label is drawn, compared with others inside


def draw_voxels(pair: Pair, count: int, draws: Draws) -> tuple[Tensor, Tensor]:
    """Random voxels of the region that both views show, without repetition.

    Args:
        pair: Views and labels.
        count: Number of voxels, at most the size of the common region.
        draws: Source of random numbers.

    Returns:
        Coordinates in the first and in the second view, each ``(count, dims)``, int64.
    """
    weights = sampling_weights(pair.labels)
    # the largest of u ** (1 / w) are a weighted draw without repetition (Efraimidis and Spirakis, 2006)
    keys = draws.rand((weights.numel(),)).clamp_min(1e-12).log() / weights.flatten()
    chosen = keys.topk(count, sorted=False).indices
    coordinates = torch.stack(torch.unravel_index(chosen, pair.labels.shape), 1)
    first, second = (coordinates + torch.tensor(start).to(chosen.device) for start in pair.starts)
    return first, second


def sampling_weights(labels: Tensor) -> Tensor:
    """The weight of each voxel of a label map ``(*shape)``: `OUTSIDE`, `BOUNDARY`, or 1, float32."""
    boundary = torch.zeros_like(labels, dtype=torch.bool)
    for axis, size in enumerate(labels.shape):
        differs = labels.narrow(axis, 1, size - 1) != labels.narrow(axis, 0, size - 1)
        boundary.narrow(axis, 1, size - 1).logical_or_(differs)
        boundary.narrow(axis, 0, size - 1).logical_or_(differs)
    weights = torch.where(boundary, BOUNDARY, 1.0)
    return torch.where(labels == 0, OUTSIDE, weights)


def at_voxels(features: Tensor, coordinates: Tensor) -> Tensor:
    """Features ``(A, *spatial)`` at coordinates ``(N, dims)``, as ``(N, A)``."""
    flat = torch.zeros(len(coordinates), dtype=torch.long, device=coordinates.device)
    for size, along in zip(features.shape[1:], coordinates.unbind(1), strict=True):
        flat = flat * size + along
    return features.flatten(1)[:, flat].T
