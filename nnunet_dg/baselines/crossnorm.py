"""CrossNorm: samples or channels exchange their feature statistics.

Z. Tang, Y. Gao, Y. Zhu, Z. Zhang, M. Li, D. Metaxas, CrossNorm and SelfNorm for Generalization under Distribution
Shifts, ICCV 2021, https://arxiv.org/abs/2102.02811.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from nnunet_dg.mechanisms.feature_style import (
    STATISTICS_PER_CHANNEL,
    Draw,
    FeatureStyle,
    Partner,
    statistics_of_partners,
)
from nnunet_dg.mechanisms.partners import partner_statistics
from nnunet_dg.method import Paper, choice
from nnunet_dg.tensors import Statistics, modulate, statistics


def crossnorm_statistics(feature: Tensor, earlier: Statistics | None = None) -> Statistics:
    """Two-instance CrossNorm: each sample gets the statistics of another sample. The gradient flows through them.

    Args:
        feature: Feature map, ``(B, A, *spatial)``.
        earlier: Statistics of an earlier sample, ``(1, A)`` each, used if the batch has a single sample; default None.

    Returns:
        Mean and deviation, each ``(B, A)``.

    >>> mean, std = crossnorm_statistics(torch.tensor([[[1.0, 3.0]], [[4.0, 6.0]]]))
    >>> sorted(mean.flatten().tolist())
    [2.0, 5.0]
    """
    return partner_statistics(statistics(feature), earlier)


def crossnorm_channels_statistics(feature: Tensor, earlier: Statistics | None = None) -> Statistics:
    """One-instance CrossNorm: each channel gets the statistics of another channel of the same sample.

    The gradient flows through them.

    Args:
        feature: Feature map, ``(B, A, *spatial)``.
        earlier: Not used.

    Returns:
        Mean and deviation, each ``(B, A)``.

    >>> mean, std = crossnorm_channels_statistics(torch.tensor([[[1.0, 3.0], [4.0, 6.0]]]))
    >>> sorted(mean.flatten().tolist())
    [2.0, 5.0]
    """
    mean, std = statistics(feature)
    order = torch.rand_like(mean).argsort(1)
    return mean.gather(1, order), std.gather(1, order)


def permuted_channels(own: Statistics, order: Tensor) -> Statistics:
    """The statistics of other channels of the same sample, each ``(B, A)``.

    Args:
        own: Mean and deviation, each ``(B, A)``.
        order: For each channel the channel whose statistics it gets, ``(A,)``.

    >>> permuted_channels((torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]])), torch.tensor([1, 0]))
    (tensor([[2., 1.]]), tensor([[4., 3.]]))
    """
    return own[0][:, order], own[1][:, order]


@dataclass(frozen=True)
class CrossNorm(FeatureStyle):
    """CrossNorm: in training, samples exchange the feature statistics of the first encoder stages.

    Z. Tang, Y. Gao, Y. Zhu, Z. Zhang, M. Li, D. Metaxas, CrossNorm and SelfNorm for Generalization under Distribution
    Shifts, ICCV 2021, https://arxiv.org/abs/2102.02811. The gradient flows through all statistics, also into the
    partner. In a batch of one sample, the partner is an earlier sample, without gradient. The paper chooses one or two
    of the network's blocks for each step; here, each of the stages acts with probability p. SelfNorm and the
    statistics of random boxes are not included.

    Attributes:
        exchange: Source of a channel's new statistics: ``"samples"``, the same channel of another sample (two-instance
            CrossNorm), or ``"channels"``, another channel of the same sample (one-instance CrossNorm), with one random
            order of channels for all samples of a pass.
    """

    key: ClassVar[str] = "crossnorm"
    paper: ClassVar[Paper] = Paper(
        "CrossNorm and SelfNorm for Generalization under Distribution Shifts",
        "Zhiqiang Tang, Yunhe Gao, Yi Zhu, Zhi Zhang, Mu Li, Dimitris Metaxas",
        "IEEE/CVF International Conference on Computer Vision (ICCV)",
        2021,
        "https://arxiv.org/abs/2102.02811",
    )

    exchange: str = choice("samples", "channels")

    def draw(self, samples: int, width: int) -> Draw:
        """The order of channels, ``(A,)``, if they exchange statistics."""
        return (torch.randperm(width),) if self.exchange == "channels" else ()

    def styled(self, feature: Tensor, draw: Draw, partner: Partner) -> Tensor:
        """The features with exchanged statistics, ``(B, A, *spatial)``."""
        own = statistics(feature, correction=1)
        new = permuted_channels(own, *draw) if self.exchange == "channels" else statistics_of_partners(own, partner)
        return modulate(feature, *new, own=own)

    def values_kept(self) -> int:
        """Mean and deviation, if samples exchange them."""
        return STATISTICS_PER_CHANNEL if self.exchange == "samples" else 0
