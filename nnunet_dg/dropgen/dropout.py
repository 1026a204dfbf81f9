"""Dropping whole channels, so that a network cannot rely on the image only.

S. Diaz, P. Golland, E. Adalsteinsson, N. Dey, Why Invariance is Not Enough for Biomedical Domain Generalization and How
to Fix It, 2026, https://arxiv.org/abs/2604.02564, section 3.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nnunet_dg.errors import SettingsError

LARGEST_P = 0.99
"""With a larger p, kept channels are scaled by more than 100, and most steps see only zeros."""


class ChannelDropout(nn.Module):
    """Zero each channel of each sample with probability p and scale the others by ``1 / (1 - p)``.

    ``(B, C, *spatial)`` -> the same shape and dtype, for any number of spatial axes. Image channels and feature
    channels are treated alike. In eval mode it is the identity.

    Args:
        p: Probability of dropping a channel, in [0, 0.99]; default 0.5, the paper's untuned setting.

    Raises:
        SettingsError: p is outside [0, 0.99].
    """

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.p = check_probability(p)

    def forward(self, z: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return z
        keep = torch.rand(z.shape[:2], device=z.device) >= self.p
        return _scale_channels(z, keep / (1 - self.p))

    def extra_repr(self) -> str:
        return f"p={self.p}"


class StructuredDropout(nn.Module):
    """The paper's ablation: with probability p drop either the image or all features of a sample, never both.

    A fair coin decides which of the two is dropped. Each is therefore kept with probability ``1 - p / 2`` and scaled by
    the inverse.

    Args:
        p: Probability of dropping the image or the features, in [0, 0.99].
        num_image_channels: Number of image channels, which come first. The other channels are features.

    Raises:
        SettingsError: p is outside [0, 0.99].
    """

    def __init__(self, p: float, num_image_channels: int) -> None:
        super().__init__()
        self.p = check_probability(p)
        self.num_image_channels = num_image_channels

    def forward(self, z: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return z
        drop, drop_image = torch.rand(2, z.shape[0], 1, device=z.device)
        is_image = torch.arange(z.shape[1], device=z.device) < self.num_image_channels
        keep = (drop >= self.p) | ((drop_image < 0.5) != is_image)
        return _scale_channels(z, keep / (1 - self.p / 2))

    def extra_repr(self) -> str:
        return f"p={self.p}, num_image_channels={self.num_image_channels}"


def check_probability(p: float) -> float:
    """``p`` if it is in [0, `LARGEST_P`].

    Raises:
        SettingsError: It is outside this range or not a number.
    """
    if isinstance(p, bool) or not isinstance(p, (int, float)) or not 0 <= p <= LARGEST_P:
        raise SettingsError(
            f"p, the share of channels that are dropped, must be a probability in [0, {LARGEST_P}]; got {p!r}."
        )
    return p


def _scale_channels(z: Tensor, factors: Tensor) -> Tensor:
    return z * factors.to(z.dtype).reshape(*z.shape[:2], *[1] * (z.ndim - 2))
