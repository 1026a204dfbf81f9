"""UFDM: giving a student's features the statistics of a foundation model's features, or random ones.

TinyMIG (ICML 2025), eq. 1-3; and the statistics that its table 5 puts in their place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from nnunet_dg.tensors import EPS, Statistics, statistics


@torch.no_grad()
def universal_statistics(reference: Tensor, concentration: float = 0.1) -> Statistics:
    """Eq. 2: for each sample and channel the reference's statistics, or uniform ones, without gradient.

    ``lambda ~ Bernoulli(Q)``, ``Q ~ Beta(concentration, concentration)``; where lambda is one, mean and deviation are
    from U(0, 1).

    Args:
        reference: The foundation model's reprogrammed feature, ``(B, A, *any)``.
        concentration: Of the Beta distribution.

    Returns:
        Mean and deviation, each ``(B, A)``.
    """
    mean, std = statistics(reference)
    q = torch.distributions.Beta(concentration, concentration).sample(mean.shape).to(mean.device)
    chance = torch.bernoulli(q).bool()
    return torch.where(chance, torch.rand_like(mean), mean), torch.where(chance, torch.rand_like(std), std)


def _partners(own: Statistics, earlier: Statistics | None) -> Statistics:
    """For each sample the statistics of another: of the batch in random order, or ``earlier`` for a single sample.

    The order may leave a sample where it is, as in the references.
    """
    mean, std = own
    if len(mean) == 1 and earlier is not None:
        return earlier
    order = torch.randperm(len(mean), device=mean.device)
    return mean[order], std[order]


@torch.no_grad()
def mixstyle_statistics(feature: Tensor, earlier: Statistics | None = None, concentration: float = 0.1) -> Statistics:
    """MixStyle (Zhou et al., ICLR 2021, arXiv 2104.02008, eq. 4-6): a sample's own statistics mixed with another's.

    ``share * own + (1 - share) * partner``, ``share ~ Beta(concentration, concentration)`` per sample. No gradient. The
    reference draws a coin for each layer and batch; here the styled pass is always styled.

    Args:
        feature: ``(B, A, *spatial)``.
        earlier: Statistics of an earlier sample, ``(1, A)`` each, the partner where the batch has a single sample.
        concentration: Of the Beta distribution.
    """
    own = statistics(feature)
    partner = _partners(own, earlier)
    share = torch.distributions.Beta(concentration, concentration).sample((len(feature), 1)).to(feature.device)
    mean, std = (share * mine + (1 - share) * other for mine, other in zip(own, partner, strict=True))
    return mean, std


def crossnorm_statistics(feature: Tensor, earlier: Statistics | None = None) -> Statistics:
    """CrossNorm (Tang et al., ICCV 2021, arXiv 2102.02811), two-instance: the statistics of another sample.

    Nothing is detached, except what an ``earlier`` sample left, see `mixstyle_statistics`.
    """
    return _partners(statistics(feature), earlier)


def crossnorm_channels_statistics(feature: Tensor, earlier: Statistics | None = None) -> Statistics:
    """CrossNorm, one-instance: the statistics of another channel of the same sample. Nothing is detached."""
    mean, std = statistics(feature)
    order = torch.rand_like(mean).argsort(1)
    return mean.gather(1, order), std.gather(1, order)


def dsu_statistics(feature: Tensor, earlier: Statistics | None = None) -> Statistics:
    """DSU (Li et al., ICLR 2022, arXiv 2202.03958, eq. 4-7): own statistics with noise as large as their spread.

    The noise is normal, its deviation the unbiased one over the batch, ``(B, A) -> (1, A)``. Nothing is detached. A
    single sample has no spread and keeps its own statistics.
    """
    own = statistics(feature)
    if len(feature) == 1:
        return own
    mean, std = (s + torch.randn_like(s) * (s.var(0, correction=1, keepdim=True) + EPS).sqrt() for s in own)
    return mean, std


@dataclass(frozen=True)
class OwnStatistics:
    """How the styled pass changes a student's own statistics, in UFDM's place (table 5).

    Attributes:
        draw: From a feature ``(B, A, *spatial)`` and, for a single sample, statistics of an earlier one.
        detached: See `modulate`.
        partners: Whether a single sample needs an earlier one.
        needs_batch: Whether a single sample keeps its own statistics.
    """

    draw: Callable[[Tensor, Statistics | None], Statistics]
    detached: bool = False
    partners: bool = False
    needs_batch: bool = False


OWN_STATISTICS = {
    "mixstyle": OwnStatistics(mixstyle_statistics, detached=True, partners=True),
    "crossnorm": OwnStatistics(crossnorm_statistics, partners=True),
    "crossnorm_channels": OwnStatistics(crossnorm_channels_statistics),
    "dsu": OwnStatistics(dsu_statistics, needs_batch=True),
}
