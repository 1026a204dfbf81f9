"""Alpha tuning: a mixture of the logits of a stable and an unstable model.

DropGen's interpretation (S. Diaz et al., Why Invariance is Not Enough for Biomedical Domain Generalization and How to
Fix It, 2026, https://arxiv.org/abs/2604.02564, appendix C.6) of Y. Jiang, V. Veitch, Invariant and Transportable
Representations for Anti-Causal Domain Shifts, NeurIPS 2022, https://arxiv.org/abs/2207.01603.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

ALPHAS = tuple(step / 10 for step in range(11))
"""Values among which alpha is chosen."""


def mixed(stable: Tensor, unstable: Tensor, alpha: float) -> Tensor:
    """``(1 - alpha) h_stable + alpha h_unstable``, a mixture of logits, not of probabilities.

    With alpha 0 or 1 it is one of the inputs itself. The dtype stays; in between, it is computed in float32.

    Args:
        stable, unstable: Logits, any shape.
        alpha: Share of the unstable model, in [0, 1].

    >>> mixed(torch.tensor([2.0, 0.0, -1.0]), torch.tensor([-1.0, 1.0, 0.0]), 0.25)
    tensor([ 1.2500,  0.2500, -0.7500])
    """
    if alpha in (0, 1):
        return unstable if alpha else stable
    return torch.lerp(stable.float(), unstable.float(), alpha).to(stable.dtype)


def best(scores: Mapping[float, float]) -> float:
    """The alpha with the highest score; among equal ones the smallest, which relies least on the unstable model.

    >>> best({0.0: 0.7, 0.1: 0.8, 0.2: 0.8})
    0.1
    """
    return min(scores, key=lambda alpha: (-scores[alpha], alpha))
