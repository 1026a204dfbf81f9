"""The cases that nnU-Net's data loader draws for a batch, with and without domains."""

from collections import Counter

import numpy as np
import pytest
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as host
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunet_dg.training.balanced_batches import CASES, BalancedDataLoader, balanced_data_loaders, cases_by_domain

DOMAIN = {"a0": 0, **{f"b{i}": 1 for i in range(7)}, "c0": 2, "c1": 2}


@pytest.fixture
def loader(tmp_path):
    def make(batch_size, balanced=True, make=BalancedDataLoader):
        np.random.seed(0)
        dataset = nnUNetDatasetBlosc2(str(tmp_path), list(DOMAIN))
        if balanced:
            setattr(dataset, CASES, cases_by_domain(list(DOMAIN), DOMAIN))
        labels = LabelManager({"background": 0, "a": 1}, None)
        return make(dataset, batch_size, (8, 8, 8), (8, 8, 8), labels, oversample_foreground_percent=0.33)

    return make


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 5, 6, 7])
def test_the_samples_of_a_batch_are_spread_evenly_over_the_domains(loader, batch_size):
    balanced = loader(batch_size)
    for _ in range(100):
        domains = Counter(DOMAIN[case] for case in balanced.get_indices())
        numbers = [domains[domain] for domain in range(3)]
        assert sum(numbers) == batch_size
        assert max(numbers) - min(numbers) <= 1


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4])
def test_domains_take_turns_and_cases_of_a_domain_are_equally_likely(loader, batch_size):
    balanced = loader(batch_size)
    drawn = [case for _ in range(6000 // batch_size) for case in balanced.get_indices()]
    domains = Counter(DOMAIN[case] for case in drawn)
    assert max(domains.values()) - min(domains.values()) <= 1
    for case, number in Counter(drawn).items():
        expected = 2000 / Counter(DOMAIN.values())[DOMAIN[case]]
        assert number == pytest.approx(expected, abs=6 * expected**0.5)


def test_foreground_oversampling_is_spread_evenly_over_the_domains(loader):
    """nnU-Net oversamples by the position in the batch; here it is the last sample."""
    balanced = loader(3)
    assert [balanced.get_do_oversample(i) for i in range(3)] == [False, False, True]
    last = Counter(DOMAIN[balanced.get_indices()[-1]] for _ in range(3000))
    assert [last[domain] for domain in range(3)] == pytest.approx([1000] * 3, abs=6 * 1000**0.5)


def test_without_domains_cases_are_drawn_as_by_nnunet(loader):
    for balanced in (True, False):
        cases, plain = loader(4, balanced).get_indices(), loader(4, balanced, nnUNetDataLoader).get_indices()
        assert np.array_equal(cases, plain) is not balanced


def test_nnunets_own_loader_is_restored_afterwards():
    with balanced_data_loaders():
        assert host.nnUNetDataLoader is BalancedDataLoader
    assert host.nnUNetDataLoader is nnUNetDataLoader
