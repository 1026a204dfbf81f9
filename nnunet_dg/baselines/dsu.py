"""DSU: feature statistics get noise as large as their spread over the batch.

X. Li, Y. Dai, Y. Ge, J. Liu, Y. Shan, L. Duan, Uncertainty Modeling for Out-of-Distribution Generalization, ICLR 2022,
https://arxiv.org/abs/2202.03958.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nnunet_dg.tensors import EPS, Statistics, statistics


def dsu_statistics(feature: Tensor, earlier: Statistics | None = None) -> Statistics:
    """Eq. 4-7 of DSU: a sample's own statistics with noise as large as their spread over the batch.

    The noise is normal. Its deviation, ``(1, A)``, is the unbiased deviation of the statistics over the batch. The
    gradient flows through the statistics. A single sample has no spread and keeps its own statistics.

    Args:
        feature: Feature map, ``(B, A, *spatial)``.
        earlier: Not used.

    Returns:
        Mean and deviation, each ``(B, A)``.

    >>> mean, std = dsu_statistics(torch.tensor([[[1.0, 3.0]]]))  # a single sample keeps its own
    >>> mean.item()
    2.0
    """
    own = statistics(feature)
    if len(feature) == 1:
        return own
    mean, std = (s + torch.randn_like(s) * (s.var(0, correction=1, keepdim=True) + EPS).sqrt() for s in own)
    return mean, std
