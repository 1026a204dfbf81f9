"""MixStyle: values of the specification, agreement with a naive loop, properties and gradients."""

import pytest
import torch
from styled_features import X, assert_values, styled

from nnunet_dg.baselines.mixstyle import MixStyle, draw_share
from nnunet_dg.errors import SettingsError


def mixed(feature, order, share):
    """The features with the given partners and shares in place of random ones."""
    return styled(MixStyle(), feature, torch.tensor(share)[:, None], partners=order)


def test_hand_value():
    """Example MS-1: two samples are partners, the shares are 0.9 and 0.25; the gradient is the ratio of deviations."""
    z = torch.tensor([[[1.0, 2, 3, 6]], [[-1, 0, 0, 1]]], dtype=torch.float64, requires_grad=True)
    result = mixed(z, [1, 0], [0.9, 0.25])
    assert_values(result, [[[0.824407, 1.762204, 2.7, 5.513389]], [[0.015688, 2.25, 2.25, 4.484312]]])
    (gradient,) = torch.autograd.grad(result.sum(), z)
    assert_values(gradient[:, 0, 0], [0.937796, 2.234312])


def test_hand_value_of_the_shared_example():
    expected = [
        [[6.218848, 9.822949, 13.427051, 17.031152], [4.653122, 0.846878, 4.653122, 0.846878]],
        [[7.595491, 7.595491, 15.654509, 15.654509], [0.715478, 1.732739, 2.75, 5.801784]],
    ]
    assert_values(mixed(X, [1, 0], [0.25, 0.75]), expected)


@pytest.mark.parametrize("spatial", [(5, 4), (3, 4, 5)])
def test_agrees_with_a_loop_over_samples_and_channels(spatial):
    torch.manual_seed(0)
    z = torch.randn(3, 2, *spatial, dtype=torch.float64) * 3 + 1
    order, share = [2, 0, 1], [0.1, 0.5, 0.9]
    result = mixed(z, order, share)
    for b in range(3):
        for c in range(2):
            own, other = z[b, c], z[order[b], c]
            mean = share[b] * own.mean() + (1 - share[b]) * other.mean()
            deviation = share[b] * (own.var() + 1e-6).sqrt() + (1 - share[b]) * (other.var() + 1e-6).sqrt()
            naive = deviation * (own - own.mean()) / (own.var() + 1e-6).sqrt() + mean
            torch.testing.assert_close(result[b, c], naive, atol=1e-6, rtol=1e-6)


def test_a_share_of_one_or_a_sample_as_its_own_partner_is_the_identity():
    z = torch.randn(2, 3, 6, 5)
    torch.testing.assert_close(mixed(z, [1, 0], [1.0, 1.0]), z, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(mixed(z, [0, 1], [0.3, 0.6]), z, atol=1e-5, rtol=1e-5)


def test_shares_have_the_variance_of_the_beta_distribution():
    torch.manual_seed(0)
    share = draw_share(4000, 0.1)
    assert share.shape == (4000, 1)
    assert (share.mean() - 0.5).abs() < 0.03
    assert share.var() == pytest.approx(0.25 / 1.2, abs=0.01)  # Beta(a, a) has variance 1 / (4 (2 a + 1))
    (drawn,) = MixStyle(alpha=1e3).draw(5, 3)
    assert drawn.shape == (5, 1)
    assert (drawn - 0.5).abs().max() < 0.1


def test_settings_are_refused_by_name():
    with pytest.raises(SettingsError, match=r"alpha must be a number in \(0, 1000\]; got 0"):
        MixStyle(alpha=0)
    with pytest.raises(SettingsError, match="other_domains must be true or false; got 'yes'"):
        MixStyle(other_domains="yes")
