"""Smooth fields over a patch from a coarse grid of control points, by B-splines."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from nnunet_dg.tensors import to_device, wide


def bspline_kernel(spacing: int, degree: int = 2) -> Tensor:
    """A sampled B-spline: a box of ``spacing`` ones, convolved ``degree`` times with the normalized box.

    Copies of it at a distance of ``spacing`` add up to one.

    Args:
        spacing: Distance between control points, in voxels.
        degree: Degree of the B-spline; default 2.

    Returns:
        ``((degree + 1) * (spacing - 1) + 1,)``, float64.

    >>> bspline_kernel(2).tolist()
    [0.25, 0.75, 0.75, 0.25]
    """
    kernel = box = torch.ones(1, 1, spacing, dtype=torch.float64)
    for _ in range(degree):
        kernel = F.conv1d(kernel, box / spacing, padding=spacing - 1)
    return kernel.flatten()


def bspline_basis(points: int, spacing: int, size: int, degree: int = 2) -> Tensor:
    """The influence of each control point on each voxel along one axis, ``(size, points)``, float64.

    The field of the control points is centered on the axis, and cropped to its size.

    Args:
        points: Number of control points.
        spacing: Distance between control points, in voxels.
        size: Number of voxels along the axis.
        degree: Degree of the B-spline; default 2.

    >>> bspline_basis(points=3, spacing=2, size=2).tolist()
    [[0.25, 0.75, 0.0], [0.0, 0.75, 0.25]]
    """
    kernel = bspline_kernel(spacing, degree)
    start = ((points - 1) * spacing + len(kernel) - size) // 2
    place = start + torch.arange(size)[:, None] - spacing * torch.arange(points)
    reached = (place >= 0) & (place < len(kernel))
    return torch.where(reached, kernel[place.clamp(0, len(kernel) - 1)], 0)


def spline_field(control: Tensor, spacing: Sequence[int], shape: Sequence[int], degree: int = 2) -> Tensor:
    """The tensor-product B-spline of a grid of control points. It is computed in at least float32.

    Args:
        control: Values of the control points, ``(B, *points)``.
        spacing: Distance between control points along each axis, in voxels.
        shape: Spatial shape of the field.
        degree: Degree of the B-spline; default 2.

    Returns:
        ``(B, *shape)``.

    >>> spline_field(torch.ones(1, 4, 4), spacing=(2, 2), shape=(2, 3))
    tensor([[[1., 1., 1.],
             [1., 1., 1.]]])
    """
    with torch.autocast(control.device.type, enabled=False):
        field = wide(control)
        for distance, size in zip(spacing, shape, strict=True):  # the axis that is replaced becomes the last one
            basis = bspline_basis(field.shape[1], distance, size, degree).to(field.dtype)
            field = torch.tensordot(field, to_device(basis, field.device), dims=([1], [1]))
        return field
