"""MixStyle: feature statistics are mixed between samples.

K. Zhou, Y. Yang, Y. Qiao, T. Xiang, Domain Generalization with MixStyle, ICLR 2021, https://arxiv.org/abs/2104.02008.
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
from nnunet_dg.method import Paper, flag, number
from nnunet_dg.tensors import Statistics, modulate, statistics, to_device

EPS = 1e-6  # as in the reference implementation


def mix(own: Statistics, partner: Statistics, share: Tensor) -> Statistics:
    """Eq. 5 and 6 of MixStyle: ``share * own + (1 - share) * partner``, for mean and deviation.

    Args:
        own: Mean and deviation of each sample, each ``(B, A)``.
        partner: Mean and deviation of each sample's partner, each ``(B, A)``.
        share: Share of a sample's own statistics, ``(B, 1)``, in [0, 1].

    >>> one, two = (torch.zeros(1, 1), torch.ones(1, 1)), (torch.ones(1, 1), torch.ones(1, 1))
    >>> mix(one, two, torch.tensor([[0.75]]))
    (tensor([[0.2500]]), tensor([[1.]]))
    """
    mean, std = (share * a + (1 - share) * b for a, b in zip(own, partner, strict=True))
    return mean, std


def draw_share(samples: int, alpha: float, device: torch.device | None = None) -> Tensor:
    """Shares ``(samples, 1)`` from Beta(alpha, alpha).

    >>> draw_share(3, alpha=0.1).shape
    torch.Size([3, 1])
    """
    share: Tensor = torch.distributions.Beta(alpha, alpha).sample((samples, 1))
    return share if device is None else to_device(share, device)


@torch.no_grad()
def mixstyle_statistics(feature: Tensor, earlier: Statistics | None = None, alpha: float = 0.1) -> Statistics:
    """The statistics of each sample mixed with those of another sample, without gradient.

    Args:
        feature: Feature map, ``(B, A, *spatial)``.
        earlier: Statistics of an earlier sample, ``(1, A)`` each, used if the batch has a single sample; default None.
        alpha: Both parameters of the Beta distribution; default 0.1.

    Returns:
        Mean and deviation, each ``(B, A)``.

    >>> mean, std = mixstyle_statistics(torch.rand(2, 3, 8, 8))
    >>> mean.shape, std.requires_grad
    (torch.Size([2, 3]), False)
    """
    own = statistics(feature)
    partner = partner_statistics(own, earlier)
    return mix(own, partner, draw_share(len(feature), alpha, feature.device))


@dataclass(frozen=True)
class MixStyle(FeatureStyle):
    """MixStyle: in training, features of the first encoder stages get mixed statistics of two samples.

    K. Zhou, Y. Yang, Y. Qiao, T. Xiang, Domain Generalization with MixStyle, ICLR 2021,
    https://arxiv.org/abs/2104.02008. Statistics are constants for the gradient. In a batch of one sample, the partner
    is an earlier sample.

    Attributes:
        alpha: Both parameters of the Beta distribution from which each sample's share of its own statistics is drawn.
        other_domains: Whether partners come from other domains, according to ``domains.json``. Without this file, or
            if all samples of the batch are from one domain, partners are any other samples.
    """

    key: ClassVar[str] = "mixstyle"
    paper: ClassVar[Paper] = Paper(
        "Domain Generalization with MixStyle",
        "Kaiyang Zhou, Yongxin Yang, Yu Qiao, Tao Xiang",
        "International Conference on Learning Representations (ICLR)",
        2021,
        "https://arxiv.org/abs/2104.02008",
    )

    alpha: float = number(0.1, above=0, high=1e3)
    other_domains: bool = flag(True)

    def draw(self, samples: int, width: int) -> Draw:
        """Each sample's share of its own statistics, ``(B, 1)``."""
        return (draw_share(samples, self.alpha),)

    def styled(self, feature: Tensor, draw: Draw, partner: Partner) -> Tensor:
        """The features with mixed statistics (eq. 7), ``(B, A, *spatial)``."""
        own = statistics(feature.detach(), EPS, correction=1)
        return modulate(feature, *mix(own, statistics_of_partners(own, partner), *draw), own=own)

    def values_kept(self) -> int:
        """Mean and deviation."""
        return STATISTICS_PER_CHANNEL

    def across_domains(self) -> bool:
        """Whether partners are of other domains, where they are known."""
        return self.other_domains
