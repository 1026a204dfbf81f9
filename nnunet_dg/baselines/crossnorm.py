"""CrossNorm: samples or channels exchange their feature statistics.

Z. Tang, Y. Gao, Y. Zhu, Z. Zhang, M. Li, D. Metaxas, CrossNorm and SelfNorm for Generalization under Distribution
Shifts, ICCV 2021, https://arxiv.org/abs/2102.02811.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nnunet_dg.baselines.partners import partner_statistics
from nnunet_dg.tensors import Statistics, statistics


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
