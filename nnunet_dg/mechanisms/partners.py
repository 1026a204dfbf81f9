"""The choice of the sample whose statistics another sample gets: one of the same batch, or an earlier one."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Generic, TypeVar

import torch
from torch import Tensor

from nnunet_dg.tensors import Statistics

MOST_EARLIER = 8  # number of samples that are remembered
T = TypeVar("T")  # statistics, or other values of a sample


class EarlierSamples(Generic[T]):
    """Statistics of the last samples, for batches of one sample."""

    def __init__(self) -> None:
        self._statistics: deque[T] = deque(maxlen=MOST_EARLIER)

    def remember(self, own: T) -> None:
        """Add the statistics of a sample, without gradient."""
        self._statistics.append(own)

    def state(self) -> list[T]:
        """The statistics, for checkpoints."""
        return list(self._statistics)

    def restore(self, state: Iterable[T]) -> None:
        """Replace the statistics by those of a checkpoint."""
        self._statistics = deque(state, maxlen=MOST_EARLIER)

    def draw(self) -> T | None:
        """Statistics of a random earlier sample; None before the first one."""
        if not self._statistics:
            return None
        return self._statistics[int(torch.randint(len(self._statistics), ()))]


def partner_statistics(own: Statistics, earlier: Statistics | None) -> Statistics:
    """The statistics in random order of samples, or ``earlier`` for a single sample.

    As in the reference implementations, a sample may keep its own statistics.

    Args:
        own: Mean and deviation of each sample, each ``(B, A)``.
        earlier: Statistics of an earlier sample, each ``(1, A)``; None: there is none.

    >>> earlier = torch.zeros(1, 1), torch.ones(1, 1)
    >>> partner_statistics((torch.ones(1, 1), torch.ones(1, 1)), earlier)[0]
    tensor([[0.]])
    """
    mean, std = own
    if len(mean) == 1 and earlier is not None:
        return earlier
    order = torch.randperm(len(mean), device=mean.device)
    return mean[order], std[order]


def partner_order(samples: int, domains: Tensor | None = None) -> Tensor:
    """A random partner for each sample: of another domain if the batch has one, otherwise any other sample.

    A single sample is its own partner. The reference implementations permute the batch instead, so that the two samples
    of a batch keep their own statistics half of the time.

    Args:
        samples: Number of samples, B.
        domains: Domain of each sample, ``(B,)``, integers, on the CPU; None: all samples are of one domain.

    Returns:
        Index of each sample's partner, ``(B,)``, int64, on the CPU.

    >>> partner_order(3, domains=torch.tensor([0, 0, 1]))[:2]
    tensor([2, 2])
    """
    order = []
    for i in range(samples):
        others = [j for j in range(samples) if j != i]
        foreign = [j for j in others if domains is not None and domains[j] != domains[i]]
        candidates = foreign or others or [i]
        order.append(candidates[int(torch.randint(len(candidates), ()))])
    return torch.tensor(order)
