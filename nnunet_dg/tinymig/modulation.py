"""UFDM: giving a student's features the statistics of a foundation model's, or of chance (TinyMIG, eq. 1-3)."""

from __future__ import annotations

import torch
from torch import Tensor

EPS = 1e-5


def statistics(feature: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and ``sqrt(variance + 1e-5)`` over the spatial axes: ``(B, A, *spatial) -> (B, A), (B, A)``, float32."""
    axes = tuple(range(2, feature.ndim))
    variance, mean = torch.var_mean(feature.float(), axes, correction=0)
    return mean, (variance + EPS).sqrt()


def modulate(feature: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Eq. 3: the feature with other statistics, per sample and channel; its own give the feature back.

    Computed in float32, returned in the feature's dtype. The gradient flows into the feature, through its own
    statistics as well, and into the given ones if they ask for it.

    Args:
        feature: ``(B, A, *spatial)``.
        mean: ``(B, A)``.
        std: ``(B, A)``, as `statistics` makes it.
    """
    own_mean, own_std = statistics(feature)
    shape = (*feature.shape[:2], *[1] * (feature.ndim - 2))
    own_mean, own_std, mean, std = (s.reshape(shape) for s in (own_mean, own_std, mean, std))
    return (std * (feature.float() - own_mean) / own_std + mean).to(feature.dtype)


@torch.no_grad()
def universal_statistics(reference: Tensor, concentration: float = 0.1) -> tuple[Tensor, Tensor]:
    """Eq. 2: for each sample and channel the reference's statistics, or uniform ones, without gradient.

    ``lambda ~ Bernoulli(Q)``, ``Q ~ Beta(concentration, concentration)``; where lambda is one, mean and deviation are
    from U(0, 1).

    Args:
        reference: the foundation model's reprogrammed feature, ``(B, A, *spatial)``.
        concentration: of the Beta distribution.

    Returns:
        Mean and deviation, each ``(B, A)``.
    """
    mean, std = statistics(reference)
    q = torch.distributions.Beta(concentration, concentration).sample(mean.shape).to(mean.device)
    chance = torch.bernoulli(q).bool()
    return torch.where(chance, torch.rand_like(mean), mean), torch.where(chance, torch.rand_like(std), std)


@torch.no_grad()
def mixstyle_statistics(feature: Tensor, concentration: float = 0.1) -> tuple[Tensor, Tensor]:
    """An ablation: the student's own statistics mixed with those of another sample (MixStyle, Zhou et al., 2021)."""
    mean, std = statistics(feature)
    other = torch.randperm(len(mean), device=mean.device)
    share = torch.distributions.Beta(concentration, concentration).sample((len(mean), 1)).to(mean.device)
    return share * mean + (1 - share) * mean[other], share * std + (1 - share) * std[other]


@torch.no_grad()
def crossnorm_statistics(feature: Tensor) -> tuple[Tensor, Tensor]:
    """An ablation: the statistics of another channel of the same sample (CrossNorm within one, Tang et al., 2021)."""
    mean, std = statistics(feature)
    order = torch.rand_like(mean).argsort(1)
    return mean.gather(1, order), std.gather(1, order)


@torch.no_grad()
def dsu_statistics(feature: Tensor) -> tuple[Tensor, Tensor]:
    """An ablation: the student's own statistics with Gaussian noise as large as their spread in the batch (DSU)."""
    mean, std = statistics(feature)
    noisy = [s + torch.randn_like(s) * (s.var(0, correction=0, keepdim=True) + EPS).sqrt() for s in (mean, std)]
    return noisy[0], noisy[1]


OWN_STATISTICS = {"mixstyle": mixstyle_statistics, "crossnorm": crossnorm_statistics, "dsu": dsu_statistics}  # table 5
