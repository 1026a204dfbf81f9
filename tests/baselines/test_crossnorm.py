"""CrossNorm: values of the specification, agreement with a naive loop, properties and gradients."""

import pytest
import torch
from styled_features import X, assert_values, styled

from nnunet_dg.baselines.crossnorm import CrossNorm
from nnunet_dg.errors import SettingsError


def test_hand_value_of_two_instances():
    expected = [
        [[8.291815, 12.763938, 17.236062, 21.708185], [4.870829, 1.129171, 4.870829, 1.129171]],
        [[0.381963, 0.381963, 2.618037, 2.618037], [-0.138090, 0.930955, 2.0, 5.207134]],
    ]
    assert_values(styled(CrossNorm(), X), expected)


def test_hand_value_of_one_instance_whose_channels_are_swapped():
    expected = [
        [[-0.683276, 1.105575, 2.894425, 4.683276], [2.618036, 0.381964, 2.618036, 0.381964]],
        [[1.129170, 1.129170, 4.870830, 4.870830], [9.654780, 12.327390, 15.0, 23.017830]],
    ]
    order = torch.tensor([1, 0])
    assert_values(
        CrossNorm(exchange="channels").styled(X, (order,), lambda values: pytest.fail("no partner")), expected
    )


@pytest.mark.parametrize("exchange", ["samples", "channels"])
@pytest.mark.parametrize("spatial", [(5, 4), (3, 4, 5)])
def test_agrees_with_a_loop(exchange, spatial):
    torch.manual_seed(0)
    x = torch.randn(3, 4, *spatial, dtype=torch.float64) * torch.rand(3, 4, *[1] * len(spatial)) + 1
    method = CrossNorm(exchange=exchange)
    partners, draw = [2, 0, 0], method.draw(3, 4)
    result = method.styled(x, draw, lambda values: values[partners])
    for b in range(3):
        for c in range(4):
            other = x[partners[b], c] if exchange == "samples" else x[b, int(draw[0][c])]
            own = x[b, c]
            naive = (own - own.mean()) / (own.var() + 1e-5).sqrt() * (other.var() + 1e-5).sqrt() + other.mean()
            torch.testing.assert_close(result[b, c], naive)


def test_a_sample_as_its_own_partner_is_the_identity():
    torch.testing.assert_close(styled(CrossNorm(), X, partners=(0, 1)), X)


def test_the_gradient_reaches_the_partner_and_agrees_with_finite_differences():
    x = X.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(styled(CrossNorm(), x)[0].square().sum(), x)
    assert gradient[1].abs().max() > 0.1
    assert torch.autograd.gradcheck(lambda z: styled(CrossNorm(), z), (x,))
    channels = CrossNorm(exchange="channels")
    assert torch.autograd.gradcheck(lambda z: channels.styled(z, (torch.tensor([1, 0]),), None), (x,))


def test_the_order_of_channels_is_random():
    orders = {tuple(CrossNorm(exchange="channels").draw(2, 3)[0].tolist()) for _ in range(100)}
    assert len(orders) == 6
    assert CrossNorm().draw(2, 3) == ()


def test_settings_are_refused_by_name():
    with pytest.raises(SettingsError, match="exchange must be one of samples, channels; got 'boxes'"):
        CrossNorm(exchange="boxes")
