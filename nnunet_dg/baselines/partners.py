"""Whose statistics a sample takes: those of another sample of the batch, or of an earlier one."""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor

from nnunet_dg.tensors import Statistics

MOST_EARLIER = 8  # samples


class EarlierSamples:
    """Statistics of the last samples, for steps that have a single sample. In no checkpoint."""

    def __init__(self) -> None:
        self._statistics: deque[Statistics] = deque(maxlen=MOST_EARLIER)

    def remember(self, own: Statistics) -> None:
        """Add the statistics of a sample, ``(1, A)`` each, without gradient."""
        self._statistics.append(own)

    def draw(self) -> Statistics | None:
        """Statistics of one of the earlier samples, at random; None if there is none."""
        if not self._statistics:
            return None
        return self._statistics[int(torch.randint(len(self._statistics), ()))]


def partner_statistics(own: Statistics, earlier: Statistics | None) -> Statistics:
    """For each sample the statistics of another: of the batch in random order, or ``earlier`` for a single sample.

    The order may leave a sample where it is, as in the references.
    """
    mean, std = own
    if len(mean) == 1 and earlier is not None:
        return earlier
    order = torch.randperm(len(mean), device=mean.device)
    return mean[order], std[order]


def partner_order(samples: int, domains: Tensor | None = None) -> Tensor:
    """Another sample for each sample, at random: of another domain where there is one, else any other one.

    A single sample is its own partner. The references permute the batch, which with two samples leaves both where they
    are every second time.

    Args:
        samples: B.
        domains: Domain of each sample, ``(B,)``, integers, on the CPU; None: all are of one domain.

    Returns:
        ``(B,)``, int64, on the CPU.
    """
    order = []
    for i in range(samples):
        others = [j for j in range(samples) if j != i]
        foreign = [j for j in others if domains is not None and domains[j] != domains[i]]
        candidates = foreign or others or [i]
        order.append(candidates[int(torch.randint(len(candidates), ()))])
    return torch.tensor(order)
