"""The cosine schedule per step."""

import pytest
import torch

from nnunet_dg.training.schedules import CosinePerStep


def rates(schedule, optimizer, steps):
    for _ in range(steps):
        yield optimizer.param_groups[0]["lr"]
        schedule.advance()


def make(num_epochs=4, steps_per_epoch=5):
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=123.0)
    return CosinePerStep(optimizer, 2e-4, steps_per_epoch, num_epochs), optimizer


def test_values_computed_by_hand():
    schedule, optimizer = make()
    values = list(rates(schedule, optimizer, 21))
    assert values[0] == pytest.approx(2e-4)
    assert values[10] == pytest.approx(1e-4)  # halfway, the cosine is 0
    assert values[20] == pytest.approx(0, abs=1e-12)


def test_agrees_with_torchs_cosine_annealing():
    schedule, optimizer = make()
    other = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2e-4)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(other, T_max=20)
    for rate in rates(schedule, optimizer, 20):
        assert rate == pytest.approx(other.param_groups[0]["lr"], rel=1e-6)
        other.step()
        reference.step()


def test_a_resumed_training_continues_with_the_rates_of_an_uninterrupted_one():
    schedule, optimizer = make()
    uninterrupted = list(rates(schedule, optimizer, 20))
    resumed, optimizer = make()
    resumed.step(2)
    assert list(rates(resumed, optimizer, 10)) == pytest.approx(uninterrupted[10:])
