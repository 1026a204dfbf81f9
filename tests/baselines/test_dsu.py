"""DSU: values of the specification, agreement with a naive loop, properties and gradients."""

import pytest
import torch
from styled_features import Net, X, assert_values, styled

from nnunet_dg.baselines.dsu import DSU, with_noise
from nnunet_dg.tensors import statistics

NOISE = [[1.0, -1], [0.5, 0]], [[0, 0.5], [-0.25, 1]]


def test_hand_value():
    expected = [
        [[9.545942, 10.545942, 11.545942, 12.545942], [3.338564, -0.752778, 3.338564, -0.752778]],
        [[15.459212, 15.459212, 24.086730, 24.086730], [0.902351, 1.951176, 3.0, 6.146473]],
    ]
    assert_values(styled(DSU(), X, *NOISE), expected)


def test_hand_value_of_the_spread_over_the_batch():
    mean, std = statistics(X, 1e-6, correction=1)
    ones = torch.ones_like(mean)
    assert_values((with_noise(mean, ones) - mean)[:1], [[9.545942, 0.707107]])
    assert_values((with_noise(std, ones) - std)[:1], [[3.169612, 0.105473]])


@pytest.mark.parametrize("spatial", [(5, 4), (3, 4, 5)])
def test_agrees_with_a_loop(spatial):
    torch.manual_seed(0)
    x = torch.randn(3, 2, *spatial, dtype=torch.float64) * torch.rand(3, 2, *[1] * len(spatial)) + 1
    noise = torch.randn(2, 3, 2, dtype=torch.float64)
    result = styled(DSU(), x, *noise)
    for c in range(2):
        means = [x[b, c].mean() for b in range(3)]
        stds = [(x[b, c].var() + 1e-6).sqrt() for b in range(3)]
        spreads = [(torch.stack(values).var() + 1e-6).sqrt() for values in (means, stds)]
        for b in range(3):
            mean, std = means[b] + noise[0, b, c] * spreads[0], stds[b] + noise[1, b, c] * spreads[1]
            torch.testing.assert_close(result[b, c], (x[b, c] - means[b]) / stds[b] * std + mean)


def test_without_noise_nothing_changes():
    torch.testing.assert_close(styled(DSU(), X, torch.zeros(2, 2), torch.zeros(2, 2)), X)


def test_a_negative_deviation_mirrors_the_channel_at_its_mean():
    mirrored = styled(DSU(), X[:, :1], [[0.0], [0]], [[-2 * 1.290995 / 3.169612], [0]])[0]
    assert_values(mirrored, X[0, :1].flip(-1).tolist())


def test_a_single_sample_is_not_changed():
    net = Net()
    DSU(p=1.0).training_module(net)
    x = torch.randn(1, 1, 40)
    assert torch.equal(net(x), 6 * x)


def test_the_noise_is_normal_for_each_sample_and_channel():
    torch.manual_seed(0)
    mean, std = DSU().draw(50, 80)
    assert mean.shape == std.shape == (50, 80)
    for noise in (mean, std):
        assert noise.mean().abs() < 0.05
        assert noise.std() == pytest.approx(1, abs=0.05)
    assert torch.corrcoef(torch.stack([mean.flatten(), std.flatten()]))[0, 1].abs() < 0.05


def test_the_gradient_flows_through_statistics_and_spread():
    x = X.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: styled(DSU(), z, *NOISE), (x,))
    (gradient,) = torch.autograd.grad(styled(DSU(), x, *NOISE)[0].sum(), x)
    assert gradient[1].abs().max() > 0.1
