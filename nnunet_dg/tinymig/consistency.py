"""CDC (cross-distribution consistency): the prediction does not change with the distribution of the features.

TinyMIG: Transferring Generalization from Vision Foundation Models to Single-Domain Medical Imaging, ICML 2025,
https://proceedings.mlr.press/v267, eq. 4.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from nnunet_dg.tensors import symmetric_kl, wide


def cross_distribution_consistency(
    logits_a: Tensor, logits_b: Tensor, regions: bool = False, divergence: str = "kl"
) -> Tensor:
    """``KL(a || b) + KL(b || a)``, summed over classes, averaged over voxels. The gradient flows into both.

    It is computed in at least float32. Other divergences take its place, see `DIVERGENCES`.

    Args:
        logits_a: Logits of the student, ``(B, K, *spatial)``.
        logits_b: Logits of its styled pass, the same shape.
        regions: Whether the channels are regions that may overlap, so that each is a separate Bernoulli variable;
            default False: the channels are exclusive classes.
        divergence: Divergence, one of `DIVERGENCES`; default ``"kl"``. The others are those of the paper's table 8.

    Raises:
        ValueError: The divergence is unknown.

    >>> student, styled = torch.tensor([[[0.0], [0.0]]]), torch.tensor([[[0.0], [2.0]]])
    >>> cross_distribution_consistency(student, styled)
    tensor(0.7616)
    """
    if divergence not in DIVERGENCES:
        raise ValueError(f"divergence must be one of {', '.join(DIVERGENCES)}; got {divergence!r}.")
    return DIVERGENCES[divergence](logits_a, logits_b, regions)


def _probabilities(logits: Tensor, regions: bool) -> Tensor:
    return wide(logits).sigmoid() if regions else wide(logits).softmax(1)


def _mean_squared(logits_a: Tensor, logits_b: Tensor, regions: bool) -> Tensor:
    return (_probabilities(logits_a, regions) - _probabilities(logits_b, regions)).square().sum(1).mean()


def _jensen_shannon(logits_a: Tensor, logits_b: Tensor, regions: bool) -> Tensor:
    """``(KL(a || m) + KL(b || m)) / 2``, where m is the mean of both probabilities."""
    a, b = (_probabilities(logits, regions) for logits in (logits_a, logits_b))
    total = _divergence_to_mean(a, b)
    return (total + _divergence_to_mean(1 - a, 1 - b) if regions else total).sum(1).mean()


def _divergence_to_mean(a: Tensor, b: Tensor) -> Tensor:
    mean = (a + b) / 2
    return sum((torch.xlogy(p, p.clamp(min=1e-12)) - torch.xlogy(p, mean.clamp(min=1e-12)) for p in (a, b)), a * 0) / 2


def _one_way(logits_a: Tensor, logits_b: Tensor, regions: bool) -> Tensor:
    """``KL(a || b)``."""
    a, b = wide(logits_a), wide(logits_b)
    if regions:
        sides = ((a, b), (-a, -b))
        return sum((x.sigmoid() * (F.logsigmoid(x) - F.logsigmoid(y)) for x, y in sides), a * 0).sum(1).mean()
    a, b = a.log_softmax(1), b.log_softmax(1)
    return (a.exp() * (a - b)).sum(1).mean()


DIVERGENCES: dict[str, Callable[[Tensor, Tensor, bool], Tensor]] = {
    "kl": symmetric_kl,
    "mse": _mean_squared,
    "js": _jensen_shannon,
    "kl_one_way": _one_way,
}
