"""The choice of the sample whose statistics another sample gets."""

import pytest
import torch

from nnunet_dg.mechanisms.partners import EarlierSamples, partner_order


@pytest.mark.parametrize("samples", [2, 3, 5])
def test_partners_are_all_other_samples_equally_often_and_never_the_sample_itself(samples):
    torch.manual_seed(0)
    counts = torch.zeros(samples, samples)
    for _ in range(2000):
        order = partner_order(samples)
        counts[torch.arange(samples), order] += 1
    assert counts.diagonal().sum() == 0
    shares = counts[~torch.eye(samples, dtype=bool)] / 2000
    assert (shares - 1 / (samples - 1)).abs().max() < 0.05


def test_partners_are_of_another_domain_if_the_batch_has_one():
    for _ in range(50):
        assert partner_order(3, torch.tensor([0, 0, 1])).tolist() in ([2, 2, 0], [2, 2, 1])
    assert {tuple(partner_order(2, torch.tensor([4, 4])).tolist()) for _ in range(20)} == {(1, 0)}


def test_a_single_sample_is_its_own_partner():
    assert partner_order(1).tolist() == [0]


def test_the_last_eight_samples_are_remembered():
    earlier = EarlierSamples()
    assert earlier.draw() is None
    for i in range(12):
        earlier.remember((torch.full((1, 1), float(i)), torch.ones(1, 1)))
    assert {int(earlier.draw()[0]) for _ in range(400)} == set(range(4, 12))
