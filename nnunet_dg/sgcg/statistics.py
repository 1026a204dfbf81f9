"""Running mean and covariance of each class's features (SgCG, eq. 2 and 3).

SgCG: Semantic-Guided Contrastive Generalization for Medical Image Segmentation, submission to ICLR 2025,
https://openreview.net/search?term=Semantic-Guided+Contrastive+Generalization.
"""

from __future__ import annotations

import torch
from torch import Tensor, distributed, nn

BLOCK = 64  # rows of a block of one class


class ClassStatistics(nn.Module):
    """Count, mean and full covariance of the features of each class.

    `update` merges the features of a step (eq. 2 and 3). With ``m`` new features of mean ``mu_b`` and biased covariance
    ``Sigma_b``, and the class's count ``n`` before the step:

        n~  = (1 - 1 / memory) n                        converges to the features of ``memory`` steps
        n'  = n~ + m,  mu' = (n~ mu + m mu_b) / n'
        Sigma' = (n~ Sigma + m Sigma_b) / n' + n~ m (mu - mu_b)(mu - mu_b)^T / n'^2

    Without ``memory`` and ``max_count`` nothing is forgotten (as published): mean and covariance equal those of all
    features at once and do not depend on how they were split into updates. Under `torch.distributed`, every process
    gets the statistics of the features of all processes. They carry no gradient.

    The buffers ``count (K,)``, ``mean (K, A)`` and ``covariance (K, A, A)`` are float32.

    Args:
        num_classes: Number of classes, K.
        num_features: Number of features, A.
        max_count: Upper limit of a class's count, so that older features lose weight; None: no limit.
        memory: Number of updates after which features have lost 1 - 1/e of their weight, at least 1; None: no decay.
            The counts of absent classes decay as well. A class whose count is below two is not a candidate.

    Raises:
        ValueError: ``max_count`` or ``memory`` is below one.
    """

    count: Tensor
    mean: Tensor
    covariance: Tensor

    def __init__(
        self, num_classes: int, num_features: int, max_count: float | None = None, memory: float | None = None
    ) -> None:
        super().__init__()
        for name, value in (("max_count", max_count), ("memory", memory)):
            if value is not None and not value >= 1:
                raise ValueError(f"{name} must be at least 1, or None for no limit; got {value!r}.")
        self.max_count = max_count
        self.memory = memory
        self.register_buffer("count", torch.zeros(num_classes))
        self.register_buffer("mean", torch.zeros(num_classes, num_features))
        self.register_buffer("covariance", torch.zeros(num_classes, num_features, num_features))

    @property
    def candidates(self) -> Tensor:
        """``(K,)`` bool: classes with at least two features, so that a covariance is defined."""
        return self.count >= 2

    def reset(self) -> None:
        """Set all statistics to zero."""
        for buffer in self.buffers():
            buffer.zero_()

    @torch.no_grad()
    def update(self, features: Tensor, labels: Tensor) -> None:
        """Merge the features of a step into the statistics, in the dtype of the buffers also under autocast.

        A class with a non-finite feature is not updated by this call: nnU-Net skips such a step, and the statistics
        would never recover from it.

        Args:
            features: Features, ``(N, A)``, of any floating dtype.
            labels: Class of each feature, ``(N,)``, integers; features with a label outside 0 ... K-1 are excluded.
        """
        with torch.autocast(features.device.type, enabled=False):
            self._update(features.detach().to(self.mean.dtype), labels)

    def _update(self, features: Tensor, labels: Tensor) -> None:
        num_classes = len(self.count)
        labels = torch.where((labels >= 0) & (labels < num_classes), labels, num_classes).long()
        count, mean = _count_and_mean(features, labels, num_classes)
        scatter = _over_processes(_scatter(features, labels, mean))
        finite = mean.isfinite().all(1) & scatter.isfinite().all(2).all(1)
        count, mean = torch.where(finite, count, 0), torch.where(finite[:, None], mean, 0)
        covariance = torch.where(finite[:, None, None], scatter, 0) / count.clamp(min=1)[:, None, None]
        if self.memory is not None:
            self.count *= 1 - 1 / self.memory
        self._merge(count, mean, covariance)

    def _merge(self, count: Tensor, mean: Tensor, covariance: Tensor) -> None:
        """Eq. 2 and 3, for all classes at once."""
        all_count = self.count + count
        new = torch.where(count > 0, count / all_count.clamp(min=torch.finfo(count.dtype).tiny), 0)[:, None]
        difference = mean - self.mean
        between = new[..., None] * (1 - new[..., None]) * difference[:, :, None] * difference[:, None, :]
        self.covariance += new[..., None] * (covariance - self.covariance) + between
        self.mean += new * difference
        self.count += count
        if self.max_count is not None:
            self.count.clamp_(max=self.max_count)


def _count_and_mean(features: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Count ``(K,)`` and mean ``(K, A)`` over all processes. Labels are 0 ... K; label K is excluded."""
    number = features.new_zeros(num_classes + 1).index_add_(0, labels, features.new_ones(len(labels)))
    total = features.new_zeros(num_classes + 1, features.shape[1]).index_add_(0, labels, features)
    total = _over_processes(torch.cat([number[:, None], total], 1)[:num_classes].contiguous())
    count = total[:, 0]
    return count, total[:, 1:] / count.clamp(min=1)[:, None]


def _scatter(features: Tensor, labels: Tensor, mean: Tensor) -> Tensor:
    """The sum of ``(q - mean)(q - mean)^T`` for each class, ``(K, A, A)``. Labels are 0 ... K; label K is excluded.

    One sort groups the rows by class, and each class is divided into blocks of `BLOCK` rows. The products of the blocks
    are added up per class, a few blocks at a time, so that no tensor is larger than features or result. The number of
    blocks does not depend on the labels: the host does not wait for a GPU.
    """
    classes, width = mean.shape
    if not len(labels):
        return mean.new_zeros(classes, width, width)
    labels, order = labels.sort()
    start = torch.searchsorted(labels, torch.arange(classes + 2, device=labels.device))
    number = start.diff().add(BLOCK - 1) // BLOCK  # blocks of each class
    ends = number.cumsum(0)
    block = torch.arange(len(labels) // BLOCK + classes + 1, device=labels.device)
    of_block = torch.searchsorted(ends, block, right=True).clamp(max=classes)
    first = start[of_block] + BLOCK * (block - (ends - number)[of_block])
    last = start[of_block + 1]
    means = torch.cat([mean, mean.new_zeros(1, width)])
    result = features.new_zeros(classes + 1, width, width)
    for chosen in block.split(max(1, min(len(labels) // BLOCK, max(classes, len(labels) // width)))):
        rows = first[chosen, None] + torch.arange(BLOCK, device=labels.device)
        centered = features[order[rows.clamp(max=len(labels) - 1)]] - means[of_block[chosen], None]
        centered = centered.masked_fill_((rows >= last[chosen, None])[..., None], 0)
        result.index_add_(0, of_block[chosen], centered.mT @ centered)
    return result[:classes].contiguous()


def _over_processes(value: Tensor) -> Tensor:
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(value)
    return value
