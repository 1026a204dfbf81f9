"""The small U-Net of the extractor `synthetic`: fully convolutional, 2-D or 3-D, at most 400,000 parameters."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from nnunet_dg.errors import SettingsError
from nnunet_dg.extractors.convolution import convolved
from nnunet_dg.tensors import EPS, wide

FEATURES = 16
STEM = 8  # channels of the first convolution
WIDTHS = {2: (16, 24, 48, 96), 3: (8, 16, 32, 64)}  # channels of each level, by the number of spatial axes
SLOPE = 0.1  # of the leaky rectifier
SMALLEST = 1e-8  # added to the variance of the first convolution, whose input may vary little


class SyntheticUNet(nn.Module):
    """A U-Net whose features do not change with ``x -> a * x + b``, for any ``a`` other than 0, or with its sign.

    The first convolution is normalized to zero mean and unit variance and its magnitude is taken, so that gain, offset
    and inversion of the image cancel, up to rounding. Convolutions replicate the border. Levels are averaged on the way
    down and interpolated linearly on the way up. The features are a linear mixture of the encoder's finest level and of
    the decoder's, which has half the resolution.

    Args:
        spatial_dims: 2 or 3.

    Raises:
        SettingsError: ``spatial_dims`` is neither 2 nor 3.
    """

    def __init__(self, spatial_dims: int) -> None:
        super().__init__()
        check_dims(spatial_dims)
        self.spatial_dims = spatial_dims
        widths = WIDTHS[spatial_dims]
        self.stem = Convolution(spatial_dims, 1, STEM, magnitude=True)
        self.encoder = nn.ModuleList([Convolution(spatial_dims, STEM, widths[0])])
        for below, width in pairwise(widths):
            first, second = Convolution(spatial_dims, below, width), Convolution(spatial_dims, width, width)
            self.encoder.append(nn.Sequential(first, second))
        self.decoder = nn.ModuleList()
        for below, width in zip(widths[:1:-1], widths[-2:0:-1], strict=True):
            first, second = Convolution(spatial_dims, below + width, width), Convolution(spatial_dims, width, width)
            self.decoder.append(nn.Sequential(first, second))
        self.mixture = Mixture(spatial_dims, widths[0], widths[1])

    def forward(self, x: Tensor) -> Tensor:
        """Features ``(B, 16, *spatial)`` of images ``(B, 1, *spatial)`` whose sizes are multiples of 8."""
        x = x - x.mean(tuple(range(1, x.ndim)), keepdim=True)
        skips = [self.encoder[0](self.stem(x))]
        for block in self.encoder[1:]:
            skips.append(block(halved(skips[-1])))
        y = skips.pop()
        for block in self.decoder:
            y = block(torch.cat([doubled(y), skips.pop()], dim=1))
        features: Tensor = self.mixture(skips.pop(), y)
        return features


class Mixture(nn.Module):
    """A 1-wide convolution of two levels that are concatenated after the interpolation of the coarse one.

    It is computed as a sum, so that the coarse level can be convolved before it is interpolated, which is cheaper.
    Together, the levels have at least as many channels as there are features, whose rank would be lower otherwise.

    Args:
        spatial_dims: 2 or 3.
        skip: Number of channels of the encoder's level, which has full resolution.
        below: Number of channels of the decoder's level.
    """

    def __init__(self, spatial_dims: int, skip: int, below: int) -> None:
        super().__init__()
        self.input_channels = skip  # of the first input, which is that of TinyMIG's adapter
        self.skip = CONVOLUTIONS[spatial_dims](skip, FEATURES, 1)
        self.below = CONVOLUTIONS[spatial_dims](below, FEATURES, 1, bias=False)

    def forward(self, skip: Tensor, below: Tensor) -> Tensor:
        """``(B, skip, *spatial)`` and ``(B, below, *spatial / 2)`` -> ``(B, 16, *spatial)``."""
        coarse = doubled(convolved(below, self.below.weight))
        return convolved(skip, self.skip.weight, self.skip.bias).add_(coarse)


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
