"""TriD: values of the specification, agreement with a naive loop, properties and gradients."""

import pytest
import torch
from styled_features import Net, X, assert_values, styled

from nnunet_dg.baselines.trid import TriD

CHOSEN = [[1.0, 0], [0, 1]]
RANDOM = [[0.3, 0.9], [0.5, 0.1]], [[0.8, 0.2], [0.6, 0.4]]


def test_hand_value():
    expected = [
        [[-0.629516, -0.009839, 0.609839, 1.229516], [4.0, 0.0, 4.0, 0.0]],
        [[10.0, 10.0, 20.0, 20.0], [-0.270328, -0.085164, 0.100000, 0.655492]],
    ]
    assert_values(styled(TriD(), X, CHOSEN, *RANDOM), expected)


@pytest.mark.parametrize("spatial", [(5, 4), (3, 4, 5)])
def test_agrees_with_a_loop(spatial):
    torch.manual_seed(0)
    x = torch.randn(3, 2, *spatial, dtype=torch.float64) * 3 + 1
    chosen, mean, std = TriD().draw(3, 2)
    result = styled(TriD(), x, chosen, mean, std)
    assert set(chosen.flatten().tolist()) == {0, 1}
    for b in range(3):
        for c in range(2):
            own = x[b, c]
            naive = (own - own.mean()) / (own.var() + 1e-6).sqrt() * std[b, c] + mean[b, c] if chosen[b, c] else own
            torch.testing.assert_close(result[b, c], naive, check_dtype=False)


def test_without_chosen_channels_nothing_changes():
    torch.testing.assert_close(styled(TriD(), X, torch.zeros(2, 2), *RANDOM), X)


def test_half_of_the_channels_are_chosen_independently_and_get_uniform_statistics():
    torch.manual_seed(0)
    chosen, mean, std = TriD().draw(40, 100)
    assert chosen.shape == mean.shape == std.shape == (40, 100)
    assert chosen.mean() == pytest.approx(0.5, abs=0.05)
    for axis in (0, 1):
        assert 0.02 < chosen.mean(axis).std() < 0.15  # neither all samples nor all channels have the same choice
    assert set(chosen.unique().tolist()) == {0, 1}
    for uniform in (mean, std):
        assert 0 <= uniform.min() < 0.01
        assert 0.99 < uniform.max() <= 1
        assert uniform.mean() == pytest.approx(0.5, abs=0.03)
    assert torch.corrcoef(torch.stack([mean.flatten(), std.flatten()]))[0, 1].abs() < 0.05


def test_the_gradient_is_the_ratio_of_deviations_because_statistics_are_constants():
    x = X.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(styled(TriD(), x, CHOSEN, *RANDOM).sum(), x)
    own = (X.var(2) + 1e-6).sqrt()
    expected = torch.where(torch.tensor(CHOSEN).bool(), torch.tensor(RANDOM[1]) / own, torch.ones(2, 2))
    torch.testing.assert_close(gradient, expected[..., None].expand(2, 2, 4).double())


def test_the_features_own_statistics_are_logged_in_every_epoch():
    net = Net()
    training = TriD(p=1.0).training_module(net)
    x = torch.tensor([[[-1.0, -3]], [[5, 7]]])  # |mean| 2 and 6, deviation 1.41; stage 0 doubles both
    net(x)
    training.end_epoch(0)
    assert net.lines[0] == "TriD, stage 0: the features' own |mean| is 8.00, their deviation 2.83"
    assert len(net.lines) == 2
