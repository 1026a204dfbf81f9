"""Which voxels of a preprocessed patch show the subject.

nnU-Net leaves exact zeros outside a mask, and pads small images with zeros. After z-score normalization zero is the
mean of the image, so these voxels look like tissue to a frozen network. For a feature extractor they are set to the
darkest value (`Outside.to_minimum`); class statistics exclude them (`Outside.voxels`).

In training, nnU-Net's last step sets all voxels outside a mask to zero. In validation and prediction it does not: if
the image was resampled, the cubic spline leaves decaying ripples outside the mask instead of exact zeros. These are
detected as regions that are flat and near zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

RIPPLE = 0.01
"""Largest magnitude of resampling ripples outside a mask, in standard deviations of the image. At the mask's edge they
are larger; a cubic spline falls below this value after four voxels."""
ZERO_IS_THE_MEAN = (
    "ZScoreNormalization",
    "CTNormalization",
    "AnyModalityNormalization",
    "SymmetricRangeNormalization",
)
"""Schemes after which zero is an intensity of tissue, the mean or the middle of the range, so that exact zeros are
padding or outside a mask. After scaling to [0, 1], padding is as dark as the background and cannot be recognized."""


@dataclass(frozen=True)
class Outside:
    """What exact zeros mean in each image channel of a configuration.

    Args:
        masked: Whether zeros are outside the mask (``use_mask_for_norm``), per channel.
        centered: Whether zero is the mean of the image, so that only padding is exactly zero in all channels, per
            channel. In other channels zero is an ordinary intensity and is left alone.
    """

    masked: tuple[bool, ...]
    centered: tuple[bool, ...]

    @classmethod
    def of(cls, configuration_manager: Any) -> Outside:
        """From nnU-Net's configuration: ``use_mask_for_norm`` and the names of the normalization schemes."""
        schemes: Sequence[str] = configuration_manager.normalization_schemes
        masks: Sequence[bool] = configuration_manager.use_mask_for_norm
        centered = tuple(scheme in ZERO_IS_THE_MEAN for scheme in schemes)
        return cls(tuple(bool(mask) and c for mask, c in zip(masks, centered, strict=True)), centered)

    @classmethod
    def zeros(cls, use_mask_for_norm: Sequence[bool]) -> Outside:
        """For images whose channels are all centered on zero, with the given masks."""
        return cls(tuple(bool(mask) for mask in use_mask_for_norm), (True,) * len(use_mask_for_norm))

    @classmethod
    def nowhere(cls, channels: int) -> Outside:
        """For images in which every voxel shows the subject."""
        return cls((False,) * channels, (False,) * channels)

    def channels(self, image: Tensor) -> Tensor:
        """Whether each voxel of each channel is outside the subject: ``(B, C, *spatial) -> (B, C, *spatial)``, bool.

        Outside are padding, which is exactly zero in all channels, and in masked channels exact zeros and resampling
        ripples: cubes of 3 voxels a side in which no magnitude exceeds `RIPPLE`.
        """
        padding = (image == 0).all(1, keepdim=True) & all(self.centered)
        return torch.cat([self._channel(image, c) | padding for c in range(image.shape[1])], dim=1)

    def _channel(self, image: Tensor, c: int) -> Tensor:
        channel = image[:, c : c + 1]
        if not self.masked[c]:
            return torch.zeros_like(channel, dtype=torch.bool)
        return (channel == 0) | _flat(channel)

    def voxels(self, image: Tensor) -> Tensor:
        """Whether each voxel is outside the subject in all channels: ``(B, C, *spatial) -> (B, *spatial)``, bool.

        For training patches. A voxel is outside if all masked channels are exactly zero there, or if it is padding.
        """
        outside = torch.zeros_like(image[:, 0], dtype=torch.bool)
        if masked := [image[:, c] == 0 for c in range(image.shape[1]) if self.masked[c]]:
            outside = torch.stack(masked).all(0)
        if all(self.centered):
            outside = outside | (image == 0).all(1)
        return outside

    def to_minimum(self, image: Tensor) -> Tensor:
        """Set voxels outside the subject to the minimum of their sample and channel.

        Args:
            image: ``(B, C, *spatial)``.

        Returns:
            The changed image, same shape and dtype. The same object, not a copy, if the configuration has neither
            masks nor recognizable padding.
        """
        if not any(self.masked) and not all(self.centered):
            return image
        low = image.amin(tuple(range(2, image.ndim)), keepdim=True)
        return torch.where(self.channels(image), low, image)


def _flat(channel: Tensor) -> Tensor:
    """Voxels in cubes of 3 voxels a side that are all near zero: a morphological opening, ``(B, 1, *spatial)``."""
    middles = _largest_of_three(channel.abs()) <= RIPPLE
    return _largest_of_three(middles.to(torch.uint8)) > 0


def _largest_of_three(x: Tensor) -> Tensor:
    """Maximum of nonnegative values over cubes of 3 voxels a side. On CPUs, slices are faster than pooling."""
    sizes = x.shape[2:]
    x = F.pad(x, [1, 1] * len(sizes))
    for axis, size in enumerate(sizes, 2):
        below, here, above = (x.narrow(axis, start, size) for start in range(3))
        x = torch.maximum(torch.maximum(below, here), above)
    return x
