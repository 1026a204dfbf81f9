"""Features that show the place of a voxel in the patch are told from those that show its surroundings."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, gaussian_gradient_magnitude

from nnunet_dg.robustness.position import contrast_measures, default_shift, image_measures, shifted_boxes, unrelated

SHAPES = [(48, 40), (40, 36, 38)]


def subject(shape, seed=0):
    """An anatomy in two contrasts: a smooth random map, and its negative with some noise."""
    rng = np.random.default_rng(seed)
    anatomy = gaussian_filter(rng.standard_normal(shape), 2)
    anatomy /= anatomy.std()
    return {"a": anatomy, "b": -anatomy + 0.1 * rng.standard_normal(shape)}


def local(image):
    """Features of the surroundings, which do not change with the sign of the contrast."""
    scales = [gaussian_gradient_magnitude(image, sigma, mode="nearest") for sigma in (1, 1.25, 1.5)]
    return np.stack([*scales, gaussian_filter(image, 1) ** 2])


def places(image):
    """Features of the coordinates in the patch only."""
    axes = np.meshgrid(*[np.linspace(-1, 1, n) for n in image.shape], indexing="ij")
    return np.stack([np.sin(3 * frequency * axis) for axis in axes for frequency in (1, 2, 3)])


@pytest.mark.parametrize("shape", SHAPES)
def test_patches_have_their_common_region_in_common(shape):
    shift = (6, 3, 0)[: len(shape)]
    numbers = np.arange(np.prod(shape)).reshape(shape)
    first, second, in_first, in_second = shifted_boxes(shape, shift)
    assert numbers[first].shape == numbers[second].shape == tuple(np.subtract(shape, shift))
    common = tuple(slice(s, n - s) for s, n in zip(shift, shape, strict=True))
    np.testing.assert_array_equal(numbers[first][in_first], numbers[common])
    np.testing.assert_array_equal(numbers[second][in_second], numbers[common])


def test_shifts_fit_small_patches():
    assert default_shift((96, 96, 96)) == (8, 5, 3)
    assert default_shift((96, 96)) == (5, 3)
    assert default_shift((12, 8, 2)) == (3, 2, 0)


@pytest.mark.parametrize("shape", SHAPES)
def test_features_of_the_surroundings_survive_a_shift_and_those_of_the_place_do_not(shape):
    images, everywhere = subject(shape), np.ones(shape, bool)
    shift = (9, 7, 8)[: len(shape)]
    seen, placed = (contrast_measures(f, images, everywhere, shift).iloc[0] for f in (local, places))
    assert (seen["first"], seen["second"]) == ("a", "b")
    assert seen["cka_shifted"] > 0.8
    assert seen["recall_shifted"] > 0.1
    assert placed["recall"] > 0.9
    assert placed["recall_shifted"] < 0.05
    assert placed["cka_shifted"] < 0.8 < seen["cka_shifted"]


@pytest.mark.parametrize("shape", SHAPES)
def test_an_unrelated_image_agrees_with_features_of_the_place_only(shape):
    images, everywhere = subject(shape), np.ones(shape, bool)
    seen, placed = (image_measures(f, images, everywhere) for f in (local, places))
    assert seen["image"].tolist() == ["a", "b"]
    assert (seen["cka_unrelated"] < 0.1).all()
    np.testing.assert_allclose(placed["cka_unrelated"], 1)
    assert placed["effective_rank"].between(4, 3 * len(shape)).all()


def test_only_the_foreground_counts():
    """Outside of it, the second contrast is replaced by noise."""
    shape = (40, 40)
    images, foreground = subject(shape), np.zeros(shape, bool)
    foreground[8:32, 8:32] = True
    images["b"] = np.where(foreground, images["b"], np.random.default_rng(1).standard_normal(shape) * 5)

    def pointwise(image):
        return np.stack([image, image**2])

    inside = contrast_measures(pointwise, images, foreground, (4, 4)).iloc[0]
    everywhere = contrast_measures(pointwise, images, np.ones(shape, bool), (4, 4)).iloc[0]
    assert inside["cka_shifted"] > 0.9 > everywhere["cka_shifted"]


def test_a_common_region_without_foreground_is_not_compared():
    shape = (40, 40)
    foreground = np.zeros(shape, bool)
    foreground[:3] = True
    row = contrast_measures(local, subject(shape), foreground, (8, 8)).iloc[0]
    assert np.isnan([row["cka_shifted"], row["recall_shifted"]]).all()
    assert row["recall"] > 0.1


def test_unrelated_noise_is_smooth_and_always_the_same():
    noise = unrelated((30, 30))
    np.testing.assert_array_equal(noise, unrelated((30, 30)))
    assert np.corrcoef(noise[1:].ravel(), noise[:-1].ravel())[0, 1] > 0.9
