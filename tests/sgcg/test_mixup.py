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


def unclipped(image):
    """The same image with two voxels far out, so that clipping to its range changes nothing."""
    image = image.clone()
    image[:, :, 0, 0], image[:, :, 1, 1] = 1000, -1000
    return image


@pytest.mark.parametrize("spatial", SHAPES)
def test_ratio_one_is_the_identity(spatial):
    image, partner = images(spatial)
    torch.testing.assert_close(random_amplitude_mixup(image, partner, torch.ones(2), 0.1), image, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("spatial", SHAPES)
def test_only_the_amplitude_in_the_low_frequency_window_changes(spatial):
    image, partner = images(spatial)
    image = unclipped(image)
    ratio = torch.tensor([0.2, 0.7])
    mixed = random_amplitude_mixup(image, partner, ratio, 0.1)
    axes = tuple(range(2, image.ndim))
    before, other, after = (np.fft.fftn(x.double().numpy(), axes=axes) for x in (image, partner, mixed))
    reach = math.floor(0.1 * min(spatial))
    scale = np.abs(before).max()
    low = np.zeros(spatial, bool)
    for frequency in itertools.product(range(-reach, reach + 1), repeat=len(spatial)):
        low[frequency] = True
    r = ratio.double().numpy().reshape(-1, *[1] * (image.ndim - 1))
    wanted = np.where(low, r * np.abs(before) + (1 - r) * np.abs(other), np.abs(before))
    np.testing.assert_allclose(np.abs(after), wanted, atol=1e-5 * scale)
    phase = np.exp(1j * np.angle(after)) - np.exp(1j * np.angle(before))
    np.testing.assert_allclose(phase * np.abs(before) / scale, 0, atol=1e-5)


@pytest.mark.parametrize("spatial", SHAPES)
def test_keeps_the_range_of_each_sample_and_channel(spatial):
    image, partner = images(spatial)
    image[1, 0] = 5 + image[1, 0] / 10
    mixed = random_amplitude_mixup(image, 100 * partner, torch.tensor([0.1, 0.1]), 0.1)
    axes = tuple(range(2, image.ndim))
    assert (mixed.amin(axes) >= image.amin(axes)).all()
    assert (mixed.amax(axes) <= image.amax(axes)).all()
    assert not torch.allclose(mixed, image, atol=0.01)


def test_by_hand_without_a_window_but_the_mean():
    """half_width 0: the window is the zero frequency, the sum of all voxels."""
    image = torch.tensor([[[[0.0, 4.0], [4.0, 8.0]]]])
    partner = torch.full_like(image, 2)
    mixed = random_amplitude_mixup(image, partner, torch.tensor([0.5]), 0)
    assert mixed.flatten().tolist() == pytest.approx([0, 3, 3, 7])  # mean 4 becomes 3; -1 is clipped to 0


def test_without_gradient_in_float32_and_back():
    image, partner = (x.half() for x in images((8, 8, 8)))
    mixed = random_amplitude_mixup(image.requires_grad_(), partner, torch.ones(2), 0.1)
    assert mixed.dtype == torch.float16
    assert not mixed.requires_grad


def test_refuses_what_does_not_fit():
    image, partner = images((8, 8))
    with pytest.raises(ValueError, match="the same shape"):
        random_amplitude_mixup(image, partner[:1], torch.ones(2))
    with pytest.raises(ValueError, match=r"half_width must be a fraction of the shortest side in \[0, 0.5\]; got 0.7"):
        random_amplitude_mixup(image, partner, torch.ones(2), 0.7)
