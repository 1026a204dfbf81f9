"""Random amplitude mixup: values, a naive reference, range and dtype."""

import itertools
import math

import numpy as np
import pytest
import torch

from nnunet_dg.sgcg import random_amplitude_mixup

SHAPES = [(20, 24), (21, 30), (20, 22, 24), (21, 20, 23)]


def images(spatial, batch=2, channels=2):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(batch, channels, *spatial, generator=generator) for _ in range(2)]


@pytest.mark.parametrize("spatial", SHAPES)
def test_ratio_one_is_the_identity(spatial):
    image, partner = images(spatial)
    assert torch.equal(random_amplitude_mixup(image, partner, torch.ones(2), 0.1), image)


def by_whole_spectra(image, partner, ratio, half_width):
    """Naive reference for one sample and channel: shift both, mix amplitudes in the window, shift back, clip."""
    image, partner = image.double().numpy(), partner.double().numpy()
    offset = min(image.min(), partner.min())
    own, other = np.fft.fftn(image - offset), np.fft.fftn(partner - offset)
    amplitude = np.abs(own)
    reach = math.floor(half_width * min(image.shape))
    for frequency in itertools.product(range(-reach, reach + 1), repeat=image.ndim):
        amplitude[frequency] = ratio * abs(own[frequency]) + (1 - ratio) * abs(other[frequency])
    result = np.fft.ifftn(amplitude * np.exp(1j * np.angle(own)))
    assert np.abs(result.imag).max() < 1e-9
    return np.clip(result.real + offset, image.min(), image.max())


@pytest.mark.parametrize("half_width", [0, 0.1, 0.5])
@pytest.mark.parametrize("spatial", SHAPES)
def test_equals_the_naive_reference_for_each_sample_and_channel(spatial, half_width):
    image, partner = images(spatial)
    image[1, 0], partner[0, 1] = 5 + image[1, 0], 3 * partner[0, 1] - 4
    ratio = torch.tensor([0.2, 0.7])
    mixed = random_amplitude_mixup(image, partner, ratio, half_width)
    for b, c in itertools.product(range(2), range(2)):
        expected = by_whole_spectra(image[b, c], partner[b, c], float(ratio[b]), half_width)
        np.testing.assert_allclose(mixed[b, c], expected, atol=1e-4)


def test_means_of_opposite_signs_are_averaged():
    """With means -0.3 and +0.4 and ratio 0.5 the mean is 0.05. The window contains the mean only."""
    image = torch.full((1, 1, 32, 32), -0.3)
    image[0, 0, 0, 0], image[0, 0, 1, 1] = 5, -5.6  # keeps the mean, and widens the range to which is clipped
    partner = torch.full_like(image, 0.4)
    mixed = random_amplitude_mixup(image, partner, torch.tensor([0.5]), 0)
    assert mixed.mean().item() == pytest.approx(0.05, abs=0.35 / 1024 + 1e-5)  # the brightest voxel is clipped
    assert mixed[0, 0, 5, 5].item() == pytest.approx(0.05, abs=1e-5)


@pytest.mark.parametrize("shift", [-7.0, 3.0])
def test_a_shift_of_image_and_partner_shifts_the_result(shift):
    image, partner = images((20, 22, 24))
    ratio = torch.tensor([0.3, 0.8])
    expected = random_amplitude_mixup(image, partner, ratio, 0.1) + shift
    torch.testing.assert_close(
        random_amplitude_mixup(image + shift, partner + shift, ratio, 0.1), expected, atol=2e-5, rtol=1e-5
    )


def test_agrees_with_values_computed_by_numpy():
    """The window has 3 x 3 frequencies, and the ratio is 0.5."""
    image = torch.tensor([[1.0, 2, 1, 0], [3, 1, 2, 2], [0, 1, 1, 5], [2, 2, 0, 1]])
    partner = torch.arange(1.0, 17).reshape(4, 4)
    expected = torch.tensor([
        [2.9375, 2.5625, 2.4375, 2.8125], [8.8125, 6.1875, 6.8125, 7.4375],
        [5.8125, 6.6875, 5.8125, 9.9375], [3.9375, 3.0625, 1.4375, 3.3125],
    ])  # fmt: skip
    mixed = random_amplitude_mixup(image[None, None], partner[None, None], torch.tensor([0.5]), 0.25)
    torch.testing.assert_close(mixed[0, 0], expected.clamp(0, 5), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("spatial", SHAPES)
def test_keeps_the_range_of_each_sample_and_channel(spatial):
    image, partner = images(spatial)
    image[1, 0] = 5 + image[1, 0] / 10
    mixed = random_amplitude_mixup(image, 100 * partner, torch.tensor([0.1, 0.1]), 0.1)
    axes = tuple(range(2, image.ndim))
    assert (mixed.amin(axes) >= image.amin(axes)).all()
    assert (mixed.amax(axes) <= image.amax(axes)).all()
    assert not torch.allclose(mixed, image, atol=0.01)


def test_value_computed_by_hand_with_a_window_of_the_mean_only():
    """With half_width 0, the window contains only the zero frequency, the sum of all voxels."""
    image = torch.tensor([[[[0.0, 4.0], [4.0, 8.0]]]])
    partner = torch.full_like(image, 2)
    mixed = random_amplitude_mixup(image, partner, torch.tensor([0.5]), 0)
    assert mixed.flatten().tolist() == pytest.approx([0, 3, 3, 7])  # mean 4 becomes 3; -1 is clipped to 0


def test_has_no_gradient_and_keeps_the_dtype():
    image, partner = (x.half() for x in images((8, 8, 8)))
    mixed = random_amplitude_mixup(image.requires_grad_(), partner, torch.ones(2), 0.1)
    assert mixed.dtype == torch.float16
    assert not mixed.requires_grad


def test_different_shapes_and_a_half_width_out_of_range_are_refused():
    image, partner = images((8, 8))
    with pytest.raises(ValueError, match="the same shape"):
        random_amplitude_mixup(image, partner[:1], torch.ones(2))
    with pytest.raises(ValueError, match=r"half_width must be a fraction of the shortest side in \[0, 0.5\]; got 0.7"):
        random_amplitude_mixup(image, partner, torch.ones(2), 0.7)
