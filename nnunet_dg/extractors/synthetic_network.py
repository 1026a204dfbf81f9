"""The small network of the extractor `synthetic`: fully convolutional, two levels, 2-D or 3-D."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from nnunet_dg.errors import SettingsError
from nnunet_dg.extractors.convolution import convolved
from nnunet_dg.tensors import EPS, wide

FEATURES = 16
STEM = 8  # channels of the first convolution
WIDTHS = {2: (16, 24), 3: (8, 24)}  # channels of the fine and of the coarse level, by the number of spatial axes
SLOPE = 0.1  # of the leaky rectifier
SMALLEST = 1e-8  # added to the variance of the first convolution, whose input may vary little


class SyntheticNetwork(nn.Module):
    """Two levels whose features do not change with ``x -> a * x + b``, for any ``a`` other than 0.

    The first convolution is normalized to zero mean and unit variance and its magnitude is taken, so that gain, offset
    and inversion of the image cancel, up to rounding. Convolutions replicate the border. The coarse level has half the
    resolution: blocks of 2 voxels per axis are averaged. The features are a linear mixture of the fine level and of the
    coarse one, which is interpolated linearly. They describe the surroundings of a voxel, up to 8 voxels away
    along each axis, and depend on the statistics of the whole patch, as instance norm does.

    Args:
        spatial_dims: 2 or 3.

    Raises:
        SettingsError: ``spatial_dims`` is neither 2 nor 3.
    """

    def __init__(self, spatial_dims: int) -> None:
        super().__init__()
        check_dims(spatial_dims)
        self.spatial_dims = spatial_dims
        fine, coarse = WIDTHS[spatial_dims]
        self.stem = Convolution(spatial_dims, 1, STEM, magnitude=True)
        self.fine = Convolution(spatial_dims, STEM, fine)
        self.coarse = nn.Sequential(Convolution(spatial_dims, fine, coarse), Convolution(spatial_dims, coarse, coarse))
        self.mixture = Mixture(spatial_dims, fine, coarse)

    def forward(self, x: Tensor) -> Tensor:
        """Features ``(B, 16, *spatial)`` of images ``(B, 1, *spatial)`` whose sizes are multiples of 2."""
        fine = self.fine(self.stem(x - x.mean(tuple(range(1, x.ndim)), keepdim=True)))
        features: Tensor = self.mixture(fine, self.coarse(halved(fine)))
        return features


class Mixture(nn.Module):
    """A 1-wide convolution of two levels that are concatenated after the interpolation of the coarse one.

    It is computed as a sum, so that the coarse level can be convolved before it is interpolated, which is cheaper.
    The levels should have at least 16 channels together, because otherwise some features are mixtures of others.

    Args:
        spatial_dims: 2 or 3.
        fine: Number of channels of the fine level, which has full resolution.
        coarse: Number of channels of the coarse level, which has half of it.
    """

    def __init__(self, spatial_dims: int, fine: int, coarse: int) -> None:
        super().__init__()
        self.input_channels = fine  # TinyMIG's adapter sees the first input only
        self.fine = CONVOLUTIONS[spatial_dims](fine, FEATURES, 1)
        self.coarse = CONVOLUTIONS[spatial_dims](coarse, FEATURES, 1, bias=False)

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        """``(B, fine, *spatial)`` and ``(B, coarse, *spatial / 2)`` -> ``(B, 16, *spatial)``."""
        interpolated = doubled(convolved(coarse, self.coarse.weight))
        return convolved(fine, self.fine.weight, self.fine.bias).add_(interpolated)


class Convolution(nn.Module):
    """A 3-wide convolution with replicated border and instance norm, then a leaky rectifier or the magnitude.

    Args:
        spatial_dims: 2 or 3.
        ins: Number of input channels.
        outs: Number of output channels.
        magnitude: Whether the magnitude of the normalized channels is taken. Otherwise they are scaled and shifted by
            learned numbers, and rectified; default False.
    """

    def __init__(self, spatial_dims: int, ins: int, outs: int, magnitude: bool = False) -> None:
        super().__init__()
        self.input_channels = ins  # named as in nnU-Net's blocks
        self.convolution = CONVOLUTIONS[spatial_dims](ins, outs, 3, bias=False)
        ones = [1] * spatial_dims
        self.gain = None if magnitude else nn.Parameter(torch.ones(1, outs, *ones))
        self.shift = None if magnitude else nn.Parameter(torch.zeros(1, outs, *ones))

    def reset_parameters(self) -> None:
        """Gain and shift as in a new module; the convolution has such a method itself."""
        if self.gain is not None and self.shift is not None:
            nn.init.ones_(self.gain)
            nn.init.zeros_(self.shift)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, ins, *spatial)`` -> ``(B, outs, *spatial)``."""
        y = convolved(bordered(x), self.convolution.weight)
        axes = tuple(range(2, y.ndim))
        mean, square = wide(y).mean(axes, keepdim=True), wide(y).square().mean(axes, keepdim=True)
        variance = (square - mean.square()).clamp_min(0)  # faster than torch.var_mean on CPUs
        # overwritten without gradient, since new tensors take longer than the arithmetic; torch.compile needs no help
        buffer = None if torch.is_grad_enabled() or torch.compiler.is_compiling() else y
        y = torch.sub(y, mean.to(y.dtype), out=buffer)
        if self.gain is None or self.shift is None:
            y = torch.mul(y, torch.rsqrt(variance + SMALLEST).to(y.dtype), out=buffer)
            return torch.abs(y, out=buffer)
        scale = torch.rsqrt(variance + EPS) * self.gain
        y = torch.addcmul(self.shift.to(y.dtype), y, scale.to(y.dtype), out=buffer)
        return F.leaky_relu(y, SLOPE, inplace=True)


def check_dims(spatial_dims: int) -> None:
    """Refuse a number of spatial axes for which there is no network.

    Raises:
        SettingsError: ``spatial_dims`` is neither 2 nor 3.
    """
    if spatial_dims not in WIDTHS:
        raise SettingsError(f"spatial_dims must be 2 or 3; got {spatial_dims!r}.")


def bordered(x: Tensor) -> Tensor:
    """The border replicated by one voxel: ``(B, C, *spatial)`` -> ``(B, C, *spatial + 2)``."""
    if x.device.type == "cpu" or not x.requires_grad:
        return F.pad(x, [1] * (2 * (x.ndim - 2)), mode="replicate")
    return joined_border(x)


def joined_border(x: Tensor) -> Tensor:
    """`bordered`, by operations that are deterministic on GPUs, which the gradient of `F.pad` is not."""
    for axis in range(2, x.ndim):
        x = torch.cat([x.narrow(axis, 0, 1), x, x.narrow(axis, x.shape[axis] - 1, 1)], axis)
    return x


def halved(x: Tensor) -> Tensor:
    """The mean of each block of 2 voxels per axis: ``(B, C, *spatial)`` -> ``(B, C, *spatial / 2)``."""
    for axis in range(2, x.ndim):
        x = x.unflatten(axis, (-1, 2)).mean(axis + 1)
    return x


def doubled(x: Tensor) -> Tensor:
    """Linear interpolation to twice the size: ``(B, C, *spatial)`` -> ``(B, C, *spatial * 2)``."""
    x = x.movedim(1, -1)  # the channels are last in memory; faster than F.interpolate, and deterministic on GPUs
    for axis in range(1, x.ndim - 1):
        size = x.shape[axis]
        before = torch.cat([x.narrow(axis, 0, 1), x.narrow(axis, 0, size - 1)], axis)
        after = torch.cat([x.narrow(axis, 1, size - 1), x.narrow(axis, size - 1, 1)], axis)
        x = torch.stack([torch.lerp(x, before, 0.25), torch.lerp(x, after, 0.25)], axis + 1).flatten(axis, axis + 1)
    return x.movedim(-1, 1)


CONVOLUTIONS: dict[int, Any] = {2: nn.Conv2d, 3: nn.Conv3d}
