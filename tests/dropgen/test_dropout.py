"""Channel dropout: rates, independence, expectation, gradients and accepted probabilities."""

import pytest
import torch

from nnunet_dg.dropgen import ChannelDropout, StructuredDropout
from nnunet_dg.dropgen.dropout import LARGEST_P


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
    "p", [-0.1, 0.991, 0.9999999999999999, 1, 1.5, 10**50, "0.5", None, True, float("nan"), float("inf")]
)
def test_p_outside_the_interval_is_refused(p):
    with pytest.raises(ValueError, match=r"p, the share of .*, must be a probability in \[0, 0\.99\]; got"):
        ChannelDropout(p)
    with pytest.raises(ValueError, match=r"p, the share of .*, must be a probability in \[0, 0\.99\]; got"):
        StructuredDropout(p, 1)


def test_the_largest_p_keeps_the_mean_and_finite_values():
    torch.manual_seed(0)
    out = ChannelDropout(LARGEST_P).train()(torch.ones(400, 1000, 1, 1))
    assert out.unique().tolist() == pytest.approx([0, 100])
    assert out.mean().item() == pytest.approx(1, abs=0.1)
