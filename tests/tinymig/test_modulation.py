"""Feature statistics of TinyMIG's styled pass: UFDM and the alternatives of the paper's table 5."""

import pytest
import torch

from nnunet_dg.tinymig import modulate, universal_statistics
from nnunet_dg.tinymig.modulation import (
    OWN_STATISTICS,
    crossnorm_channels_statistics,
    dsu_statistics,
    mixstyle_statistics,
    statistics,
)

SHAPES = [(5, 6), (7, 4), (4, 5, 6)]


def feature(spatial=(4, 5, 6), channels=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(2, channels, *spatial, generator=generator) + 1


def test_value_computed_by_hand():
    x = torch.tensor([[[[1.0, 3.0]]]])  # mean 2, deviation 1
    styled = modulate(x, torch.tensor([[10.0]]), torch.tensor([[4.0]]))
    torch.testing.assert_close(styled, torch.tensor([[[[6.0, 14.0]]]]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("spatial", SHAPES)
def test_the_result_has_the_given_statistics(spatial):
    mean, std = torch.rand(2, 3), torch.rand(2, 3) + 0.1
    styled = modulate(feature(spatial), mean, std).flatten(2)
    torch.testing.assert_close(styled.mean(2), mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(styled.std(2, correction=0), std, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("spatial", SHAPES)
def test_a_feature_with_its_own_statistics_is_unchanged(spatial):
    x = feature(spatial)
    torch.testing.assert_close(modulate(x, *statistics(x)), x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_kept_and_finite(dtype):
    styled = modulate(feature().to(dtype), torch.rand(2, 3), torch.rand(2, 3))
    assert styled.dtype == dtype
    assert torch.isfinite(styled).all()


def test_gradients_agree_with_finite_differences_and_are_finite_for_constant_features():
    x = feature((3, 2), 2).double().requires_grad_()
    mean, std = torch.rand(2, 2, dtype=torch.double), torch.rand(2, 2, dtype=torch.double)
    assert torch.autograd.gradcheck(modulate, (x, mean, std))
    constant = torch.ones(1, 2, 4, 4, requires_grad=True)
    modulate(constant, torch.rand(1, 2), torch.rand(1, 2)).square().sum().backward()
    assert torch.isfinite(constant.grad).all()


def test_universal_statistics_are_the_references_or_uniform_and_carry_no_gradient():
    reference = (5 + feature(channels=2000)).requires_grad_()
    mean, std = universal_statistics(reference)
    own_mean, own_std = statistics(reference)
    kept = mean == own_mean
    assert torch.equal(kept, std == own_std)  # mean and deviation are replaced together
    assert 0.45 < kept.float().mean() < 0.55  # the mean of Q is one half
    for uniform in (mean[~kept], std[~kept]):
        assert uniform.min() >= 0
        assert uniform.max() <= 1
        assert uniform.mean() == pytest.approx(0.5, abs=0.05)
    both = torch.stack([mean[~kept], std[~kept]])
    assert torch.corrcoef(both)[0, 1].abs() < 0.1  # drawn independently
    assert not mean.requires_grad
    assert not std.requires_grad


def test_mixstyle_stays_between_two_samples():
    x = feature()
    own = torch.cat(statistics(x), 1)
    drawn = torch.stack([torch.cat(mixstyle_statistics(x), 1) for _ in range(50)])
    low, high = own.min(0).values, own.max(0).values
    assert ((drawn >= low - 1e-5) & (drawn <= high + 1e-5)).all()
    assert (drawn - own).abs().amax() > 0.1 * (high - low).max()  # some draws have another sample's statistics
    one = drawn[(drawn - own).abs().amax((1, 2)).argmax()]
    share = ((one - own) / (own.flip(0) - own))[0] if len(own) == 2 else None
    assert share is None or share.max() - share.min() < 1e-3  # a sample has one share for all its statistics


def test_one_instance_crossnorm_exchanges_channels_of_a_sample():
    x = feature(channels=50)
    (mean, std), (own_mean, own_std) = crossnorm_channels_statistics(x), statistics(x)
    assert not torch.equal(mean, own_mean)
    assert torch.equal(mean.sort(1).values, own_mean.sort(1).values)
    assert torch.equal(std.sort(1).values, own_std.sort(1).values)
    pairs = {(float(m), float(s)) for m, s in zip(own_mean[0], own_std[0], strict=True)}
    assert {(float(m), float(s)) for m, s in zip(mean[0], std[0], strict=True)} == pairs  # exchanged in pairs


def test_dsu_noise_has_the_spread_of_the_batch():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, 4000, 3, 3, generator=generator)
    for drawn, own in zip(dsu_statistics(x), statistics(x), strict=True):
        assert (drawn - own).std() == pytest.approx(float(own.var(0, correction=1).mean().sqrt()), rel=0.02)


# 2 samples, 2 channels, 4 voxels. The expected values come from a reference in numpy, which agrees with the published
# code. It uses eps 1e-6 (CrossNorm 1e-5) and unbiased variances.
X = torch.tensor([[[0.0, 1, 2, 3], [4, 0, 4, 0]], [[10, 10, 20, 20], [1, 2, 3, 6]]]).unsqueeze(-1)


def styled(name, x=X):
    own = OWN_STATISTICS[name]
    return modulate(x, *own.draw(x, None), detached=own.detached).squeeze(-1)


def assert_values(actual, expected):
    torch.testing.assert_close(actual, torch.tensor(expected), rtol=1e-4, atol=1e-4)


@pytest.fixture
def swapped(monkeypatch):
    """Random permutations reverse the order."""
    monkeypatch.setattr(torch, "randperm", lambda n, device=None: torch.arange(n).flip(0))


def test_mixstyle_agrees_with_its_reference(swapped, monkeypatch):
    shares = torch.tensor([[0.25], [0.75]])
    monkeypatch.setattr(torch.distributions.Beta, "sample", lambda self, shape: shares)
    expected = [
        [[6.218848, 9.822949, 13.427051, 17.031152], [4.653122, 0.846878, 4.653122, 0.846878]],
        [[7.595491, 7.595491, 15.654509, 15.654509], [0.715478, 1.732739, 2.75, 5.801784]],
    ]
    assert_values(styled("mixstyle"), expected)
    x = X.clone().requires_grad_()
    styled("mixstyle", x).sum().backward()  # statistics are constants, so the gradient is a constant factor
    std = X.squeeze(-1).std(2, correction=0)
    factor = (shares * std + (1 - shares) * std.flip(0)) / std
    torch.testing.assert_close(x.grad.squeeze(-1), factor.unsqueeze(-1).expand(2, 2, 4), rtol=1e-4, atol=1e-4)


def test_two_instance_crossnorm_agrees_with_its_reference_and_has_a_gradient_for_the_partner(swapped):
    expected = [
        [[8.291815, 12.763938, 17.236062, 21.708185], [4.870829, 1.129171, 4.870829, 1.129171]],
        [[0.381963, 0.381963, 2.618037, 2.618037], [-0.13809, 0.930955, 2.0, 5.207134]],
    ]
    assert_values(styled("crossnorm"), expected)
    x = X.clone().requires_grad_()
    styled("crossnorm", x)[0].sum().backward()
    assert x.grad[1].abs().max() > 0.1


def test_one_instance_crossnorm_agrees_with_its_reference(monkeypatch):
    monkeypatch.setattr(torch, "rand_like", lambda x: torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    expected = [
        [[-0.683276, 1.105575, 2.894425, 4.683276], [2.618036, 0.381964, 2.618036, 0.381964]],
        [[1.12917, 1.12917, 4.87083, 4.87083], [9.65478, 12.32739, 15.0, 23.01783]],
    ]
    assert_values(styled("crossnorm_channels"), expected)


def test_dsu_agrees_with_its_reference(monkeypatch):
    noise = [torch.tensor([[1.0, -1.0], [0.5, 0.0]]), torch.tensor([[0.0, 0.5], [-0.25, 1.0]])]
    draws = iter(noise)
    monkeypatch.setattr(torch, "randn_like", lambda x: next(draws))
    expected = [
        [[9.545942, 10.545942, 11.545942, 12.545942], [3.338564, -0.752778, 3.338564, -0.752778]],
        [[15.459212, 15.459212, 24.08673, 24.08673], [0.902351, 1.951176, 3.0, 6.146473]],
    ]
    assert_values(styled("dsu"), expected)


def test_ufdm_agrees_with_its_reference(monkeypatch):
    mask = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    uniform = iter([torch.tensor([[0.3, 0.9], [0.5, 0.1]]), torch.tensor([[0.8, 0.2], [0.6, 0.4]])])
    monkeypatch.setattr(torch, "bernoulli", lambda q: mask)
    monkeypatch.setattr(torch, "rand_like", lambda x: next(uniform))
    reference = torch.tensor([[[1.0, 1, 3, 3], [0, 0, 0, 8]], [[2, 4, 6, 8], [5, 5, 5, 5]]]).unsqueeze(-1)
    expected = [
        [[-0.773308, -0.057769, 0.657769, 1.373308], [5.464099, -1.464099, 5.464099, -1.464099]],
        [[2.76393, 2.76393, 7.23607, 7.23607], [-0.327617, -0.113809, 0.1, 0.741426]],
    ]
    assert_values(modulate(X, *universal_statistics(reference)).squeeze(-1), expected)


@pytest.mark.parametrize("name", OWN_STATISTICS)
def test_a_single_sample_gets_the_statistics_of_an_earlier_one_or_keeps_its_own(name):
    x, earlier = feature()[:1], (torch.full((1, 3), 7.0), torch.full((1, 3), 5.0))
    torch.manual_seed(0)
    own, drawn = statistics(x), [OWN_STATISTICS[name].draw(x, earlier) for _ in range(20)]
    assert all(torch.isfinite(torch.cat(pair)).all() for pair in drawn)
    if name == "crossnorm":
        assert all(torch.equal(m, earlier[0]) and torch.equal(s, earlier[1]) for m, s in drawn)
    elif name == "mixstyle":
        shares = torch.stack([((m - earlier[0]) / (own[0] - earlier[0])) for m, _ in drawn])
        assert shares.min() < 0.1
        assert shares.max() > 0.9
    elif name == "dsu":
        assert all(torch.equal(m, own[0]) and torch.equal(s, own[1]) for m, s in drawn)


@pytest.mark.parametrize("name", OWN_STATISTICS)
def test_own_statistics_have_finite_gradients_for_constant_features(name):
    x = torch.ones(2, 3, 4, 4, requires_grad=True)
    own = OWN_STATISTICS[name]
    modulate(x, *own.draw(x, None), detached=own.detached).square().sum().backward()
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("shape", [(1, 3), (3,), (2, 1)])
def test_statistics_may_be_those_of_all_samples_or_channels(shape):
    x, mean, std = feature(), torch.rand(shape), 1 + torch.rand(shape)
    expected = modulate(x, mean.expand(2, 3), std.expand(2, 3))
    torch.testing.assert_close(modulate(x, mean, std), expected)
