"""MixStyle: values of the specification, agreement with a naive loop, properties, gradients, and use in a network."""

import pytest
import torch

from nnunet_dg.baselines.mixstyle import MixStyle, MixStyleTraining, draw_share
from nnunet_dg.errors import SettingsError
from nnunet_dg.method import Batch


class Net(torch.nn.Module):
    """A student with two stages, which multiply by 2 and by 3."""

    widths = (1, 1)

    def __init__(self, domains=(0, 0)):
        super().__init__()
        self.changes, self.before, self.case_domains = {}, [], torch.tensor(domains)

    def change(self, stage, function, always=False, at="stage"):
        assert always
        self.changes[stage] = function

    def before_each_pass(self, draw):
        self.before.append(draw)

    def domains(self, keys):
        return self.case_domains

    def forward(self, x):
        for draw in self.before:
            draw(x)
        for stage, factor in enumerate((2, 3)):
            x = factor * x
            x = self.changes.get(stage, lambda feature: feature)(x)
        return x


def styled(feature, order, share):
    """One call with the given partners and shares in place of random ones."""
    training = MixStyleTraining(MixStyle(stages=(0,)), Net())
    training.draws[0] = (torch.tensor(order), torch.tensor(share)[:, None], torch.zeros(1, 1), torch.ones(1, 1))
    return training.styled(0, feature)


def test_hand_value():
    """Example MS-1: two samples are partners, the shares are 0.9 and 0.25; the gradient is the ratio of deviations."""
    z = torch.tensor([[[1.0, 2, 3, 6]], [[-1, 0, 0, 1]]], requires_grad=True)
    result = styled(z, [1, 0], [0.9, 0.25])
    expected = [[0.824407, 1.762204, 2.7, 5.513389], [0.015688, 2.25, 2.25, 4.484312]]
    torch.testing.assert_close(result[:, 0], torch.tensor(expected), atol=2e-6, rtol=0)
    (gradient,) = torch.autograd.grad(result.sum(), z)
    torch.testing.assert_close(gradient[:, 0, 0], torch.tensor([0.937796, 2.234312]), atol=2e-6, rtol=0)


@pytest.mark.parametrize("spatial", [(5, 4), (3, 4, 5)])
def test_agrees_with_a_loop_over_samples_and_channels(spatial):
    torch.manual_seed(0)
    z = torch.randn(3, 2, *spatial, dtype=torch.float64) * 3 + 1
    order, share = [2, 0, 1], [0.1, 0.5, 0.9]
    result = styled(z, order, share)
    for b in range(3):
        for c in range(2):
            own, other = z[b, c], z[order[b], c]
            mean = share[b] * own.mean() + (1 - share[b]) * other.mean()
            deviation = share[b] * (own.var() + 1e-6).sqrt() + (1 - share[b]) * (other.var() + 1e-6).sqrt()
            naive = deviation * (own - own.mean()) / (own.var() + 1e-6).sqrt() + mean
            torch.testing.assert_close(result[b, c], naive, atol=1e-6, rtol=1e-6)


def test_a_share_of_one_or_a_sample_as_its_own_partner_is_the_identity():
    z = torch.randn(2, 3, 6, 5)
    torch.testing.assert_close(styled(z, [1, 0], [1.0, 1.0]), z, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(styled(z, [0, 1], [0.3, 0.6]), z, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_kept_and_finite(dtype):
    result = styled(torch.randn(2, 3, 8, 8).to(dtype), [1, 0], [0.5, 0.5])
    assert result.dtype == dtype
    assert torch.isfinite(result).all()


def test_gradients_are_finite_on_a_constant_feature():
    z = torch.ones(2, 1, 4, 4, requires_grad=True)
    styled(z, [1, 0], [0.5, 0.5]).sum().backward()
    assert torch.isfinite(z.grad).all()


def test_stages_mix_independently_with_probability_p():
    torch.manual_seed(0)
    training = MixStyleTraining(MixStyle(p=0.3), Net())
    mixed = []
    for _ in range(1000):
        training.draw(torch.zeros(2, 1, 4, 4))
        mixed.append([bool((training.draws[stage][1] != 1).any()) for stage in (0, 1)])
    shares = torch.tensor(mixed).float()
    assert (shares.mean(0) - 0.3).abs().max() < 0.05
    assert (shares.prod(1).mean() - 0.09).abs() < 0.03


def test_shares_have_the_variance_of_the_beta_distribution():
    torch.manual_seed(0)
    share = draw_share(4000, 0.1)
    assert share.shape == (4000, 1)
    assert (share.mean() - 0.5).abs() < 0.03
    assert share.var() == pytest.approx(0.25 / 1.2, abs=0.01)  # Beta(a, a) has variance 1 / (4 (2 a + 1))


@pytest.mark.parametrize(("domains", "expected"), [((0, 1, 1), {1, 2}), ((0, 0, 1), {2})])
def test_partners_are_of_other_domains(domains, expected):
    net = Net(domains)
    training = MixStyleTraining(MixStyle(p=1.0), net)
    data = torch.zeros(3, 1, 4, 4)
    training.augment(Batch(data, data, ("a", "b", "c"), 1))
    found = set()
    for _ in range(60):
        training.draw(torch.zeros(3, 1, 4, 4))
        found.add(int(training.draws[0][0][0]))
    assert found == expected


def test_a_single_sample_gets_the_statistics_of_an_earlier_one():
    net = Net()
    MixStyleTraining(MixStyle(p=1.0, alpha=1e3, stages=(0,)), net)  # shares of one half
    torch.manual_seed(0)
    first, second = torch.randn(1, 1, 50) + 10, torch.randn(1, 1, 50)
    torch.testing.assert_close(net(first), 6 * first, atol=1e-3, rtol=1e-4)
    assert net(second).mean() == pytest.approx(
        3 * (10 + 0), abs=2
    )  # halfway to the mean of the first sample, which stage 0 doubles


def test_both_stages_change_the_output():
    net = Net()
    MixStyleTraining(MixStyle(p=1.0), net)
    assert set(net.changes) == {0, 1}
    x = torch.cat([torch.randn(1, 1, 40), torch.randn(1, 1, 40) * 5 + 3])
    torch.manual_seed(0)
    assert not torch.allclose(net(x), 6 * x)


@pytest.mark.parametrize("stages", [[], [0, 0], [-1], ["0"], [True], [0.5], 1, [64]])
def test_stages_are_a_list_of_different_numbers(stages):
    with pytest.raises(SettingsError, match="stages must be a list of different encoder stages, numbered from 0; got"):
        MixStyle(stages=stages)
    assert MixStyle(stages=[0, 2]).stages == (0, 2)
