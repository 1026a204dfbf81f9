"""Contrasts, defects and pairs of views by their statistics."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from scipy.stats import spearmanr

from nnunet_dg.synthesis import Draws, draw_pair
from nnunet_dg.synthesis.contrasts import draw_contrast, remap
from nnunet_dg.synthesis.defects import bias_field, blur, draw_defects, gamma, low_resolution, noise
from nnunet_dg.synthesis.smooth import smooth_fields

SHAPES = [(32, 24), (16, 20, 12)]


def scene(shape):
    labels = (torch.arange(shape[0]) * 4 // shape[0]).reshape(-1, *[1] * (len(shape) - 1)).expand(shape).contiguous()
    return labels, smooth_fields(shape, 3.0, 3, Draws(9))


@pytest.mark.parametrize("shape", SHAPES)
def test_contrasts_of_one_scene_are_unrelated_in_their_means(shape):
    labels, textures = scene(shape)
    images = [draw_contrast(labels, textures, 4, Draws(0, key)) for key in range(60)]
    means = torch.stack([torch.stack([image[labels == k].mean() for k in range(1, 4)]) for image in images])
    assert abs(np.corrcoef(means.T)[~np.eye(3, dtype=bool)]).max() < 0.5
    assert means.mean() == pytest.approx(0.5, abs=0.1)
    assert means.std() == pytest.approx(12**-0.5, abs=0.08)
    black = torch.tensor([(image[labels == 0] == 0).all() for image in images])
    assert black.float().mean() == pytest.approx(0.7, abs=0.2)


def test_contrasts_share_texture_of_either_sign():
    """Within a label, two contrasts correlate in magnitude, in both signs."""
    labels, textures = scene((32, 24))
    images = [draw_contrast(labels, textures, 4, Draws(0, key))[labels == 2] for key in range(40)]
    correlations = torch.tensor([np.corrcoef(a, b)[0, 1] for a, b in zip(images[::2], images[1::2], strict=True)])
    assert correlations.abs().mean() > 0.35
    assert correlations.min() < -0.3
    assert correlations.max() > 0.3


def test_a_contrast_has_a_texture_of_its_own():
    """Without common textures, what varies within a label is the contrast's own, and differs between contrasts."""
    labels, textures = scene((32, 24))
    images = [draw_contrast(labels, textures[:0], 4, Draws(0, key))[labels == 2] for key in range(40)]
    assert 0.005 < np.mean([image.std() for image in images]) < 0.06
    correlations = [np.corrcoef(a, b)[0, 1] for a, b in zip(images[::2], images[1::2], strict=True)]
    assert abs(np.mean(correlations)) < 0.2


def test_a_remap_is_a_function_of_intensity_that_need_not_be_monotone():
    image = torch.linspace(0, 5, 400).reshape(20, 20)
    curves = [remap(image, Draws(0, key)) for key in range(30)]
    assert all(torch.equal(remap(image.flip(0), Draws(0, key)), c.flip(0)) for key, c in enumerate(curves))
    assert all(c.min() >= 0 and c.max() <= 1 for c in curves)
    monotone = [abs(spearmanr(image.flatten(), c.flatten())[0]) > 0.999 for c in curves]
    assert sum(monotone) < 10


@pytest.mark.parametrize("shape", SHAPES)
def test_a_bias_field_is_a_smooth_positive_factor(shape):
    image = torch.rand(shape) + 0.5
    assert torch.equal(bias_field(image, 0.0, Draws(0)), image)
    factor = torch.log(bias_field(image, 0.3, Draws(0)) / image)
    assert factor.std(correction=0) == pytest.approx(0.3, rel=1e-3)
    assert (factor[1:] - factor[:-1]).abs().max() < 0.2


@pytest.mark.parametrize("shape", SHAPES)
def test_blur_agrees_with_scipys(shape):
    image = torch.rand(shape)
    sigmas = [0.8, 0.0, 1.3][: len(shape)]
    truncate = 10.0  # scipy cuts at truncate * sigma, rounded; compare away from differences of the cut
    expected = gaussian_filter(image.numpy(), sigmas, mode="nearest", truncate=truncate)
    np.testing.assert_allclose(blur(image, sigmas).numpy(), expected, atol=3e-3)
    torch.testing.assert_close(blur(torch.ones(shape), sigmas), torch.ones(shape))


@pytest.mark.parametrize("shape", SHAPES)
def test_low_resolution_removes_detail_along_its_axis_only(shape):
    image = torch.rand(shape)
    factors = [1.0] * len(shape)
    torch.testing.assert_close(low_resolution(image, factors), image)
    factors[0] = 4.0
    coarse = low_resolution(image, factors)
    assert (coarse[1:] - coarse[:-1]).std() < 0.35 * (image[1:] - image[:-1]).std()
    constant = torch.rand(1, *shape[1:]).expand(shape)
    torch.testing.assert_close(low_resolution(constant, factors), constant)


def test_noise_has_its_deviation_and_rician_noise_its_mean():
    plain = noise(torch.zeros(100, 100), 0.2, False, Draws(0))
    rician = noise(torch.zeros(100, 100), 0.2, True, Draws(0))
    assert plain.std() == pytest.approx(0.2, rel=0.05)
    assert plain.mean() == pytest.approx(0, abs=0.01)
    assert rician.mean() == pytest.approx(0.2 * (np.pi / 2) ** 0.5, rel=0.05)  # Rayleigh
    assert rician.min() >= 0


def test_gamma_by_hand():
    torch.testing.assert_close(gamma(torch.tensor([2.0, 3.0, 4.0]), 2.0), torch.tensor([0.0, 0.25, 1.0]))
    assert torch.equal(gamma(torch.full((3,), 7.0), 2.0), torch.zeros(3))


@pytest.mark.parametrize("shape", SHAPES)
def test_defects_keep_the_range_and_stay_related_to_the_image(shape):
    image = smooth_fields(shape, 5.0, 1, Draws(3))[0] * 0.2 + 0.5
    related = []
    for key in range(20):
        result = draw_defects(image, Draws(0, key))
        assert result.min() == 0
        assert result.max() == pytest.approx(1, abs=1e-4)
        related.append(np.corrcoef(image.flatten(), result.flatten())[0, 1])
    assert np.median(related) > 0.5
    assert max(related) < 0.9999


@pytest.mark.parametrize("remapped", [False, True])
@pytest.mark.parametrize(("crop", "margin"), [((16, 24), 6), ((12, 12, 16), 5)])
def test_views_are_cut_from_different_places_with_coordinates_matched(crop, margin, remapped, monkeypatch):
    """With an image of coordinates as the contrast, the common region of both views shows the same ones."""

    def coordinates(labels, textures, count, draws):
        return textures[0]

    monkeypatch.setattr("nnunet_dg.synthesis.pairs.draw_contrast", coordinates)
    monkeypatch.setattr("nnunet_dg.synthesis.pairs.draw_defects", lambda image, draws: image)
    monkeypatch.setattr("nnunet_dg.synthesis.pairs.REMAPPED", float(remapped))
    monkeypatch.setattr("nnunet_dg.synthesis.pairs.blur", lambda image, sigmas: image)
    monkeypatch.setattr("nnunet_dg.synthesis.pairs.remap", lambda image, draws: image + 128)
    shifts = set()
    for key in range(20):
        pair = draw_pair(crop, margin, Draws(0, key))
        assert pair.views.shape == (2, 1, *crop)
        boxes = [tuple(slice(s, s + n) for s, n in zip(start, pair.labels.shape, strict=True)) for start in pair.starts]
        first, second = (view[0][box] for view, box in zip(pair.views, boxes, strict=True))
        assert first.shape == pair.labels.shape
        torch.testing.assert_close(second, first + 128 if remapped else first, rtol=0, atol=1e-4)
        assert all(min(both) == 0 for both in zip(*pair.starts, strict=True))
        shifts.add(tuple(a - b for a, b in zip(*pair.starts, strict=True)))
    assert len(shifts) > 15
    assert max(abs(s) for shift in shifts for s in shift) <= margin


def test_a_contrast_is_blurred_before_it_is_remapped(monkeypatch):
    sigmas = []
    monkeypatch.setattr("nnunet_dg.synthesis.pairs.REMAPPED", 1.0)
    monkeypatch.setattr("nnunet_dg.synthesis.pairs.blur", lambda image, found: sigmas.append(found) or image)
    for key in range(150):
        draw_pair((8, 8), 2, Draws(0, key))
    assert_uniform(torch.tensor(sigmas)[:, 0], 0, 0.9)


def test_two_of_five_pairs_are_remapped(monkeypatch):
    calls = []
    monkeypatch.setattr("nnunet_dg.synthesis.pairs.remap", lambda image, draws: calls.append(draws) or image)
    for key in range(150):
        draw_pair((8, 8), 2, Draws(0, key))
    assert len(calls) / 150 == pytest.approx(0.4, abs=0.1)


def test_defects_are_drawn_as_often_and_as_strong_as_the_recipe_says(monkeypatch):
    calls = {}

    def record(name):
        def defect(image, *arguments):
            calls.setdefault(name, []).append([a for a in arguments if not isinstance(a, Draws)])
            return image

        monkeypatch.setattr(f"nnunet_dg.synthesis.defects.{name}", defect)

    for name in ("gamma", "bias_field", "blur", "low_resolution", "noise"):
        record(name)
    number = 400
    for key in range(number):
        draw_defects(torch.rand(8, 8, 8), Draws(0, key))
    exponents = torch.tensor([exponent for (exponent,) in calls["gamma"]])
    assert (exponents == 1).sum() == number  # each image is scaled to [0, 1] in the end
    shares = {name: (len(found) - number * (name == "gamma")) / number for name, found in calls.items()}
    assert shares == {
        "gamma": pytest.approx(0.5, abs=0.08), "bias_field": 1, "blur": 1,
        "low_resolution": pytest.approx(0.3, abs=0.08), "noise": pytest.approx(0.8, abs=0.08),
    }  # fmt: skip
    logarithms = exponents[exponents != 1].log()
    assert_uniform(logarithms, -1.2, 1.2)
    assert_uniform(torch.tensor(calls["bias_field"]).flatten(), 0, 0.4)
    sigmas = torch.tensor([sigmas for (sigmas,) in calls["blur"]])
    assert sigmas.shape == (number, 3)
    assert_uniform(sigmas.flatten(), 0, 0.9)
    factors = torch.tensor([factors for (factors,) in calls["low_resolution"]])
    along_all = (factors > 1).all(1)
    assert along_all.float().mean() == pytest.approx(0.25, abs=0.12)  # three axes, or all of them
    assert factors[along_all].max() <= 2.5
    assert ((factors[~along_all] > 1).sum(1) == 1).all()
    assert_uniform(factors[~along_all].amax(1), 1.5, 4)
    deviations = torch.tensor([deviation for deviation, _ in calls["noise"]])
    assert_uniform((deviations / 10).sqrt(), 0, 0.1)
    assert np.mean([rician for _, rician in calls["noise"]]) == pytest.approx(0.3, abs=0.08)


def assert_uniform(values, low, high):
    """Whether the range and the mean are those of a uniform distribution."""
    assert low <= values.min() < low + 0.1 * (high - low)
    assert high - 0.1 * (high - low) < values.max() <= high
    assert values.mean() == pytest.approx((low + high) / 2, abs=0.07 * (high - low))


def test_pairs_are_the_same_for_the_same_draws():
    first, again, other = (draw_pair((16, 16), 4, Draws(seed, 5)) for seed in (0, 0, 1))
    assert torch.equal(first.views, again.views)
    assert torch.equal(first.labels, again.labels)
    assert not torch.equal(first.views, other.views)
