"""The class-distribution contrastive loss: a closed-form bound of the loss with infinitely many pairs per voxel.

SgCG: Semantic-Guided Contrastive Generalization for Medical Image Segmentation, submission to ICLR 2025,
https://openreview.net/search?term=Semantic-Guided+Contrastive+Generalization.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812


def contrastive_upper_bound(
    features: Tensor,
    labels: Tensor,
    mean: Tensor,
    covariance: Tensor,
    temperature: float,
    candidates: Tensor | None = None,
) -> Tensor:
    """Eq. 11 of SgCG: an upper bound of the contrastive loss with infinitely many positives and negatives (eq. 4).

    With ``logits_k = q.mu_k / tau + q^T Sigma_k q / (2 tau^2)``, it is the cross entropy of the logits plus
    ``q^T Sigma_y q / (2 tau^2)``, averaged over the voxels that have a label. Memory is linear in N. It is computed in
    at least float32, also under autocast.

    Args:
        features: Features q, ``(N, A)``, normalized by the caller. They get the gradient.
        labels: Class y of each voxel, ``(N,)``, integers; voxels outside 0 ... K-1 are excluded.
        mean: Class means, ``(K, A)``; used as constants.
        covariance: Class covariances, ``(K, A, A)``; used as constants.
        temperature: Temperature tau, positive.
        candidates: Classes that take part, ``(K,)`` bool; None: all. Excluded classes are not used as negatives, and
            their voxels contribute zero.

    Returns:
        A scalar; zero, with a zero gradient, if no voxel takes part.

    Raises:
        ValueError: The temperature is not positive.

    >>> q, y = torch.tensor([[1.0, 0.0]]), torch.tensor([0])
    >>> contrastive_upper_bound(q, y, mean=torch.eye(2), covariance=torch.zeros(2, 2, 2), temperature=1.0)
    tensor(0.3133)
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be positive; got {temperature!r}.")
    with torch.autocast(features.device.type, enabled=False):
        q = features.to(torch.promote_types(features.dtype, torch.float32))
        mean, covariance = mean.detach().to(q.dtype), covariance.detach().to(q.dtype)
        labeled = (labels >= 0) & (labels < len(mean))
        y = torch.where(labeled, labels, 0)
        spread: Tensor = _QuadraticForms.apply(q, covariance) / (2 * temperature**2)
        logits = q @ mean.T / temperature + spread
        takes_part = labeled
        if candidates is not None:
            takes_part = labeled & candidates[y]
            # the logits of a voxel whose class is excluded have no effect, but they have to be finite
            logits = logits.masked_fill(~candidates & takes_part[:, None], float("-inf"))
        bound = F.cross_entropy(logits, y, reduction="none") + spread.gather(1, y[:, None]).squeeze(1)
        return torch.where(takes_part, bound, 0).sum() / labeled.sum().clamp(min=1)


class _QuadraticForms(torch.autograd.Function):
    """``q^T Sigma_k q`` for all k: ``(N, A), (K, A, A) -> (N, K)``. Only the inputs are kept for the gradient.

    Outer products ``q q^T`` of a chunk of voxels are multiplied with the covariances of all classes at once. A chunk
    has N / A voxels, so that its outer products take no more memory than the features.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, covariance: Tensor) -> Tensor:
        ctx.save_for_backward(q, covariance)
        matrices = covariance.flatten(1).T
        chunks = [(x[:, :, None] * x[:, None, :]).flatten(1) @ matrices for x in q.split(_chunk(q))]
        return torch.cat(chunks)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        q, covariance = ctx.saved_tensors
        matrices = (covariance + covariance.mT).flatten(1)
        size = _chunk(q)
        chunks = [
            torch.bmm((gradient @ matrices).unflatten(1, covariance.shape[1:]), x[:, :, None]).squeeze(2)
            for x, gradient in zip(q.split(size), gradients[0].split(size), strict=True)
        ]
        return torch.cat(chunks), None


def _chunk(q: Tensor) -> int:
    return max(len(q) // q.shape[1], 1)
