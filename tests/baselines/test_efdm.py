"""EFDMix: values of the specification, agreement with a naive loop, properties and gradients."""

import pytest
import torch
from styled_features import Net, X, assert_values, styled

from nnunet_dg.baselines.efdm import EFDM, QUANTILES, resampled
from nnunet_dg.errors import SettingsError


def test_hand_value_of_efdm():
    expected = [
        [[10.0, 10.0, 20.0, 20.0], [3.0, 1.0, 6.0, 2.0]],
        [[0.0, 1.0, 2.0, 3.0], [0.0, 0.0, 4.0, 4.0]],
    ]
    (share,) = EFDM(alpha=None).draw(2, 2)
    assert_values(styled(EFDM(), X, share), expected)


def test_hand_value_of_efdmix():
    expected = [
        [[7.5, 7.75, 15.5, 15.75], [3.25, 0.75, 5.5, 1.5]],
        [[7.5, 7.75, 15.5, 15.75], [0.75, 1.5, 3.25, 5.5]],
    ]
    assert_values(styled(EFDM(), X, [[0.25], [0.75]]), expected)


@pytest.mark.parametrize("spatial", [(5, 4), (3, 4, 5)])
def test_agrees_with_a_loop_over_ranks(spatial):
    torch.manual_seed(0)
    x = torch.randn(3, 2, *spatial, dtype=torch.float64).round(decimals=1)  # with equal values
    partners, share = [2, 0, 0], [0.0, 0.3, 0.8]
    result = styled(EFDM(), x, torch.tensor(share)[:, None], partners=partners).flatten(2)
    flat = x.flatten(2).tolist()
    for b in range(3):
        for c in range(2):
            own, other = flat[b][c], sorted(flat[partners[b]][c])
            places = sorted(range(len(own)), key=lambda place, own=own: own[place])  # Python's sort is stable
            for rank, place in enumerate(places):
                expected = share[b] * own[place] + (1 - share[b]) * other[rank]
                assert float(result[b, c, place]) == pytest.approx(expected, abs=1e-6)


def test_the_result_has_the_partners_values():
    x = torch.randn(2, 3, 6, 7)
    result = styled(EFDM(), x, [[0.0], [0]])
    torch.testing.assert_close(result.flatten(2).sort(2).values, x.flip(0).flatten(2).sort(2).values)


def test_a_share_of_one_or_a_sample_as_its_own_partner_is_the_identity():
    x = torch.randn(2, 3, 6, 5)
    torch.testing.assert_close(styled(EFDM(), x, [[1.0], [1]]), x)
    torch.testing.assert_close(styled(EFDM(), x, [[0.0], [0.4]], partners=(0, 1)), x)


def test_the_gradient_is_one_for_the_own_feature_and_zero_for_the_partner():
    x = X.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(styled(EFDM(), x, [[0.25], [0.75]])[0].sum(), x)
    assert torch.equal(gradient, torch.stack([torch.ones(2, 4), torch.zeros(2, 4)]).double())


def test_many_equal_values_keep_the_order_of_their_positions():
    zeros, other = torch.zeros(1, 1, 5000), torch.arange(5000.0).flip(0)[None, None]
    result = styled(EFDM(), torch.cat([zeros, other]), [[0.0], [0]])
    assert torch.equal(result[0, 0], torch.arange(5000.0))


def test_quantiles_are_interpolated_between_ranks():
    ordered = torch.tensor([[[0.0, 1, 5]]])
    torch.testing.assert_close(resampled(ordered, 5), torch.tensor([[[0, 0.5, 1, 3, 5]]]))
    assert resampled(ordered, 3) is ordered
    many = torch.randn(2, 3, 20000).sort(2).values
    again = resampled(resampled(many, QUANTILES), 20000)
    inside = slice(200, -200)  # in the tails, quantiles are far apart
    torch.testing.assert_close(again[..., inside], many[..., inside], atol=0.02, rtol=0)


def test_a_single_sample_has_the_quantiles_of_an_earlier_one():
    net = Net()
    EFDM(p=1.0, stages=(0,), alpha=None).training_module(net)
    torch.manual_seed(0)
    first, second = torch.rand(1, 1, 60, 60) ** 3, torch.randn(1, 1, 60, 60)
    net(first)
    result = net(second) / 6
    torch.testing.assert_close(result.flatten().sort().values, first.flatten().sort().values, atol=0.02, rtol=0)
    assert result.flatten()[second.flatten().argsort()].diff().min() > -1e-6  # voxels keep their ranks


def test_settings_are_refused_by_name():
    with pytest.raises(SettingsError, match=r"alpha must be a number in \(0, 1000\], or null; got 0"):
        EFDM(alpha=0)
