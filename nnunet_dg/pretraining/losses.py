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


def label_contrast(features: Tensor, labels: Tensor, temperature: float = 0.33) -> Tensor:
    """Supervised contrastive loss: voxels of one label are to be similar, those of different labels are not.

    P. Khosla et al., Supervised Contrastive Learning, NeurIPS 2020, https://arxiv.org/abs/2004.11362, eq. 2, the mean
    over all voxels that have a partner. Computed in at least float32.

    Args:
        features: Features ``(N, A)``, of both views together.
        labels: Labels ``(N,)``, int64.
        temperature: Divisor of the cosine similarities.

    Returns:
        Scalar, 0 if no two voxels have the same label.
    """
    unit = F.normalize(wide(features), dim=1)
    itself = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    similarity = (unit @ unit.T / temperature).masked_fill(itself, float("-inf"))
    logarithm = similarity.log_softmax(1).masked_fill(itself, 0)
    positive = (labels[:, None] == labels) & ~itself
    partners = positive.sum(1)
    per_voxel = -(logarithm * positive).sum(1) / partners.clamp_min(1)
    return (per_voxel * (partners > 0)).sum() / (partners > 0).sum().clamp_min(1)
