"""Dropping whole channels, so that a network cannot rely on the image only.

S. Diaz, P. Golland, E. Adalsteinsson, N. Dey, Why Invariance is Not Enough for Biomedical Domain Generalization and How
to Fix It, 2026, https://arxiv.org/abs/2604.02564, section 3.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nnunet_dg.errors import SettingsError
from nnunet_dg.fields import is_number

LARGEST_P = 0.99
"""With a larger p, kept channels are scaled by more than 100, and most steps see only zeros."""
ACCEPTED_P = f"a probability in [0, {LARGEST_P}], or a range of them: a list of the lowest and the highest"
ANNEALED_SHARE = 0.2  # of the epochs, at the end of a training

Rate = float | tuple[float, float]


class Dropout(nn.Module):
    """Base of the dropouts: the rate, which is a number or a range. In eval mode, a dropout is the identity.

    Args:
        p: Probability of dropping, in [0, 0.99]; or the lowest and highest one, between which the probability of each
            sample is drawn uniformly.

    Raises:
        SettingsError: p is outside [0, 0.99].
    """

    bounds: Tensor | None
    """Lowest and highest p as a tensor, ``(2,)``, so that a compiled network has one graph for all; None: p is fixed.
    It is neither a buffer nor in the state dict."""

    def __init__(self, p: Rate) -> None:
        super().__init__()
        self.p = check_probability(p)
        self.bounds = None
        if isinstance(p, (tuple, list)):
            self.move(*p)

    def move(self, low: float, high: float) -> None:
        """Draw the probability of each sample between other bounds from now on."""
        self.bounds = torch.tensor((low, high), dtype=torch.float32)

    def forward(self, z: Tensor) -> Tensor:
        """``(B, C, *spatial)`` with dropped channels in training mode."""
        if not self.training or (self.bounds is None and self.p == 0):
            return z
        return _scale_channels(z, self.factors(z, self._probabilities(z)))

    def factors(self, z: Tensor, p: Any) -> Tensor:
        """Factors ``(B, C)`` of the channels, zero where a channel is dropped.

        Args:
            z: Tensor whose channels are dropped, ``(B, C, *spatial)``.
            p: Probability of dropping: a number, or one for each sample, ``(B, 1)``.
        """
        raise NotImplementedError

    def _probabilities(self, z: Tensor) -> Any:
        if self.bounds is None:
            return self.p
        low, high = self.bounds.to(z.device, non_blocking=True)
        return low + (high - low) * torch.rand(z.shape[0], 1, device=z.device)

    def extra_repr(self) -> str:
        return f"p={self.p}"


class ChannelDropout(Dropout):
    """Zero each channel of each sample with probability p and scale the others by ``1 / (1 - p)``.

    ``(B, C, *spatial)`` -> the same shape and dtype, for any number of spatial axes. Image channels and feature
    channels are treated alike. In eval mode it is the identity.

    Args:
        p: Probability of dropping a channel, in [0, 0.99]; default 0.5, the paper's untuned setting. With the lowest
            and highest of a range, the probability of each sample is drawn uniformly between them.

    Raises:
        SettingsError: p is outside [0, 0.99].
    """

    def __init__(self, p: Rate = 0.5) -> None:
        super().__init__(p)

    def factors(self, z: Tensor, p: Any) -> Tensor:
        keep = torch.rand(z.shape[:2], device=z.device) >= p
        return keep / (1 - p)


class StructuredDropout(Dropout):
    """The paper's ablation: with probability p drop either the image or all features of a sample, never both.

    A fair coin decides which of the two is dropped. Each is therefore kept with probability ``1 - p / 2`` and scaled by
    the inverse.

    Args:
        p: Probability of dropping the image or the features, in [0, 0.99], or a range as in `ChannelDropout`.
        num_image_channels: Number of image channels, which come first. The other channels are features.

    Raises:
        SettingsError: p is outside [0, 0.99].
    """

    def __init__(self, p: Rate, num_image_channels: int) -> None:
        super().__init__(p)
        self.num_image_channels = num_image_channels

    def factors(self, z: Tensor, p: Any) -> Tensor:
        drop, drop_image = torch.rand(2, z.shape[0], 1, device=z.device)
        is_image = torch.arange(z.shape[1], device=z.device) < self.num_image_channels
        keep = (drop >= p) | ((drop_image < 0.5) != is_image)
        return keep / (1 - p / 2)

    def extra_repr(self) -> str:
        return f"p={self.p}, num_image_channels={self.num_image_channels}"


def annealed(p: Rate, p_end: float, epoch: int, num_epochs: int) -> tuple[float, float]:
    """The lowest and the highest p of an epoch, if p moves linearly to ``p_end`` over the last fifth of a training.

    The last epoch has ``p_end``. Both ends of a range move, so that it narrows to ``p_end``.

    Args:
        p: Probability, or the lowest and highest one, of the earlier epochs.
        p_end: Probability of the last epoch.
        epoch: Number of the epoch, from 0.
        num_epochs: Length of the training, in epochs.

    >>> [annealed(0.5, 0.0, epoch, 10)[0] for epoch in (0, 7, 8, 9)]
    [0.5, 0.5, 0.25, 0.0]
    >>> annealed((0.0, 0.75), 0.25, 8, 10)
    (0.125, 0.5)
    """
    low, high = p if isinstance(p, (tuple, list)) else (p, p)
    last = ANNEALED_SHARE * num_epochs
    done = min(max((epoch + 1 - num_epochs + last) / last, 0.0), 1.0)
    return (1 - done) * low + done * p_end, (1 - done) * high + done * p_end


def is_rate(p: Any) -> bool:
    """Whether p is a probability in [0, `LARGEST_P`], or a list or tuple of the lowest and highest one of a range.

    >>> is_rate(0.5), is_rate([0.0, 0.75]), is_rate([0.75, 0.0]), is_rate(1)
    (True, True, False, False)
    """
    if isinstance(p, (list, tuple)):
        return len(p) == 2 and all(is_number(end, False) and 0 <= end <= LARGEST_P for end in p) and p[0] <= p[1]
    return is_number(p, False) and bool(0 <= p <= LARGEST_P)


def check_probability(p: Rate) -> Rate:
    """``p`` if it is a probability in [0, `LARGEST_P`] or a range of them, see `is_rate`.

    Raises:
        SettingsError: It is neither.
    """
    if not is_rate(p):
        raise SettingsError(f"p, the share of channels that are dropped, must be {ACCEPTED_P}; got {p!r}.")
    return p


def _scale_channels(z: Tensor, factors: Tensor) -> Tensor:
    return z * factors.to(z.dtype).reshape(*z.shape[:2], *[1] * (z.ndim - 2))
