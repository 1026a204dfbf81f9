"""The entropy of predictions, which TENT minimizes.

D. Wang, E. Shelhamer, S. Liu, B. Olshausen, T. Darrell, Tent: Fully Test-Time Adaptation by Entropy Minimization, ICLR
2021, https://arxiv.org/abs/2006.10726.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from nnunet_dg.tensors import wide


def entropy(logits: Tensor, regions: bool = False) -> Tensor:
    """``-sum_k p_k ln p_k``, averaged over voxels and samples, in nats; a scalar in at least float32.

    Its gradient with respect to a logit is ``-p_k (ln p_k + H) / N`` for N voxels. Nothing is detached.

    Args:
        logits: Logits, ``(B, K, *spatial)``, any floating-point type.
        regions: Whether the channels are regions that may overlap: the entropies of K Bernoulli variables are summed;
            default False: the channels are exclusive classes.

    >>> entropy(torch.tensor([[2.0, 0.0, -1.0]]))
    tensor(0.5243)
    >>> entropy(torch.tensor([[2.0, 0.0, -1.0]]), regions=True)
    tensor(1.6407)
    """
    with torch.autocast(logits.device.type, enabled=False):
        logits = wide(logits)
        if regions:
            p = logits.sigmoid()
            return (p * F.softplus(-logits) + (1 - p) * F.softplus(logits)).sum(1).mean()
        log_p = logits.log_softmax(1)
        return -(log_p.exp() * log_p).sum(1).mean()


def divergence(pseudo_labels: Tensor, logits: Tensor, regions: bool = False) -> Tensor:
    """``KL(q || p)`` of soft pseudo-labels q and predictions p, averaged over voxels and samples; at least float32.

    The gradient flows into ``logits`` only.

    Args:
        pseudo_labels: Logits of q, ``(B, K, *spatial)``: their softmax, or sigmoid for regions, is q. Detached.
        logits: Logits of p, the same shape.
        regions: See `entropy`.

    >>> q, p = torch.tensor([[0.9, 0.1]]), torch.tensor([[0.7, 0.3]])
    >>> divergence(q.log(), p.log())
    tensor(0.1163)
    """
    with torch.autocast(logits.device.type, enabled=False):
        target, logits = wide(pseudo_labels.detach()), wide(logits)
        if regions:
            q = target.sigmoid()
            inside = q * (F.logsigmoid(target) - F.logsigmoid(logits))
            outside = (1 - q) * (F.logsigmoid(-target) - F.logsigmoid(-logits))
            return (inside + outside).sum(1).mean()
        log_q = target.log_softmax(1)
        return (log_q.exp() * (log_q - logits.log_softmax(1))).sum(1).mean()
