"""CrossNorm: samples or channels exchange their statistics.

Z. Tang, Y. Gao, Y. Zhu, Z. Zhang, M. Li, D. Metaxas, CrossNorm and SelfNorm for Generalization under Distribution
Shifts, ICCV 2021, https://arxiv.org/abs/2102.02811.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nnunet_dg.baselines.partners import partner_statistics
from nnunet_dg.tensors import Statistics, statistics


def crossnorm_statistics(feature: Tensor, earlier: Statistics | None = None) -> Statistics:
    """Two-instance CrossNorm: the statistics of another sample. Nothing is detached.

    Args:
        feature: ``(B, A, *spatial)``.
        earlier: Statistics of an earlier sample, ``(1, A)`` each, the partner where the batch has a single sample.
    """
    return partner_statistics(statistics(feature), earlier)


def crossnorm_channels_statistics(feature: Tensor, earlier: Statistics | None = None) -> Statistics:
    """One-instance CrossNorm: the statistics of another channel of the same sample. Nothing is detached."""
    mean, std = statistics(feature)
    order = torch.rand_like(mean).argsort(1)
    return mean.gather(1, order), std.gather(1, order)
