import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from nnunet_dg.robustness.probe import CHANGES, probe


def cases(count, seed):
    """A bright square structure in a darker, textured image."""
    rng = np.random.default_rng(seed)
    result = []
    for _ in range(count):
        mask = np.zeros((24, 24), bool)
        at = rng.integers(2, 14, 2)
        mask[at[0] : at[0] + 8, at[1] : at[1] + 8] = True
        result.append((gaussian_filter(rng.standard_normal(mask.shape), 1) + 2.5 * mask, mask))
    return result


def test_intensity_finds_a_bright_structure_and_is_misled_by_inversion():
    areas = probe(lambda image: image[None], cases(4, 0), cases(4, 1))
    assert list(areas) == ["plain", "inverted", "gamma 3", "wave", "bias", "noise"]
    assert areas["plain"] > 0.95
    assert areas["inverted"] == pytest.approx(1 - areas["plain"], abs=1e-6)
    assert areas["gamma 3"] == pytest.approx(areas["plain"], abs=1e-6)
    assert areas["noise"] < areas["plain"]
    assert areas["bias"] != areas["plain"]


def test_features_that_do_not_change_keep_their_area_and_useless_ones_have_a_half():
    truth = {image.tobytes(): mask for image, mask in cases(3, 0)}
    assert len(truth) == 3
    areas = probe(lambda image: np.abs(image - np.median(image))[None], cases(4, 0), cases(4, 1))
    assert areas["inverted"] == pytest.approx(areas["plain"], abs=1e-6)
    rng = np.random.default_rng(0)
    useless = probe(lambda image: rng.standard_normal((3, *image.shape)), cases(6, 0), cases(6, 1))
    assert all(value == pytest.approx(0.5, abs=0.12) for value in useless.values())


def test_changes_by_hand():
    image, rng = np.array([[0.0, 0.5], [1 / 6, 1.0]]), np.random.default_rng(0)
    np.testing.assert_allclose(CHANGES["inverted"](image, rng), [[1, 0.5], [5 / 6, 0]])
    np.testing.assert_allclose(CHANGES["gamma 3"](image, rng), [[0, 0.125], [1 / 216, 1]])
    np.testing.assert_allclose(CHANGES["wave"](image, rng), [[0, -1], [1, 0]], atol=1e-12)
    noise = CHANGES["noise"](np.zeros((200, 200)), rng)
    assert noise.std() == pytest.approx(0.1, rel=0.03)
    factor = np.log(CHANGES["bias"](np.ones((60, 60)), rng))
    assert factor.std() == pytest.approx(0.4, rel=1e-6)
