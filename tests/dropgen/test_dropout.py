"""Channel dropout: rates, independence, expectation, gradients and accepted probabilities."""

import pytest
import torch

from nnunet_dg.dropgen import ChannelDropout, StructuredDropout
from nnunet_dg.dropgen.dropout import LARGEST_P, annealed


def kept(z):
    """``(B, C)`` bool: channels that are not entirely zero."""
    return z.flatten(2).abs().sum(2) > 0


@pytest.mark.parametrize("shape", [(400, 17, 2, 3), (400, 17, 2, 2, 2)])
@pytest.mark.parametrize("p", [0.25, 0.5, 0.75])
def test_drops_whole_channels_with_probability_p_and_rescales(p, shape):
    torch.manual_seed(0)
    z = torch.rand(shape) + 1
    out = ChannelDropout(p).train()(z)
    keep = kept(out)
    assert keep.float().mean().item() == pytest.approx(1 - p, abs=0.02)
    assert keep[:, 0].float().mean().item() == pytest.approx(1 - p, abs=0.08)  # image channels are dropped as well
    mask = keep.reshape(*keep.shape, *[1] * (z.ndim - 2))
    torch.testing.assert_close(out, z * mask / (1 - p))


def test_channels_and_samples_are_independent():
    torch.manual_seed(0)
    keep = kept(ChannelDropout(0.5).train()(torch.ones(4000, 2, 1, 1))).float()
    assert (keep[:, 0] * keep[:, 1]).mean().item() == pytest.approx(0.25, abs=0.03)
    assert (keep[:-1, 0] * keep[1:, 0]).mean().item() == pytest.approx(0.25, abs=0.03)


def test_keeps_the_expectation():
    torch.manual_seed(0)
    assert ChannelDropout(0.75).train()(torch.ones(20000, 1, 1, 1)).mean().item() == pytest.approx(1.0, abs=0.05)


def test_has_the_distribution_of_torch_dropout3d():
    z = torch.ones(2000, 3, 2, 2, 2)
    torch.manual_seed(0)
    actual, expected = kept(ChannelDropout(0.3).train()(z)), kept(torch.nn.functional.dropout3d(z, 0.3))
    assert actual.sum(1).bincount(minlength=4).div(2000).tolist() == pytest.approx(
        expected.sum(1).bincount(minlength=4).div(2000).tolist(), abs=0.05
    )


def test_is_the_identity_in_eval_mode_and_for_p_zero():
    z = torch.rand(3, 4, 5, 5)
    assert torch.equal(ChannelDropout(0.5).eval()(z), z)
    assert torch.equal(StructuredDropout(0.5, 1).eval()(z), z)
    assert torch.equal(ChannelDropout(0.0).train()(z), z)


def test_the_gradient_is_the_mask():
    z = torch.rand(3, 4, 5, 5, dtype=torch.float64, requires_grad=True)
    out = ChannelDropout(0.5).train()(z)
    out.sum().backward()
    torch.testing.assert_close(z.grad, out.detach() / z.detach())


def test_keeps_the_dtype():
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        out = ChannelDropout(0.5).train()(torch.ones(8, 4, 2, 2, dtype=dtype))
        assert out.dtype == dtype
        assert set(out.unique().tolist()) == {0.0, 2.0}


def test_structured_dropout_drops_the_image_or_all_features_and_never_both():
    torch.manual_seed(0)
    p = 0.5
    out = StructuredDropout(p, num_image_channels=2).train()(torch.ones(4000, 6, 1, 1))
    image, features = kept(out)[:, :2], kept(out)[:, 2:]
    assert torch.equal(image.all(1), image.any(1))
    assert torch.equal(features.all(1), features.any(1))
    assert (image.any(1) | features.any(1)).all()
    assert image.any(1).float().mean().item() == pytest.approx(1 - p / 2, abs=0.03)
    assert features.any(1).float().mean().item() == pytest.approx(1 - p / 2, abs=0.03)
    assert out.mean().item() == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize(
    "p",
    [
        *[-0.1, 0.991, 0.9999999999999999, 1, 1.5, 10**50, "0.5", None, True, float("nan"), float("inf")],
        *[(), (0.5,), (0.6, 0.5), (0.5, 1.0), (False, 0.5), (0.0, None), (float("nan"), 0.5)],
    ],
)
def test_p_outside_the_interval_is_refused(p):
    with pytest.raises(ValueError, match=r"p, the share of .*, must be a probability in \[0, 0\.99\], or .*; got"):
        ChannelDropout(p)
    with pytest.raises(ValueError, match=r"p, the share of .*, must be a probability in \[0, 0\.99\], or .*; got"):
        StructuredDropout(p, 1)


def test_the_largest_p_keeps_the_mean_and_finite_values():
    torch.manual_seed(0)
    out = ChannelDropout(LARGEST_P).train()(torch.ones(400, 1000, 1, 1))
    assert out.unique().tolist() == pytest.approx([0, 100])
    assert out.mean().item() == pytest.approx(1, abs=0.1)


def test_hand_value_of_channel_dropout(monkeypatch):
    """Example DROP-1 of the specification: the first and third channel are kept."""
    monkeypatch.setattr(torch, "rand", lambda *shape, device=None: torch.tensor([[0.9, 0.1, 0.5]]))
    out = ChannelDropout(0.5).train()(torch.tensor([[[1.0, 2], [3, 4], [5, 6]]]))
    assert out.tolist() == [[[2, 4], [0, 0], [10, 12]]]


def test_hand_value_of_structured_dropout(monkeypatch):
    """Example DROP-2: one image channel, and the features are dropped."""
    monkeypatch.setattr(torch, "rand", lambda *shape, device=None: torch.tensor([[[0.1]], [[0.9]]]))
    out = StructuredDropout(0.5, 1).train()(torch.tensor([[[1.0, 2], [3, 4], [5, 6]]]))
    assert out.flatten().tolist() == pytest.approx([1.333333, 2.666667, 0, 0, 0, 0], abs=1e-6)


def test_a_range_draws_the_probability_of_each_sample_uniformly():
    torch.manual_seed(0)
    out = ChannelDropout((0.2, 0.6)).train()(torch.ones(3000, 2000, 1))
    dropped = 1 - kept(out).float().mean(1)
    deciles = dropped.quantile(torch.linspace(0, 1, 5))
    torch.testing.assert_close(deciles[1:-1], torch.tensor([0.3, 0.4, 0.5]), rtol=0, atol=0.02)
    assert 0.15 < deciles[0] < 0.21
    assert 0.59 < deciles[-1] < 0.65
    for sample in out[:20]:  # kept channels are scaled by the rate of their sample
        share = float((sample == 0).float().mean())
        assert float(sample.max()) == pytest.approx(1 / (1 - share), rel=0.1)
    assert out.mean().item() == pytest.approx(1, abs=0.01)


def test_structured_dropout_takes_a_range():
    torch.manual_seed(0)
    out = StructuredDropout((0.2, 0.6), 1).train()(torch.ones(8000, 2, 1))
    assert kept(out)[:, 0].float().mean().item() == pytest.approx(1 - 0.4 / 2, abs=0.02)
    assert kept(out).any(1).all()
    scales = out.amax((1, 2))
    assert (scales >= 1 / 0.9 - 1e-6).all()
    assert (scales <= 1 / 0.7 + 1e-6).all()
    assert out.mean().item() == pytest.approx(1, abs=0.02)


def test_a_range_from_zero_to_zero_and_eval_mode_are_the_identity():
    z = torch.rand(3, 4, 5)
    assert torch.equal(ChannelDropout((0.0, 0.0)).train()(z), z)
    assert torch.equal(ChannelDropout((0.5, 0.9)).eval()(z), z)


def test_annealing_moves_both_ends_linearly_over_the_last_fifth():
    rates = [annealed((0.2, 0.7), 0.1, epoch, 1000) for epoch in range(1000)]
    assert set(rates[:800]) == {(0.2, 0.7)}
    assert rates[-1] == pytest.approx((0.1, 0.1))
    low, high = torch.tensor(rates[799:]).T
    torch.testing.assert_close(low.diff(), torch.full((200,), -0.1 / 200), rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(high.diff(), torch.full((200,), -0.6 / 200), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("epochs", [1, 2, 3, 4])
def test_the_last_epoch_of_a_short_training_has_the_last_rate(epochs):
    assert annealed(0.5, 0.0, epochs - 1, epochs) == pytest.approx((0, 0))
    assert epochs == 1 or annealed(0.5, 0.0, 0, epochs) == (0.5, 0.5)


def test_a_moved_dropout_has_the_new_rate_and_a_state_dict_without_it():
    dropout = ChannelDropout(0.5).train()
    dropout.move(0.0, 0.0)
    z = torch.rand(3, 4, 5)
    assert torch.equal(dropout(z), z)
    dropout.move(0.9, 0.9)
    assert (dropout(torch.ones(200, 20, 1)) == 0).float().mean().item() == pytest.approx(0.9, abs=0.02)
    assert not dropout.state_dict()
    assert not list(dropout.buffers())
