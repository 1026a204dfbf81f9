import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, zoom

from nnunet_dg.robustness.corruptions import CORRUPTIONS, seed_of

SHAPES = [(1, 10, 12, 8), (3, 1, 16, 20), (2, 15, 17)]


def image(shape=(1, 10, 12, 8), seed=0):
    rng = np.random.default_rng(seed)
    smooth = np.stack([gaussian_filter(rng.standard_normal(shape[1:]), 1) for _ in range(shape[0])])
    return (300 * smooth - 50).astype(np.float32)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_the_identity_changes_nothing_and_change_grows_with_strength(name, shape):
    corruption = CORRUPTIONS[name]
    original = image(shape)
    assert np.array_equal(corruption(original, corruption.identity, 0), original)
    assert corruption.identity in corruption.strengths
    for direction in (1, -1):
        strengths = sorted(s for s in corruption.strengths if direction * (s - corruption.identity) > 0)
        corrupted = [corruption(original, s, seed_of("case", 0)) for s in strengths[::direction]]
        assert all(c.shape == shape and c.dtype == np.float32 and np.isfinite(c).all() for c in corrupted)
        changes = [np.abs(c - original).mean() for c in corrupted]
        growing = np.diff([0, *changes]) if name != "inversion" else np.array(changes)  # inversion need not grow
        assert all(growing > 0), changes


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_patterns_are_reproducible(name):
    corruption, strength = CORRUPTIONS[name], CORRUPTIONS[name].strengths[-1]
    first, again, other = (corruption(image(), strength, seed) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert np.array_equal(first, other) == (name not in ("noise", "bias field"))
    assert seed_of("a", 0) != seed_of("b", 0) != seed_of("b", 1)


def test_gamma_by_hand():
    ramp = np.array([[[10, 12, 14, 18.0]]])  # 0, 1/4, 1/2 and 1 of the range
    assert CORRUPTIONS["gamma"](ramp, 2, 0)[0, 0] == pytest.approx([10, 10.5, 12, 18], abs=1e-4)


def test_inversion_by_hand():
    ramp = np.array([[[10, 12, 14, 18.0]]])
    assert CORRUPTIONS["inversion"](ramp, 1, 0)[0, 0].tolist() == [18, 16, 14, 10]
    assert CORRUPTIONS["inversion"](ramp, 0.5, 0)[0, 0].tolist() == [10, 12, 18, 14]


def test_noise_has_the_given_standard_deviation():
    original = image((1, 40, 40, 40))
    low, high = np.percentile(original, (0.5, 99.5))
    added = CORRUPTIONS["noise"](original, 0.2, 0) - original
    assert added.std() == pytest.approx(0.2 * (high - low), rel=0.02)
    doubled = CORRUPTIONS["noise"](original, 0.4, 0) - original
    assert doubled == pytest.approx(2 * added, abs=0.05)


def test_a_bias_field_is_smooth_and_multiplies_the_intensity_above_the_minimum():
    flat = np.full((1, 24, 24, 24), 150, np.float32)
    flat[0, 0, 0, 0] = 50
    field = np.log((CORRUPTIONS["bias field"](flat, 0.4, 3)[0] - 50)[1:] / 100)
    assert np.ptp(field) > 0.5
    assert np.abs(np.diff(field, axis=1)).max() < 0.25 * np.ptp(field)
    original = image()
    assert (CORRUPTIONS["bias field"](original, 0.8, 3) >= original.min() - 1e-3).all()


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_each_channel_has_its_own_range(name):
    """A channel that is 1000 times as large is changed 1000 times as much."""
    first = image((1, 16, 20))
    corruption = CORRUPTIONS[name]
    both = corruption(np.concatenate([first, 1000 * first[:, ::-1]]), corruption.strengths[-1], 5)
    if name in ("noise", "gibbs"):  # noise differs between channels, and the k-space filter is common to all
        changes = np.abs(both - np.concatenate([first, 1000 * first[:, ::-1]])).mean((1, 2))
        assert changes[1] == pytest.approx(1000 * changes[0], rel=0.5)
        return
    units = corruption(np.concatenate([first, first[:, ::-1]]), corruption.strengths[-1], 5)
    assert both[0] == pytest.approx(units[0], rel=1e-3, abs=1e-2)
    assert both[1] == pytest.approx(1000 * units[1], rel=1e-3, abs=10)


def test_blur_and_low_resolution_are_relative_to_the_finest_spacing():
    """Slices that are ten times as far apart as pixels are not blurred into each other."""
    slices = np.zeros((1, 9, 24, 24), np.float32)
    slices[0, 4, 8:16, 8:16] = 1
    for name, strength in (("blur", 2.0), ("low resolution", 4.0)):
        thick = CORRUPTIONS[name](slices, strength, 0, (10, 1, 1))
        assert thick[0, 3].max() < 1e-3
        assert 0.1 < np.abs(thick[0, 4] - slices[0, 4]).max() < 1
        assert CORRUPTIONS[name](slices, strength, 0, (1, 1, 1))[0, 3].max() > 0.05


def test_gibbs_removes_the_edge_of_k_space():
    original = image((1, 32, 32))
    corrupted = CORRUPTIONS["gibbs"](original, 0.7, 0)
    before, after = (np.fft.fftshift(np.abs(np.fft.fft2(a[0]))) for a in (original, corrupted))
    assert after[16, 16] == pytest.approx(before[16, 16], rel=1e-3)
    assert after[0, 0] < 1e-2 * before[0, 0] + 1e-2
    assert before[0, 0] > 0


def test_low_resolution_agrees_with_averages_over_blocks():
    original = image((1, 8, 8, 8))
    blocks = original[0].reshape(4, 2, 4, 2, 4, 2).mean((1, 3, 5))
    corrupted = CORRUPTIONS["low resolution"](original, 2, 0)[0]
    assert corrupted == pytest.approx(zoom(blocks, 2, order=1, mode="nearest", grid_mode=True), abs=1e-3)


def test_blur_and_gibbs_keep_the_mean():
    original = image()
    for name in ("blur", "gibbs"):
        assert CORRUPTIONS[name](original, 0.5, 0).mean() == pytest.approx(original.mean(), abs=2)


def test_equal_channels_stay_equal():
    gray = image((1, 16, 20))
    for name, corruption in CORRUPTIONS.items():
        if name != "noise":
            colors = corruption(np.repeat(gray, 3, 0), corruption.strengths[-1], 5)
            assert np.allclose(colors[0], colors[2], atol=1e-3), name
