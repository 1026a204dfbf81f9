"""Temperature scaling: one number that calibrates a model's probabilities on labeled voxels.

C. Guo, G. Pleiss, Y. Sun, K. Q. Weinberger, On Calibration of Modern Neural Networks, ICML 2017,
https://arxiv.org/abs/1706.04599.
"""

from __future__ import annotations

import math

from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

LOWEST, HIGHEST = 0.05, 20.0
"""Limits of the temperature. The lowest is reached if every voxel is predicted correctly."""


def log_loss(logits: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
    """Weighted mean of the negative log-likelihood of voxels; a scalar in the dtype of the logits.

    Args:
        logits: Logits of voxels, ``(V, K)``.
        target: Index of the true class, ``(V,)``, int64; or for regions, whether each voxel is in each region,
            ``(V, K)``, bool: K Bernoulli variables.
        weights: Weight of each voxel, ``(V,)``; None: all equal.

    >>> log_loss(torch.tensor([[0.0, 0.0]]), torch.tensor([1]))
    tensor(0.6931)
    """
    if target.ndim == 1:
        losses = F.cross_entropy(logits, target, reduction="none")
    else:
        losses = F.binary_cross_entropy_with_logits(logits, target.to(logits.dtype), reduction="none").sum(1)
    if weights is None:
        return losses.mean()
    return (losses * weights).sum() / weights.sum()


def temperature(logits: Tensor, target: Tensor, weights: Tensor | None = None) -> float:
    """The temperature T in [0.05, 20] that minimizes `log_loss` of ``logits / T``.

    The loss has one minimum, since it is convex in 1 / T. It is searched over ln T, in float64, without gradient.

    Args:
        logits, target, weights: See `log_loss`.

    >>> round(temperature(torch.tensor([[2.0, 0.0]] * 4), torch.tensor([0, 0, 0, 1])), 6)  # 2 / ln 3
    1.820478
    """
    logits = logits.detach().double()
    weights = None if weights is None else weights.double()

    def loss(log_t: float) -> float:
        return float(log_loss(logits / math.exp(log_t), target, weights))

    found = minimize_scalar(
        loss, bounds=(math.log(LOWEST), math.log(HIGHEST)), method="bounded", options={"xatol": 1e-9}
    )
    return math.exp(float(found.x))


def balanced(strata: Tensor) -> Tensor:
    """Weights with which every stratum counts the same: one over the number of its voxels.

    Args:
        strata: Stratum of each voxel, here its label, ``(V,)``, int64.

    Returns:
        ``(V,)``, float64.

    >>> balanced(torch.tensor([0, 0, 0, 2]))
    tensor([0.3333, 0.3333, 0.3333, 1.0000], dtype=torch.float64)
    """
    _, stratum, counts = strata.unique(return_inverse=True, return_counts=True)
    return 1 / counts[stratum].double()
