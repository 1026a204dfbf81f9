"""Training batches that show all domains equally often, drawn by nnU-Net's own data loader."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as host  # noqa: N813, a module

CASES = "cases_by_domain"  # attribute of a dataset to balance: the cases of each domain, a list of lists


class BalancedDataLoader(nnUNetDataLoader):
    """nnU-Net's data loader; samples of a batch come from different domains as long as there are enough domains.

    With fewer samples than domains, the domains take turns in random order. With more, the numbers of samples differ by
    at most one. Within a domain, all cases are equally likely. Patches, oversampling of foreground and transforms are
    nnU-Net's. Each process that makes batches balances its own. Datasets that are not to be balanced are read as
    nnU-Net reads them.
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
                self._waiting = sorted(turn, key=domains.count)  # first those with the fewest samples in this batch
            domains.append(self._waiting.pop(0))
        return np.array([np.random.choice(self.cases[domain]) for domain in domains])


def cases_by_domain(cases: list[str], domain_of_case: Mapping[str, int]) -> list[list[str]]:
    """The cases of each domain that has any of these cases."""
    domains = sorted({domain_of_case[case] for case in cases})
    return [[case for case in cases if domain_of_case[case] == domain] for domain in domains]


@contextmanager
def balanced_data_loaders() -> Iterator[None]:
    """Inside, nnU-Net's trainer makes `BalancedDataLoader`s.

    ``nnUNetTrainer.get_dataloaders`` names the class and starts the processes that use the loaders in one go, so the
    name is replaced for the duration of the call.
    """
    original = host.nnUNetDataLoader
    host.nnUNetDataLoader = BalancedDataLoader
    try:
        yield
    finally:
        host.nnUNetDataLoader = original


def is_balanced(augmenter: Any) -> bool:
    """Whether what `nnUNetTrainer.get_dataloaders` returned reads balanced batches."""
    loader = getattr(augmenter, "generator", None) or getattr(augmenter, "data_loader", None)
    return isinstance(loader, BalancedDataLoader) and bool(loader.cases)
