"""Defects of an acquisition: bias field, point spread, low resolution, noise and gamma."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from nnunet_dg.synthesis.draws import Draws
from nnunet_dg.synthesis.smooth import MODES, smooth_fields


def bias_field(image: Tensor, deviation: float, draws: Draws) -> Tensor:
    """The image ``(*shape)`` times ``exp(deviation * field)``, with a field that varies over 20 to 60 voxels."""
    field = smooth_fields(image.shape, draws.uniform(20, 60), 1, draws)[0]
    return image * torch.exp(deviation * field)


def blur(image: Tensor, sigmas: list[float]) -> Tensor:
    """The image ``(*shape)`` convolved with a Gaussian, replicated at the border.

    Args:
        image: Image, float32.
        sigmas: Standard deviation along each axis, in voxels, at most 3; 0 leaves an axis unchanged.
    """
    for axis, sigma in enumerate(sigmas):
        if sigma <= 0.05:
            continue
        reach = max(1, math.ceil(3 * sigma))
        weights = [math.exp(-0.5 * (offset / sigma) ** 2) for offset in range(-reach, reach + 1)]
        size, total = image.shape[axis], sum(weights)
        ends = [image.narrow(axis, at, 1).expand(*_with(image.shape, axis, reach)) for at in (0, size - 1)]
        wide = torch.cat([ends[0], image, ends[1]], dim=axis)
        parts = [wide.narrow(axis, k, size) * (weight / total) for k, weight in enumerate(weights)]
        image = torch.stack(parts).sum(0)
    return image


def _with(shape: torch.Size, axis: int, size: int) -> list[int]:
    return [size if a == axis else n for a, n in enumerate(shape)]


def low_resolution(image: Tensor, factors: list[float]) -> Tensor:
    """The image ``(*shape)`` averaged to voxels that are ``factors`` times larger along each axis, and interpolated."""
    small = [max(2, round(size / factor)) for size, factor in zip(image.shape, factors, strict=True)]
    coarse = F.interpolate(image[None, None], small, mode="area")
    return F.interpolate(coarse, image.shape, mode=MODES[image.ndim])[0, 0]


def noise(image: Tensor, deviation: float, rician: bool, draws: Draws) -> Tensor:
    """The image ``(*shape)`` with white noise.

    Args:
        image: Image, float32.
        deviation: Standard deviation of the noise, in intensity units.
        rician: Whether the result is the magnitude of a complex signal with such noise in both parts.
        draws: Source of random numbers.
    """
    noisy = image + deviation * draws.normal(image.shape)
    return torch.hypot(noisy, deviation * draws.normal(image.shape)) if rician else noisy


def gamma(image: Tensor, exponent: float) -> Tensor:
    """The image ``(*shape)`` scaled to [0, 1] and raised to an exponent; a constant image becomes zero."""
    low, high = image.aminmax()
    unit = (image - low) / (high - low).clamp_min(1e-6)
    return unit**exponent


def draw_defects(image: Tensor, draws: Draws) -> Tensor:
    """The image with random defects.

    Args:
        image: Image ``(*shape)``, float32, mostly in [0, 1].
        draws: Source of random numbers.

    Returns:
        Image ``(*shape)``, float32, in [0, 1].
    """
    dims = image.ndim
    if draws.chance(0.5):
        image = gamma(image, math.exp(draws.uniform(-1.2, 1.2)))
    image = bias_field(image, draws.uniform(0, 0.4), draws)
    image = blur(image, [draws.uniform(0, 0.9) for _ in range(dims)])
    if draws.chance(0.3):
        factor, axis = draws.uniform(1.5, 4), draws.whole(0, dims)  # the number of axes stands for all of them
        single = [factor if a == axis else 1.0 for a in range(dims)]
        image = low_resolution(image, [min(factor, 2.5)] * dims if axis == dims else single)
    if draws.chance(0.8):
        image = noise(image, draws.uniform(0, 0.1) ** 2 * 10, draws.chance(0.3), draws)
    return gamma(image, 1.0)
