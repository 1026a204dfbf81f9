"""Which voxels of a preprocessed patch show the subject.

nnU-Net leaves exact zeros outside a mask, and pads small images with zeros.
After z-score normalization zero is the mean of the image, so to a frozen network these voxels look like tissue. For a
feature extractor they become the darkest value (`Outside.to_minimum`); for statistics of classes they are left out
(`Outside.voxels`).

In training, nnU-Net sets what is outside a mask to zero last of all. In validation and prediction it does not: where
the image was resampled, the cubic spline leaves ripples of falling height outside the mask, and not one exact zero.
They are found as regions that are flat and near zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

RIPPLE = 0.01
"""The largest magnitude of what resampling leaves outside a mask, in standard deviations of the image. At the mask's
edge it is more; a cubic spline falls below this after four voxels."""
ZERO_IS_THE_MEAN = ("ZScoreNormalization", "CTNormalization", "AnyModalityNormalization")


@dataclass(frozen=True)
class Outside:
    """What exact zeros mean in each image channel of a configuration.

    Args:
        masked: Per channel: zeros are outside the mask (``use_mask_for_norm``).
        centered: Per channel: zero is the mean of the image, so that only padding is exactly zero in all channels.
            Elsewhere zero is an ordinary intensity, and nothing is done.
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
        """For images that are all centered on zero: masks as given, and padding."""
        return cls(tuple(bool(mask) for mask in use_mask_for_norm), (True,) * len(use_mask_for_norm))

    @classmethod
    def nowhere(cls, channels: int) -> Outside:
        """For images in which every voxel counts."""
        return cls((False,) * channels, (False,) * channels)

    def channels(self, image: Tensor) -> Tensor:
        """Where each channel does not show the subject: ``(B, C, *spatial) -> (B, C, *spatial)``, bool.

        Padding, which is exactly zero in all channels; and in masked channels, exact zeros and the ripples of
        resampling: cubes of 3 voxels a side in which no magnitude exceeds `RIPPLE`.
        """
        padding = (image == 0).all(1, keepdim=True) & all(self.centered)
        return torch.cat([self._channel(image, c) | padding for c in range(image.shape[1])], dim=1)

    def _channel(self, image: Tensor, c: int) -> Tensor:
        channel = image[:, c : c + 1]
        if not self.masked[c]:
            return torch.zeros_like(channel, dtype=torch.bool)
        return (channel == 0) | _flat(channel)

    def voxels(self, image: Tensor) -> Tensor:
        """Where no channel shows the subject: ``(B, C, *spatial) -> (B, *spatial)``, bool. For training patches.

        A voxel is outside if all masked channels are exactly zero there, or if it is padding.
        """
        outside = torch.zeros_like(image[:, 0], dtype=torch.bool)
        if masked := [image[:, c] == 0 for c in range(image.shape[1]) if self.masked[c]]:
            outside = torch.stack(masked).all(0)
        if all(self.centered):
            outside = outside | (image == 0).all(1)
        return outside

    def to_minimum(self, image: Tensor) -> Tensor:
        """The image ``(B, C, *spatial)`` with the minimum of each sample and channel where it shows no subject.

        In the dtype of the image. The image itself, not a copy, where a configuration has neither masks nor padding
        that can be told.
        """
        if not any(self.masked) and not all(self.centered):
            return image
        low = image.amin(tuple(range(2, image.ndim)), keepdim=True)
        return torch.where(self.channels(image), low, image)


def _flat(channel: Tensor) -> Tensor:
    """Where cubes of 3 voxels a side are near zero throughout: a morphological opening, ``(B, 1, *spatial)``, bool."""
    middles = _largest_of_three(channel.abs()) <= RIPPLE
    return _largest_of_three(middles.to(torch.uint8)) > 0


def _largest_of_three(x: Tensor) -> Tensor:
    """The maximum of nonnegative values over cubes of 3 voxels a side; on CPUs slices are faster than pooling."""
    sizes = x.shape[2:]
    x = F.pad(x, [1, 1] * len(sizes))
    for axis, size in enumerate(sizes, 2):
        below, here, above = (x.narrow(axis, start, size) for start in range(3))
        x = torch.maximum(torch.maximum(below, here), above)
    return x
