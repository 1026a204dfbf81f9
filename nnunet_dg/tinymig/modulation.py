"""UFDM: giving a student's features the statistics of a foundation model's features, or random ones.

TinyMIG (ICML 2025), eq. 1-3; and the statistics that its table 5 puts in their place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from nnunet_dg.baselines.crossnorm import crossnorm_channels_statistics, crossnorm_statistics
from nnunet_dg.baselines.dsu import dsu_statistics
from nnunet_dg.baselines.mixstyle import mixstyle_statistics
from nnunet_dg.tensors import Statistics, statistics


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
