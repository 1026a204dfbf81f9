"""Losses between the features of the same voxels in two views."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from nnunet_dg.tensors import wide


def voxel_contrast(first: Tensor, second: Tensor, temperature: float = 0.1) -> Tensor:
    """InfoNCE: each voxel's features are to be more similar to its own in the other view than to those of all others.

    A. van den Oord, Y. Li, O. Vinyals, Representation Learning with Contrastive Predictive Coding, 2018,
    https://arxiv.org/abs/1807.03748, eq. 4, with cosine similarity, in both directions. Computed in at least float32.

    Args:
        first: Features ``(N, A)`` of N voxels in one view.
        second: Features ``(N, A)`` of the same voxels in the other view.
        temperature: Divisor of the similarities.

    Returns:
        Scalar; ``log(N)`` if all features are equal.

    >>> voxel_contrast(torch.eye(2), torch.eye(2), temperature=1.0)
    tensor(0.3133)
    """
    similarity = F.normalize(wide(first), dim=1) @ F.normalize(wide(second), dim=1).T / temperature
    own = torch.arange(len(similarity), device=similarity.device)
    return (F.cross_entropy(similarity, own) + F.cross_entropy(similarity.T, own)) / 2


def redundancy(first: Tensor, second: Tensor, off_diagonal: float = 1.0) -> Tensor:
    """Barlow Twins: each channel is to agree between the views and to be uncorrelated with the other channels.

    J. Zbontar, L. Jing, I. Misra, Y. LeCun, S. Deny, Barlow Twins: Self-Supervised Learning via Redundancy Reduction,
    ICML 2021, https://arxiv.org/abs/2103.03230, eq. 1, divided by the number of channels. Computed in at least float32.

    Args:
        first: Features ``(N, A)`` of N voxels in one view.
        second: Features ``(N, A)`` of the same voxels in the other view.
        off_diagonal: Weight of the correlations between different channels.

    Returns:
        Scalar, 0 for equal and uncorrelated channels.

    >>> x = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    >>> redundancy(x, x).item() < 1e-6, redundancy(x, -x)
    (True, tensor(4.))
    """
    a, b = (standardized(wide(x)) for x in (first, second))
    correlation = a.T @ b / len(a)
    diagonal = correlation.diagonal()
    agreement = (1 - diagonal).square().sum()
    others = correlation.square().sum() - diagonal.square().sum()
    return (agreement + off_diagonal * others) / len(diagonal)


def standardized(x: Tensor) -> Tensor:
    """The columns of ``(N, A)`` with zero mean and unit variance; constant columns become zero."""
    deviation, mean = torch.std_mean(x, 0, correction=0)
    return (x - mean) / (deviation + 1e-5)
