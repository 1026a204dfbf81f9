"""BigAug: values of the specification, agreement with SciPy, and the parameters and properties of each transform."""

import math
import random

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from scipy.ndimage import gaussian_filter

from nnunet_dg.baselines import bigaug
from nnunet_dg.baselines.bigaug import (
    BigAug,
    Blur,
    Noise,
    ScaleAndShift,
    Sharpen,
    blurred,
    scaled_and_shifted,
    sharpened,
)
from nnunet_dg.errors import SettingsError

VALUES = [0, 0.25, 0.5, 1]


@pytest.fixture(autouse=True)
def seeded():
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(0)


def contrast():
    """The contrast transform of the pipeline."""
    transforms = [getattr(each, "transform", each) for each in BigAug().augmentation((8, 8), False)]
    return next(each for each in transforms if isinstance(each, GammaTransform))


def test_hand_values_of_contrast_and_perturbation():
    """Example BIG-1 of the specification: gamma 2, then a factor of 1.1 and an offset of -0.1."""
    transform = contrast()
    assert transform.gamma == (0.5, 4.5)
    transform.gamma = 2
    curved = transform(image=torch.tensor([[VALUES]]))["image"]
    torch.testing.assert_close(curved.flatten(), torch.tensor([0, 0.0625, 0.25, 1]))
    offset = torch.tensor([-0.1]) / curved.std(correction=0)  # given in deviations
    result = scaled_and_shifted(curved[0], torch.tensor([1.1]), offset)
    torch.testing.assert_close(result.flatten(), torch.tensor([-0.1, -0.03125, 0.175, 1]))


def test_hand_value_of_sharpening():
    """Example BIG-1: an impulse, blurred once and twice by (1, 2, 1) / 4, with a strength of 10."""
    impulse, kernel = [0, 0, 1, 0, 0], [0.25, 0.5, 0.25]
    once = np.convolve(impulse, kernel, "same")
    twice = np.convolve(once, kernel, "same")
    assert sharpened(once, twice, 10).tolist() == [-0.625, 0.25, 1.75, 0.25, -0.625]


@pytest.mark.parametrize("shape", [(20, 17), (12, 9, 15), (3, 30, 30), (1, 12)])
@pytest.mark.parametrize("sigma", [0.25, 0.8, 1.5])
def test_blur_agrees_with_scipy(shape, sigma):
    image = torch.randn(2, *shape)
    result = blurred(image, sigma)
    width = 6 * sigma + 0.5
    odd = round(width) if round(width) % 2 else round(width) + (1 if width >= round(width) else -1)
    radius = [min(odd // 2, size - 1) for size in shape]
    for channel, expected in zip(result, image.numpy(), strict=True):
        naive = gaussian_filter(expected, sigma, mode="mirror", radius=radius)
        torch.testing.assert_close(channel, torch.from_numpy(naive), atol=1e-5, rtol=1e-4)


def drawn(monkeypatch, name, transform, image):
    """The arguments of all calls of a function of the module in 300 calls of a transform."""
    calls, original = [], getattr(bigaug, name)
    monkeypatch.setattr(bigaug, name, lambda *given: (calls.append(given), original(*given))[1])
    for _ in range(300):
        transform(image=image.clone())
    return calls


def assert_uniform(values, low, high):
    values = torch.as_tensor(np.array(values, dtype=float))
    assert low <= values.min()
    assert values.max() <= high
    assert values.mean().item() == pytest.approx((low + high) / 2, abs=0.06 * (high - low))
    assert values.std().item() == pytest.approx((high - low) / math.sqrt(12), rel=0.1)


def test_blur_and_sharpening_have_the_published_parameters_for_each_channel(monkeypatch):
    image = torch.randn(2, 6, 6)
    with monkeypatch.context() as patch:
        calls = drawn(patch, "blurred", Blur(), image)
        assert len(calls) == 600
        assert_uniform([sigma for _, sigma in calls], 0.25, 1.5)
    with monkeypatch.context() as patch:
        calls = drawn(patch, "sharpened", Sharpen(), image)
        assert len(calls) == 600
        assert_uniform([strength for *_, strength in calls], 10, 30)
    calls = drawn(monkeypatch, "blurred", Sharpen(), image)
    assert_uniform([sigma for _, sigma in calls], 0.25, 1.5)
    assert torch.equal(calls[1][0], bigaug.blurred(*calls[0]))  # the second blur follows the first


def test_sharpening_adds_details_to_the_blurred_image():
    image = torch.zeros(1, 15, 15)
    image[0, 7, 7] = 1
    result = Sharpen()(image=image)["image"]
    assert result.sum().item() == pytest.approx(1, abs=1e-4)
    assert result.min() < 0


@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_noise_is_relative_to_the_deviation_of_each_channel(scale):
    image = scale * torch.randn(2, 40, 40) * torch.tensor([1.0, 5]).reshape(2, 1, 1)
    strengths = []
    for _ in range(300):
        noise = Noise(most=2.0)(image=image.clone())["image"] - image
        strengths.append(noise.flatten(1).std(1) / image.flatten(1).std(1))
    strengths = torch.stack(strengths)
    for channel in strengths.T:
        assert_uniform(channel, 0.1 - 0.01, 2.0 + 0.1)
    assert torch.corrcoef(strengths.T)[0, 1].abs() < 0.2  # channels are independent
    assert noise.mean().abs() < 0.3 * image.std()


def test_brightness_and_perturbation_have_the_published_parameters_for_each_channel(monkeypatch):
    image = torch.randn(2, 6, 6)
    calls = drawn(monkeypatch, "scaled_and_shifted", ScaleAndShift(scale=0.1, shift=0.1), image)
    scales, shifts = torch.stack([call[1] for call in calls]), torch.stack([call[2] for call in calls])
    assert_uniform(scales[:, 0], 0.9, 1.1)
    assert_uniform(shifts[:, 1], -0.1, 0.1)
    assert torch.corrcoef(torch.cat([scales, shifts], 1).T).fill_diagonal_(0).abs().max() < 0.2
    unscaled = ScaleAndShift(scale=0, shift=0.1)(image=image.clone())["image"] - image
    offsets = unscaled.flatten(1)
    torch.testing.assert_close(offsets, offsets[:, :1].expand_as(offsets), atol=1e-5, rtol=0)
    assert offsets[0, 0] != offsets[1, 0]


def test_all_nine_transforms_are_applied_with_probability_p():
    spatial, *others = BigAug(p=0.3).augmentation((16, 24, 20), False)
    assert (spatial.p_rotation, spatial.p_scaling, spatial.p_elastic_deform) == (0.3, 0.3, 0.3)
    assert [type(each.transform).__name__ for each in others] == [
        "Sharpen", "Blur", "Noise", "ScaleAndShift", "GammaTransform", "ScaleAndShift",
    ]  # fmt: skip
    assert {each.apply_probability for each in others} == {0.3}
    assert [(each.transform.scale, each.transform.shift) for each in (others[3], others[5])] == [(0, 0.1), (0.1, 0.1)]
    noisy = BigAug(noise=2.5).augmentation((16, 16), False)[3].transform
    assert noisy.most == 2.5


@pytest.mark.parametrize("patch", [(24, 20), (16, 24, 20)])
def test_rotation_zoom_and_deformation_have_the_published_ranges(patch):
    """Angles and zoom are read from the sampling grid, in voxels."""
    (spatial, *_) = BigAug(p=1.0).augmentation(patch, False)
    assert spatial.rotation == pytest.approx((-math.radians(20), math.radians(20)))
    assert spatial.elastic_deform_magnitude == (0, 7)
    spatial.elastic_deform_magnitude = 0
    image = torch.zeros(1, *(int(2.5 * n) for n in patch))  # as much as the lowest zoom needs
    identity = torch.stack(torch.meshgrid(*[torch.arange(n) - (n - 1) / 2 for n in patch], indexing="ij"), -1)
    zooms = []
    for _ in range(200):
        grid = spatial.get_parameters(image=image)["grid"].flip(-1) * torch.tensor(image.shape[1:]) / 2
        matrix = torch.linalg.lstsq(identity.flatten(0, -2), grid.flatten(0, -2)).solution
        singular = torch.linalg.svdvals(matrix)
        torch.testing.assert_close(singular, singular[:1].expand_as(singular), atol=1e-3, rtol=1e-3)  # one zoom
        zooms.append(1 / singular[0].item())
    assert_uniform(zooms, 0.4 - 1e-3, 1.6 + 1e-3)
    loaded = torch.zeros(1, *(int(1.25 * n) for n in patch))
    assert_uniform([1 / spatial.scaling(image=loaded, dim=None) for _ in range(300)], 0.8, 1.6)
    assert [bigaug.random_smoothness(image=image, dim=1, patch_size=patch) * patch[1] for _ in range(300)] == (
        pytest.approx([11.5] * 300, abs=1.5)
    )


@pytest.mark.parametrize(("patch", "in_plane"), [((16, 24), False), ((12, 16, 20), False), ((5, 24, 20), True)])
def test_patches_have_the_right_shape_and_labels_move_with_the_image(patch, in_plane):
    larger = tuple(n if in_plane and i == 0 else int(1.4 * n) for i, n in enumerate(patch))
    segmentation = torch.zeros(1, *larger, dtype=torch.int16)
    middle = tuple(slice(n // 4, n - n // 4) for n in larger)
    segmentation[(0, *middle)] = 1
    transforms = BigAug(p=1.0).augmentation(patch, in_plane)
    spatial = transforms[:3] if in_plane else transforms[:1]
    agreement = []
    for _ in range(10):
        content = {"image": segmentation.float().repeat(2, *[1] * len(patch)), "segmentation": segmentation.clone()}
        for transform in spatial:
            content = transform(**content)
        assert content["image"].shape == (2, *patch)
        assert torch.equal(content["image"][0], content["image"][1])  # one change of shape for all channels
        assert content["segmentation"].shape == (1, *patch)
        agreement.append(((content["image"][:1] > 0.5) == (content["segmentation"] == 1)).float().mean())
        for transform in transforms[len(spatial) :]:
            content = transform(**content)
        assert torch.isfinite(content["image"]).all()
        assert content["image"].shape == (2, *patch)
    assert min(agreement) > 0.97


def test_constant_and_tiny_images_stay_finite():
    for shape in ((1, 8, 8), (1, 1, 4, 1)):
        for transform in BigAug(p=1.0).augmentation(shape[1:], False)[1:]:
            result = transform(image=torch.full(shape, 3.0))["image"]
            assert torch.isfinite(result).all()
            torch.testing.assert_close(result, torch.full(shape, 3.0), rtol=0.11, atol=0)


def test_nothing_but_the_crop_happens_with_a_probability_of_zero():
    image = torch.randn(1, 12, 12)
    content = {"image": image, "segmentation": torch.zeros(1, 12, 12)}
    for transform in BigAug(p=0.0).augmentation((8, 8), False):
        content = transform(**content)
    assert torch.equal(content["image"], image[:, 2:10, 2:10])


@pytest.mark.parametrize(("name", "value"), [("p", 2), ("noise", 0.05), ("noise", None)])
def test_bad_settings_are_refused_by_name(name, value):
    with pytest.raises(SettingsError, match=f"{name} must be .*; got {value}"):
        BigAug(**{name: value})
