import numpy as np
import pytest
import torch
from torch.nn import functional as F

from nnunet_dg.extractors import build_extractor
from nnunet_dg.extractors.mind import MIND, neighbor_pairs, pooled, summed


def naive_mind(x, radius=1, dilation=2):
    """One voxel, one channel, one patch offset at a time, on a single image (X, Y) or (X, Y, Z)."""
    dims, pairs = x.ndim, neighbor_pairs(x.ndim)
    offsets = np.stack(np.meshgrid(*[range(-radius, radius + 1)] * dims, indexing="ij"), -1).reshape(-1, dims)
    last = np.array(x.shape) - 1

    def value(position):
        return x[tuple(np.clip(position, 0, last))]

    distances = np.zeros((len(pairs), *x.shape))
    for voxel in np.ndindex(*x.shape):
        for channel, (a, b) in enumerate(pairs):
            squares = []
            for offset in offsets:
                center = np.clip(np.array(voxel) + offset, 0, last)
                squares.append((value(center + dilation * np.array(a)) - value(center + dilation * np.array(b))) ** 2)
            distances[(channel, *voxel)] = np.mean(squares)
    similarity = distances - distances.min(0)
    variance = similarity.mean(0)
    variance = np.clip(variance, variance.mean() * 1e-3, variance.mean() * 1e3)
    return np.exp(-similarity / variance)


@pytest.mark.parametrize(("shape", "quiet"), [((7, 6), 1), ((5, 6, 4), 1), ((8, 7), 1e-3)], ids=str)
def test_agrees_with_a_naive_loop(shape, quiet):
    """Also if part of the image is nearly constant, where the variance is clamped."""
    x = torch.rand(shape, dtype=torch.float64)
    x[:4] *= quiet
    got = MIND(len(shape)).features(x[None, None])[0]
    np.testing.assert_allclose(got.numpy(), naive_mind(x.numpy()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 3, 9, 4), (1, 2, 5, 7, 6), (1, 2, 1, 2, 3)])
@pytest.mark.parametrize("radius", [0, 1, 2])
def test_means_of_patches_are_the_same_on_a_cpu_and_on_other_devices(shape, radius):
    x = torch.randn(shape)
    kept = x.clone()
    torch.testing.assert_close(summed(x, radius), pooled(x, radius), rtol=0, atol=1e-6)
    assert torch.equal(x, kept)


def test_features_have_gradients_if_they_are_asked_for():
    x = torch.randn(1, 1, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(MIND(2, dilation=1).features, (x,), eps=1e-7, atol=1e-4)


def test_by_hand_on_a_step_edge():
    # Columns 0 to 3 are dark, 4 to 7 bright; radius 0, dilation 1. At column 3 the neighbors up, down and left are 0,
    # and the right one is 1. So two of four channels, the pairs with the right neighbor, differ by 1, the others by 0.
    x = torch.zeros(1, 1, 6, 8)
    x[..., 4:] = 1
    mind = MIND(2, radius=0, dilation=1).features(x)[0]
    pairs = neighbor_pairs(2)
    for channel, pair in enumerate(pairs):
        # mean distance over the channels is 1/2, so exp(-1 / 0.5) where it differs
        expected = np.exp(-2.0) if (0, 1) in pair else 1.0
        assert mind[channel, 3, 3].item() == pytest.approx(expected)
    assert torch.equal(mind[:, :, 0], torch.ones(4, 6))  # far from the edge all neighbors are equal


def test_has_the_published_number_of_channels():
    assert (MIND(2).out_channels, MIND(3).out_channels) == (4, 12)
    assert build_extractor("mind").out_channels == 12
    assert build_extractor("mind", spatial_dims=2).out_channels == 4
    assert build_extractor("mind")(torch.rand(2, 1, 9, 8)).shape == (2, 4, 9, 8)


@pytest.mark.parametrize("shape", [(16, 15), (9, 10, 11)])
def test_is_invariant_to_contrast_inversion_and_scaling(shape):
    x = torch.rand(2, 1, *shape)
    mind = build_extractor("mind", spatial_dims=len(shape))
    for other in (1 - x, 500 * x + 20, -3 * x):
        torch.testing.assert_close(mind(other), mind(x), rtol=1e-3, atol=1e-3)


def test_channels_are_normalized_and_samples_are_independent():
    x = torch.rand(2, 1, 12, 14, 10) * torch.tensor([1.0, 50.0]).view(2, 1, 1, 1, 1)
    features = build_extractor("mind")(x)
    torch.testing.assert_close(features.mean((2, 3, 4)), torch.zeros(2, 12), atol=1e-4, rtol=0)
    torch.testing.assert_close(features.var((2, 3, 4), unbiased=False), torch.ones(2, 12), atol=1e-2, rtol=0)
    torch.testing.assert_close(features[1:], build_extractor("mind")(x[1:]), rtol=1e-4, atol=1e-4)


def test_constant_patch_gives_zeros():
    assert build_extractor("mind")(torch.full((1, 1, 6, 6, 6), 3.0)).abs().max() == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_nothing(dtype):
    x = torch.rand(1, 1, 10, 10, 10)
    plain = build_extractor("mind")(x)
    with torch.autocast("cpu", dtype=dtype):
        assert torch.equal(build_extractor("mind")(x), plain)


def test_half_precision_is_computed_in_float32():
    x = torch.rand(1, 1, 10, 10, 10).half()
    got = MIND().features(x)
    assert got.dtype == torch.float32
    assert torch.equal(got, MIND().features(x.float()))


def test_is_equivariant_to_translation_away_from_the_border():
    x = F.interpolate(torch.rand(1, 1, 8, 8), scale_factor=4, mode="bilinear")
    mind = MIND(2)
    moved = mind.features(x.roll(3, dims=2))[..., 8:-8, 8:-8]
    torch.testing.assert_close(moved, mind.features(x).roll(3, dims=2)[..., 8:-8, 8:-8], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 2, 8, 8, 8), (1, 1, 8), (2, 8, 8)])
def test_inputs_of_the_wrong_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"MIND takes an input of shape \(B, 1, X, Y\) or \(B, 1, X, Y, Z\); got"):
        MIND()(torch.rand(shape))


def test_options_that_mind_does_not_have_are_refused():
    with pytest.raises(ValueError, match="'mind' has no layers"):
        build_extractor("mind", layer="final")
    with pytest.raises(ValueError, match="'mind' has no weights: leave weights unset"):
        build_extractor("mind", weights="some.pth")
    with pytest.raises(ValueError, match="one of anatomix, anatomix-dev, mind, nnunet, synthetic; got 'mindd'"):
        build_extractor("mindd")
    with pytest.raises(NotImplementedError, match="'anatomix' is 3-D only, but 2-D is needed"):
        build_extractor("anatomix", spatial_dims=2)
