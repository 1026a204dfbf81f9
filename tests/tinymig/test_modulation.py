import pytest
import torch

from nnunet_dg.tinymig import modulate, universal_statistics
from nnunet_dg.tinymig.modulation import crossnorm_statistics, dsu_statistics, mixstyle_statistics, statistics

SHAPES = [(5, 6), (7, 4), (4, 5, 6)]


def feature(spatial=(4, 5, 6), channels=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(2, channels, *spatial, generator=generator) + 1


def test_by_hand():
    x = torch.tensor([[[[1.0, 3.0]]]])  # mean 2, deviation 1
    styled = modulate(x, torch.tensor([[10.0]]), torch.tensor([[4.0]]))
    torch.testing.assert_close(styled, torch.tensor([[[[6.0, 14.0]]]]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("spatial", SHAPES)
def test_gives_the_statistics_it_was_given(spatial):
    mean, std = torch.rand(2, 3), torch.rand(2, 3) + 0.1
    styled = modulate(feature(spatial), mean, std).flatten(2)
    torch.testing.assert_close(styled.mean(2), mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(styled.std(2, correction=0), std, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("spatial", SHAPES)
def test_its_own_statistics_are_the_identity(spatial):
    x = feature(spatial)
    torch.testing.assert_close(modulate(x, *statistics(x)), x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_what_it_is_and_finite(dtype):
    styled = modulate(feature().to(dtype), torch.rand(2, 3), torch.rand(2, 3))
    assert styled.dtype == dtype
    assert torch.isfinite(styled).all()


def test_gradients_agree_with_differences_and_are_finite_for_constant_features():
    x = feature((3, 2), 2).double().requires_grad_()
    mean, std = torch.rand(2, 2, dtype=torch.double), torch.rand(2, 2, dtype=torch.double)
    torch.Tensor.float, single = torch.Tensor.double, torch.Tensor.float
    try:
        assert torch.autograd.gradcheck(modulate, (x, mean, std))
    finally:
        torch.Tensor.float = single
    constant = torch.ones(1, 2, 4, 4, requires_grad=True)
    modulate(constant, torch.rand(1, 2), torch.rand(1, 2)).square().sum().backward()
    assert torch.isfinite(constant.grad).all()


def test_universal_statistics_are_the_references_or_uniform_and_carry_no_gradient():
    reference = (5 + feature(channels=2000)).requires_grad_()
    mean, std = universal_statistics(reference)
    own_mean, own_std = statistics(reference)
    kept = mean == own_mean
    assert torch.equal(kept, std == own_std)  # both at once
    assert 0.45 < kept.float().mean() < 0.55  # the mean of Q is one half
    for uniform in (mean[~kept], std[~kept]):
        assert uniform.min() >= 0
        assert uniform.max() <= 1
        assert uniform.mean() == pytest.approx(0.5, abs=0.05)
    both = torch.stack([mean[~kept], std[~kept]])
    assert torch.corrcoef(both)[0, 1].abs() < 0.1  # drawn each by itself
    assert not mean.requires_grad
    assert not std.requires_grad


def test_mixstyle_stays_between_two_samples():
    x = feature()
    own = torch.cat(statistics(x), 1)
    drawn = torch.stack([torch.cat(mixstyle_statistics(x), 1) for _ in range(50)])
    low, high = own.min(0).values, own.max(0).values
    assert ((drawn >= low - 1e-5) & (drawn <= high + 1e-5)).all()
    assert (drawn - own).abs().amax() > 0.1 * (high - low).max()  # another sample's, in some draw
    one = drawn[(drawn - own).abs().amax((1, 2)).argmax()]
    share = ((one - own) / (own.flip(0) - own))[0] if len(own) == 2 else None
    assert share is None or share.max() - share.min() < 1e-3  # one share for a sample's channels, mean and deviation


def test_crossnorm_exchanges_channels_of_a_sample():
    x = feature(channels=50)
    (mean, std), (own_mean, own_std) = crossnorm_statistics(x), statistics(x)
    assert not torch.equal(mean, own_mean)
    assert torch.equal(mean.sort(1).values, own_mean.sort(1).values)
    assert torch.equal(std.sort(1).values, own_std.sort(1).values)
    pairs = {(float(m), float(s)) for m, s in zip(own_mean[0], own_std[0], strict=True)}
    assert {(float(m), float(s)) for m, s in zip(mean[0], std[0], strict=True)} == pairs  # a channel's both together


def test_dsu_scatters_around_its_own_as_the_batch_does():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, 4000, 3, 3, generator=generator)
    for drawn, own in zip(dsu_statistics(x), statistics(x), strict=True):
        assert (drawn - own).std() == pytest.approx(float(own.std(0, correction=0).mean()), rel=0.1)
