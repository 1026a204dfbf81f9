"""How far two predictions are apart: the symmetric Kullback-Leibler divergence that SgCG and TinyMIG share."""

from __future__ import annotations

import torch
from torch import Tensor


def symmetric_kl(logits_a: Tensor, logits_b: Tensor, regions: bool = False) -> Tensor:
    """``KL(a || b) + KL(b || a)`` of the class probabilities, summed over classes, averaged over voxels and samples.

    In float32 (or float64, if given) also under autocast. The gradient flows into both.

    Args:
        logits_a: ``(B, K, *spatial)``.
        logits_b: the same shape.
        regions: the channels are regions that may overlap, so each is a Bernoulli variable of its own.
    """
    with torch.autocast(logits_a.device.type, enabled=False):
        a, b = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (logits_a, logits_b))
        if regions:
            return ((a.sigmoid() - b.sigmoid()) * (a - b)).sum(1).mean()
        a, b = a.log_softmax(1), b.log_softmax(1)
        return ((a.exp() - b.exp()) * (a - b)).sum(1).mean()
