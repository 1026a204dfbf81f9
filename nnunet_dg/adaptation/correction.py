"""Bias correction and joint predictions of stable feature boosting, as functions of probabilities.

C. Eastwood, S. Singh, A. L. Nicolicioiu, M. Vlastelica, J. von Kuegelgen, B. Schoelkopf, Spuriosity Didn't Kill the
Classifier: Using Invariant Predictions to Harness Spurious Features, NeurIPS 2023, https://arxiv.org/abs/2307.09933.

A calibrated stable model f gives pseudo-labels. A model that is fitted to them predicts the distribution of
pseudo-labels, ``u = M eta``, with ``M[j, k] = Pr(pseudo-label j | label k)`` and eta the distribution of labels given
the unstable features. So ``eta = M^-1 u``, and if stable and unstable features are independent given the label,
``Pr(label | both) ~ f eta / pi``, with pi the frequencies of labels. Nothing here has a gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

CLIP = 1e-4


def products(pseudo_labels: Tensor, stable: Tensor) -> Tensor:
    """``sum_v q_j f_k``, the sums that `confusion` divides; those of parts of a volume add up.

    Args:
        pseudo_labels: Probabilities q that the unstable model was fitted to, ``(K, V)``; f itself in the first round.
        stable: Probabilities f of the stable model, ``(K, V)``.

    Returns:
        ``(K, K)``, float64.

    >>> f = torch.tensor([[0.5, 1.0], [0.5, 0.0]])
    >>> products(f, f)
    tensor([[1.2500, 0.2500],
            [0.2500, 0.2500]], dtype=torch.float64)
    """
    return pseudo_labels.double() @ stable.double().T


def confusion(sums: Tensor) -> Tensor:
    """``M[j, k] = Pr(pseudo-label j | label k) = sum_v q_j f_k / sum_v f_k``; columns sum to 1.

    Args:
        sums: `products` of probabilities that sum to 1 at every voxel, ``(K, K)``.

    >>> stable = torch.tensor([[0.9, 0.8, 0.3, 0.2], [0.1, 0.2, 0.7, 0.8]])
    >>> confusion(products(stable, stable)).diagonal()
    tensor([0.7182, 0.6556], dtype=torch.float64)
    """
    return sums / sums.sum(0)


def corrected(unstable: Tensor, matrix: Tensor) -> Tensor:
    """``eta = M^-1 u``, clipped to [1e-4, 1] and normalized: ``(K, V)`` -> ``(K, V)`` in the dtype of M.

    Args:
        unstable: Probabilities u of the unstable model, ``(K, V)``.
        matrix: M, ``(K, K)``, see `confusion`.

    >>> corrected(torch.tensor([[0.5], [0.3], [0.2]]), torch.eye(3))
    tensor([[0.5000],
            [0.3000],
            [0.2000]])
    """
    eta = torch.linalg.solve(matrix, unstable.to(matrix.dtype)).clamp(CLIP, 1)
    return eta / eta.sum(0)


def joint(stable: Tensor, eta: Tensor, pi: Tensor) -> Tensor:
    """``f eta / pi``, normalized over classes: ``(K, V)`` -> ``(K, V)`` in the dtype of eta.

    Args:
        stable: Probabilities f of the stable model, ``(K, V)``.
        eta: `corrected` probabilities of the unstable model, ``(K, V)``.
        pi: Frequencies of the classes, ``(K,)``.

    >>> joint(torch.tensor([[0.8], [0.2]]), torch.tensor([[0.5], [0.5]]), torch.tensor([0.5, 0.5]))
    tensor([[0.8000],
            [0.2000]])
    """
    product = stable.to(eta.dtype) * eta / pi.to(eta.dtype)[:, None]
    return product / product.sum(0)


def corrected_region(unstable: Tensor, matrix: Tensor) -> Tensor:
    """``eta = (u + eps_0 - 1) / (eps_0 + eps_1 - 1)`` of one region, clipped to [1e-4, 1 - 1e-4]: ``(V,) -> (V,)``.

    Args:
        unstable: Probability u of the region according to the unstable model, ``(V,)``.
        matrix: M of the two classes outside and inside, ``(2, 2)``; eps_0 and eps_1 are its diagonal.

    >>> corrected_region(torch.tensor([0.3]), torch.tensor([[0.718182, 0.344444], [0.281818, 0.655556]]))
    tensor([0.0486])
    """
    eps0, eps1 = matrix.diagonal()
    return ((unstable.to(matrix.dtype) + eps0 - 1) / (eps0 + eps1 - 1)).clamp(CLIP, 1 - CLIP)


def joint_region(stable: Tensor, eta: Tensor, pi: Tensor) -> Tensor:
    """``sigmoid(logit f + logit eta - logit pi)`` of one region: ``(V,) -> (V,)`` in the dtype of eta.

    Args:
        stable: Probability f of the region according to the stable model, ``(V,)``.
        eta: Corrected probability of the unstable model, ``(V,)``.
        pi: Frequency of the region, a scalar.

    >>> joint_region(torch.tensor([0.2]), torch.tensor([0.5]), torch.tensor(0.5))
    tensor([0.2000])
    """
    logits = torch.logit(stable.to(eta.dtype), 1e-7) + torch.logit(eta) - torch.logit(pi.to(eta.dtype))
    return logits.sigmoid()
