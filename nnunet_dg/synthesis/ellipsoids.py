"""Ellipsoids, some with a shell, painted over a label map."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nnunet_dg.synthesis.draws import Draws


def squared_radius(shape: Sequence[int], smallest: float, largest: float, draws: Draws) -> Tensor:
    """The squared distance from a random center, in units of random, randomly oriented semi-axes.

    Args:
        shape: Spatial shape.
        smallest: Smallest semi-axis in voxels.
        largest: Largest semi-axis in voxels.
        draws: Source of random numbers.

    Returns:
        ``(*shape)``, float32; at most 1 inside the ellipsoid.
    """
    dims = len(shape)
    axes = torch.tensor([draws.uniform(smallest, largest) for _ in range(dims)])
    rotation = torch.linalg.qr(torch.randn(dims, dims, generator=draws.host)).Q
    form = ((rotation / axes**2) @ rotation.T).tolist()
    offsets = []
    for axis, size in enumerate(shape):
        center = draws.uniform(0, size - 1)
        view = [size if a == axis else 1 for a in range(dims)]
        offsets.append((torch.arange(size, device=draws.device) - center).reshape(view))
    total = torch.zeros(*shape, device=draws.device)
    for i in range(dims):
        along = form[i][i] * offsets[i]
        for j in range(i + 1, dims):
            along = along + 2 * form[i][j] * offsets[j]
        total += offsets[i] * along
    return total


def paint_ellipsoid(labels: Tensor, new: int, draws: Draws) -> Tensor:
    """The label map with an ellipsoid of 3 to 14 voxels semi-axis, half of the time inside a thin shell.

    Args:
        labels: Label map ``(*shape)``, int64.
        new: Label of the ellipsoid; the shell gets ``new + 1``.
        draws: Source of random numbers.
    """
    radius = squared_radius(labels.shape, 3, 14, draws)
    if draws.chance(0.5):
        labels = torch.where(radius <= draws.uniform(1.2, 2.2), new + 1, labels)
    return torch.where(radius <= 1, new, labels)
