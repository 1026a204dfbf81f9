"""DSU: feature statistics get noise as large as their spread over the batch.

X. Li, Y. Dai, Y. Ge, J. Liu, Y. Shan, L. Duan, Uncertainty Modeling for Out-of-Distribution Generalization, ICLR 2022,
https://arxiv.org/abs/2202.03958.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from nnunet_dg.mechanisms.feature_style import Draw, FeatureStyle, Partner
from nnunet_dg.method import Paper
from nnunet_dg.tensors import EPS, Statistics, modulate, statistics

EPS_OF_REFERENCE = 1e-6


def with_noise(values: Tensor, noise: Tensor, eps: float = EPS_OF_REFERENCE) -> Tensor:
    """Eq. 4-7 of DSU: values plus noise as large as their spread over the batch.

    The spread is ``sqrt(variance + eps)`` over the samples, ``(1, A)``, with the unbiased variance. The gradient flows
    through the values and the spread.

    Args:
        values: Means or deviations, ``(B, A)``, of at least two samples.
        noise: Standard normal noise, ``(B, A)``.
        eps: Number that is added to the variance; default 1e-6.

    >>> with_noise(torch.tensor([[1.0], [3.0]]), torch.tensor([[0.0], [-1.0]]))
    tensor([[1.0000],
            [1.5858]])
    """
    return values + noise * (values.var(0, correction=1, keepdim=True) + eps).sqrt()


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
    mean, std = (with_noise(s, torch.randn_like(s), EPS) for s in own)
    return mean, std


@dataclass(frozen=True)
class DSU(FeatureStyle):
    """DSU: in training, feature statistics of the first encoder stages get noise as large as their spread over a batch.

    X. Li, Y. Dai, Y. Ge, J. Liu, Y. Shan, L. Duan, Uncertainty Modeling for Out-of-Distribution Generalization, ICLR
    2022, https://arxiv.org/abs/2202.03958. The noise is normal, drawn per sample and channel. The gradient flows
    through all statistics. A negative deviation, which is possible, mirrors the channel's values at the mean. A batch
    of one sample has no spread, so it is not changed. The paper changes features at six places of its network.
    """

    key: ClassVar[str] = "dsu"
    needs_batch: ClassVar[bool] = True
    paper: ClassVar[Paper] = Paper(
        "Uncertainty Modeling for Out-of-Distribution Generalization",
        "Xiaotong Li, Yongxing Dai, Yixiao Ge, Jun Liu, Ying Shan, Ling-Yu Duan",
        "International Conference on Learning Representations (ICLR)",
        2022,
        "https://arxiv.org/abs/2202.03958",
    )

    def draw(self, samples: int, width: int) -> Draw:
        """The noise of mean and deviation, each ``(B, A)``."""
        return torch.randn(samples, width), torch.randn(samples, width)

    def styled(self, feature: Tensor, draw: Draw, partner: Partner) -> Tensor:
        """The features with noisy statistics, ``(B, A, *spatial)``; a single sample as it is."""
        if len(feature) == 1:
            return feature
        own = statistics(feature, EPS_OF_REFERENCE, correction=1)
        mean, std = (with_noise(values, noise) for values, noise in zip(own, draw, strict=True))
        return modulate(feature, mean, std, own=own)
