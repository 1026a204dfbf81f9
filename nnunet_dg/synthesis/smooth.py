"""Smooth random fields: noise on a coarse grid, interpolated."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from nnunet_dg.synthesis.draws import Draws

MODES = {2: "bilinear", 3: "trilinear"}


def smooth_fields(shape: Sequence[int], scale: float, count: int, draws: Draws) -> Tensor:
    """Independent random fields with zero mean and unit variance.

    Args:
        shape: Spatial shape, two or three sizes.
        scale: Distance of the random values in voxels; the fields vary linearly in between.
        count: Number of fields.
        draws: Source of random numbers.

    Returns:
        Fields ``(count, *shape)``, float32.

    >>> fields = smooth_fields((32, 32), 8.0, 2, Draws(0))
    >>> fields.shape, bool(fields.mean().abs() < 1e-5)
    (torch.Size([2, 32, 32]), True)
    """
    grid = [max(2, round(size / scale) + 1) for size in shape]
    coarse = draws.normal((1, count, *grid))
    fields = F.interpolate(coarse, tuple(shape), mode=MODES[len(shape)], align_corners=True)[0]
    return standardized(fields)


def standardized(fields: Tensor) -> Tensor:
    """Fields ``(count, *shape)`` with zero mean and unit variance each; a constant field becomes zero."""
    flat = fields.flatten(1)
    flat = flat - flat.mean(1, keepdim=True)
    deviation = flat.square().mean(1, keepdim=True).sqrt()
    return (flat / deviation.clamp_min(1e-6)).reshape(fields.shape)
