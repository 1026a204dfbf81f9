"""Running statistics of each class's features: what a pair from infinitely many would look like (SgCG, eq. 2 and 3)."""

from __future__ import annotations

import torch
from torch import Tensor, distributed, nn


class ClassStatistics(nn.Module):
    """Count, mean and full covariance of the features of each class, over everything that `update` has seen.

    Without a cap they equal the mean and the biased covariance of all features at once, in whatever chunks they came.
    Under `torch.distributed` every process gets the statistics of the features of all of them. They carry no gradient.

    Buffers, float32: ``count (K,)``, ``mean (K, A)``, ``covariance (K, A, A)``.

    Args:
        num_classes: K.
        num_features: A.
        max_count: what a class has seen counts for at most so many features, so that older ones are forgotten; None:
            for all of them.

    Raises:
        ValueError: a cap below one.
    """

    count: Tensor
    mean: Tensor
    covariance: Tensor

    def __init__(self, num_classes: int, num_features: int, max_count: float | None = None) -> None:
        super().__init__()
        if max_count is not None and max_count < 1:
            raise ValueError(f"max_count must be at least 1, or None for no cap; got {max_count!r}.")
        self.max_count = max_count
        self.register_buffer("count", torch.zeros(num_classes))
        self.register_buffer("mean", torch.zeros(num_classes, num_features))
        self.register_buffer("covariance", torch.zeros(num_classes, num_features, num_features))

    @property
    def candidates(self) -> Tensor:
        """``(K,)`` bool: classes with at least two features so far, of which there is a covariance to speak of."""
        return self.count >= 2

    @torch.no_grad()
    def update(self, features: Tensor, labels: Tensor) -> None:
        """Take in ``features (N, A)``, any floating dtype, with ``labels (N,)``; those not in 0 ... K-1 are out.

        In float32 (or what the buffers are), also under autocast. What a class has of this call is left out where one
        of its features is not finite: nnU-Net skips such a step, and the statistics would never recover from it.
        """
        with torch.autocast(features.device.type, enabled=False):
            self._update(features.detach().to(self.mean.dtype), labels)

    def _update(self, features: Tensor, labels: Tensor) -> None:
        classes = range(len(self.count))  # one at a time, so that no second copy of all features is made
        count = _over_processes(torch.stack([(labels == k).sum() for k in classes]).to(features))
        total = _over_processes(torch.stack([features[labels == k].sum(0) for k in classes]))
        mean = total / count.clamp(min=1)[:, None]
        centred = (features[labels == k] - mean[k] for k in classes)
        scatter = _over_processes(torch.stack([c.T @ c for c in centred]))
        finite = mean.isfinite().all(1) & scatter.isfinite().all(2).all(1)
        count, mean = torch.where(finite, count, 0), torch.where(finite[:, None], mean, 0)
        covariance = torch.where(finite[:, None, None], scatter, 0) / count.clamp(min=1)[:, None, None]
        self._merge(count, mean, covariance)

    def _merge(self, count: Tensor, mean: Tensor, covariance: Tensor) -> None:
        """Eq. 2 and 3, for all classes at once."""
        all_count = (self.count + count).clamp(min=1)
        new = (count / all_count)[:, None]
        difference = mean - self.mean
        between = new[..., None] * (1 - new[..., None]) * difference[:, :, None] * difference[:, None, :]
        self.covariance += new[..., None] * (covariance - self.covariance) + between
        self.mean += new * difference
        self.count += count
        if self.max_count is not None:
            self.count.clamp_(max=self.max_count)


def _over_processes(value: Tensor) -> Tensor:
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(value)
    return value
