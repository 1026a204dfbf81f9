"""UFDM: gives a student's features the statistics of a foundation model's features, or random ones.

TinyMIG: Transferring Generalization from Vision Foundation Models to Single-Domain Medical Imaging, ICML 2025,
https://proceedings.mlr.press/v267, eq. 1-3, and the alternatives of its table 5.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from nnunet_dg.baselines.crossnorm import crossnorm_channels_statistics, crossnorm_statistics
from nnunet_dg.baselines.dsu import dsu_statistics
from nnunet_dg.baselines.mixstyle import mixstyle_statistics
from nnunet_dg.tensors import Statistics, statistics, to_device


@torch.no_grad()
def universal_statistics(reference: Tensor, concentration: float = 0.1) -> Statistics:
    """Eq. 2 of TinyMIG: for each sample and channel, the reference's statistics or uniform ones, without gradient.

    ``lambda ~ Bernoulli(Q)``, ``Q ~ Beta(concentration, concentration)``; where lambda is one, mean and deviation are
    drawn from U(0, 1).

    Args:
        reference: Reprogrammed feature of the foundation model, ``(B, A, *any)``.
        concentration: Both parameters of the Beta distribution; default 0.1.

    Returns:
        Mean and deviation, each ``(B, A)``.

    >>> mean, std = universal_statistics(torch.rand(2, 3, 8, 8))
    >>> mean.shape, std.requires_grad
    (torch.Size([2, 3]), False)
    """
    mean, std = statistics(reference)
    q = to_device(torch.distributions.Beta(concentration, concentration).sample(mean.shape), mean.device)
    chance = torch.bernoulli(q).bool()
    return torch.where(chance, torch.rand_like(mean), mean), torch.where(chance, torch.rand_like(std), std)


@dataclass(frozen=True)
class OwnStatistics:
    """How the styled pass changes a student's own statistics, in place of UFDM (table 5).

    Attributes:
        draw: Function that returns new statistics, from a feature ``(B, A, *spatial)`` and, for a batch of one sample,
            the statistics of an earlier sample.
        detached: Whether the feature's own statistics are constants for the gradient, see `modulate`.
        partners: Whether a batch of one sample needs an earlier sample.
        needs_batch: Whether the statistics of a batch of one sample are not changed.
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
