"""Which voxels of a preprocessed patch show the subject.

nnU-Net leaves exact zeros outside a mask, and pads small images with zeros.
After z-score normalization zero is the mean of the image, so to a frozen network these voxels look like tissue. For a
feature extractor they become the darkest value (`Outside.to_minimum`); for statistics of classes they are left out
(`Outside.voxels`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

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
    def nowhere(cls, channels: int) -> Outside:
        """For images in which every voxel counts."""
        return cls((False,) * channels, (False,) * channels)

    def channels(self, image: Tensor) -> Tensor:
        """Where each channel does not show the subject: ``(B, C, *spatial) -> (B, C, *spatial)``, bool."""
        zero = image == 0
        outside = zero & self._per_channel(self.masked, image)
        if all(self.centered):
            outside = outside | zero.all(1, keepdim=True)
        return outside

    def voxels(self, image: Tensor) -> Tensor:
        """Where no channel shows the subject: ``(B, C, *spatial) -> (B, *spatial)``, bool.

        A voxel is outside if all masked channels are zero there, or if it is padding.
        """
        outside = image.new_zeros((len(image), *image.shape[2:]), dtype=torch.bool)
        if any(self.masked):
            outside = (image[:, list(self.masked)] == 0).all(1)
        if all(self.centered):
            outside = outside | (image == 0).all(1)
        return outside

    def to_minimum(self, image: Tensor) -> Tensor:
        """The image ``(B, C, *spatial)`` with the minimum of each sample and channel where it shows no subject."""
        if not any(self.masked) and not all(self.centered):
            return image
        low = image.amin(tuple(range(2, image.ndim)), keepdim=True)
        return torch.where(self.channels(image), low, image)

    def _per_channel(self, values: tuple[bool, ...], image: Tensor) -> Tensor:
        return torch.tensor(values, device=image.device).reshape(1, -1, *[1] * (image.ndim - 2))
