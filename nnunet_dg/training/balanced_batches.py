"""Training batches that contain all domains equally often, drawn by nnU-Net's own data loader."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as host  # noqa: N813, a module

CASES = "cases_by_domain"  # attribute of a dataset that is balanced: the cases of each domain, a list of lists


class BalancedDataLoader(nnUNetDataLoader):
    """nnU-Net's data loader, with the samples of a batch spread evenly over the domains.

    If a batch has fewer samples than there are domains, the domains take turns in random order. If it has more, the
    numbers of samples per domain differ by at most one. Within a domain, all cases are equally likely. Patches,
    foreground oversampling and transforms are nnU-Net's. Each worker process balances its own batches. A dataset
    without the attribute `CASES` is sampled as by nnU-Net.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.cases: list[list[str]] = getattr(self._data, CASES, [])
        self._waiting: list[int] = []

    def get_indices(self) -> Any:
        """The case of each sample of the next batch, ``(B,)``."""
        if not self.cases:
            return super().get_indices()
        domains: list[int] = []
        while len(domains) < self.batch_size:
            if not self._waiting:
                turn = np.random.permutation(len(self.cases)).tolist()
                self._waiting = sorted(turn, key=domains.count)  # domains with the fewest samples in this batch first
            domains.append(self._waiting.pop(0))
        return np.array([np.random.choice(self.cases[domain]) for domain in domains])


def cases_by_domain(cases: list[str], domain_of_case: Mapping[str, int]) -> list[list[str]]:
    """The given cases grouped by domain, without empty domains."""
    domains = sorted({domain_of_case[case] for case in cases})
    return [[case for case in cases if domain_of_case[case] == domain] for domain in domains]


@contextmanager
def balanced_data_loaders() -> Iterator[None]:
    """Inside this context, nnU-Net's trainer creates `BalancedDataLoader`s.

    ``nnUNetTrainer.get_dataloaders`` both refers to the class by name and starts the processes that use the loaders, so
    the name is replaced for the duration of the call.
    """
    original = host.nnUNetDataLoader
    host.nnUNetDataLoader = BalancedDataLoader
    try:
        yield
    finally:
        host.nnUNetDataLoader = original


def is_balanced(augmenter: Any) -> bool:
    """Whether an augmenter returned by `nnUNetTrainer.get_dataloaders` draws balanced batches."""
    loader = getattr(augmenter, "generator", None) or getattr(augmenter, "data_loader", None)
    return isinstance(loader, BalancedDataLoader) and bool(loader.cases)
