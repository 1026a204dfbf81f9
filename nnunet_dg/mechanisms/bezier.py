"""Monotone maps of intensities along cubic Bezier curves."""

from __future__ import annotations

import torch
from torch import Tensor

from nnunet_dg.tensors import sortable, to_device

POINTS = 4096  # of a curve; between them, it is linear


def bezier_curve(control: Tensor, points: int = POINTS) -> tuple[Tensor, Tensor]:
    """Points of a cubic Bezier curve, from its first to its last control point.

    Args:
        control: Control points, ``(..., 4, 2)``.
        points: Number of points of the curve; default 4096.

    Returns:
        First and second coordinates, each ``(..., points)``, float64.

    >>> control = torch.tensor([[0.0, 0.0], [1 / 3, 1 / 3], [2 / 3, 2 / 3], [1.0, 1.0]])
    >>> bezier_curve(control, points=3)[0].float()
    tensor([0.0000, 0.5000, 1.0000])
    """
    t = torch.linspace(0, 1, points, dtype=torch.float64, device=control.device)
    basis = torch.stack([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3], 1)
    x, y = (basis @ control.double()).unbind(-1)
    return x.contiguous(), y.contiguous()


def control_points(inner: Tensor) -> Tensor:
    """All control points of curves from (0, 0) to (1, 1), ``(..., 4, 2)``, from the two inner ones, ``(..., 2, 2)``.

    >>> control_points(torch.tensor([[0.2, 0.7], [0.6, 0.9]]))[:, 0]
    tensor([0.0000, 0.2000, 0.6000, 1.0000])
    """
    first, last = torch.zeros_like(inner[..., :1, :]), torch.ones_like(inner[..., :1, :])
    return torch.cat([first, inner, last], -2)


def look_up(values: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Linear interpolation between the points ``(x, y)``. Values beyond the ends get the value of the end.

    Args:
        values: Values, in any shape.
        x: Ascending coordinates, ``(points,)``, in the dtype of the values.
        y: Values of the function there, ``(points,)``.

    >>> look_up(torch.tensor([0.5, 3.0]), torch.tensor([0.0, 1.0]), torch.tensor([1.0, 3.0]))
    tensor([2., 3.])
    """
    after = torch.searchsorted(x, values.contiguous()).clamp(1, len(x) - 1)
    return _between(values, x, y, after)


def look_up_groups(values: Tensor, group: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """`look_up` in a separate curve for each group of values.

    Args:
        values: Values in [0, 1], ``(N,)``, float32.
        group: Group of each value, ``(N,)``, int64, from 0 to G - 1.
        x: Ascending coordinates of each group's curve, ``(G, points)``, in [0, 1], float32.
        y: Values of the functions there, ``(G, points)``.

    >>> x, y = torch.tensor([[0.0, 1.0], [0.0, 1.0]]), torch.tensor([[1.0, 3.0], [3.0, 1.0]])
    >>> look_up_groups(torch.tensor([0.25, 0.25]), torch.tensor([0, 1]), x, y)
    tensor([1.5000, 2.5000])
    """
    groups, points = x.shape
    keys = sortable(x, torch.arange(groups, device=x.device)[:, None]).flatten()
    first = group * points
    after = torch.searchsorted(keys, sortable(values, group))
    after = torch.minimum(torch.maximum(after, first + 1), first + points - 1)
    return _between(values, x.flatten(), y.flatten(), after)


def _between(values: Tensor, x: Tensor, y: Tensor, after: Tensor) -> Tensor:
    """Linear interpolation between the point ``after`` and the one before it."""
    span = x[after] - x[after - 1]
    part = ((values - x[after - 1]) / torch.where(span > 0, span, 1)).clamp(0, 1)
    return y[after - 1] + part * (y[after] - y[after - 1])


def bezier_map(values: Tensor, inner: Tensor, inverted: bool = False) -> Tensor:
    """Map values along the Bezier curve from the lowest to the highest of them, or from the highest to the lowest.

    The inverted map runs through the second coordinates of the same curve in reverse order. Constant values stay as
    they are. The curve is computed in float64, the map in the dtype of the values.

    Args:
        values: Values, in any shape.
        inner: The two inner control points, ``(2, 2)``, as fractions of the range of the values, in ascending order in
            both coordinates, on the CPU, where the curve is computed.
        inverted: Whether the map is decreasing; default False.

    >>> values, inner = torch.tensor([0.0, 0.5, 1.0]), torch.tensor([[0.2, 0.7], [0.6, 0.9]])
    >>> bezier_map(values, inner), bezier_map(values, inner, inverted=True)
    (tensor([0.0000, 0.7838, 1.0000]), tensor([1.0000, 0.6574, 0.0000]))
    """
    low, high = torch.aminmax(values)
    span = high - low
    x, y = bezier_curve(control_points(inner))
    x, y = (to_device(part.to(values.dtype), values.device) for part in (x, y.flip(0) if inverted else y))
    fractions = (values - low) / torch.where(span > 0, span, 1)
    return low + span * look_up(fractions, x, y)
