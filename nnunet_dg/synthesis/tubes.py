"""Tubes along random curves, painted over a label map, as vessels and nerves are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nnunet_dg.synthesis.draws import Draws

POINTS = 20  # of a curve


def curve(shape: Sequence[int], draws: Draws) -> list[list[float]]:
    """Points of a Bezier curve with random control points in the volume, in voxels: `POINTS` times one per axis."""
    control = torch.rand(4, len(shape), generator=draws.host) * torch.tensor([float(size - 1) for size in shape])
    t = torch.linspace(0, 1, POINTS)[:, None]
    basis = torch.cat([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3], dim=1)
    points: list[list[float]] = (basis @ control).tolist()
    return points


def paint_tube(labels: Tensor, new: int, draws: Draws) -> Tensor:
    """The label map with a tube of 1.5 to 4 voxels radius. Its points are joined by balls, so it may have waists.

    Args:
        labels: Label map ``(*shape)``, int64.
        new: Label of the tube.
        draws: Source of random numbers.
    """
    shape, dims = labels.shape, labels.ndim
    nearest = torch.full(shape, float("inf"), device=labels.device)
    for point in curve(shape, draws):
        distance = torch.zeros((), device=labels.device)
        for axis, (size, at) in enumerate(zip(shape, point, strict=True)):
            view = [size if a == axis else 1 for a in range(dims)]
            distance = distance + (torch.arange(size, device=labels.device) - at).square().reshape(view)
        nearest = torch.minimum(nearest, distance)
    return torch.where(nearest <= draws.uniform(1.5, 4) ** 2, new, labels)
