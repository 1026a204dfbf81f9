"""Exact zeros in preprocessed patches: what they mean, and how they are replaced."""

from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape

from nnunet_dg.outside import RIPPLE, Outside

MASKED = Outside((True,), (True,))
UNMASKED = Outside((False,), (True,))


def configuration(schemes, masks):
    return SimpleNamespace(normalization_schemes=schemes, use_mask_for_norm=masks)


@pytest.mark.parametrize(
    ("schemes", "masks", "masked", "centered"),
    [
        (["ZScoreNormalization"] * 2, [True, False], (True, False), (True, True)),
        (["CTNormalization"], [False], (False,), (True,)),
        (["NoNormalization"], [True], (False,), (False,)),  # zero is an ordinary intensity
        (["RGBTo01Normalization", "ZScoreNormalization"], [False, True], (False, True), (False, True)),
    ],
)
def test_a_configuration_says_which_channels_are_masked_and_where_zero_is_the_mean(schemes, masks, masked, centered):
    assert Outside.of(configuration(schemes, masks)) == Outside(masked, centered)


def test_zeros_become_the_minimum_by_hand():
    image = torch.tensor([[[0.0, 0.0, 0.0], [0.0, -2.0, 1.0], [0.0, 3.0, 0.5]]])[None]
    expected = torch.tensor([[[-2.0, -2.0, -2.0], [-2.0, -2.0, 1.0], [-2.0, 3.0, 0.5]]])[None]
    assert torch.equal(MASKED.to_minimum(image), expected)
    assert torch.equal(UNMASKED.to_minimum(image), expected)  # zero in all channels: padding


def test_padding_is_zero_in_all_channels_and_a_mask_in_its_own():
    image = torch.tensor([[[1.0, 0.0, 0.0, 4.0]], [[2.0, 3.0, 0.0, 0.0]]])[None]  # two channels of 1 x 4
    padding_only = Outside((False, False), (True, True))
    assert padding_only.channels(image)[0, :, 0].tolist() == [[False, False, True, False]] * 2
    second_masked = Outside((False, True), (True, True))
    assert second_masked.channels(image)[0, :, 0].tolist() == [
        [False, False, True, False],
        [False, False, True, True],
    ]
    assert second_masked.voxels(image)[0, 0].tolist() == [False, False, True, True]
    assert Outside((True, True), (True, True)).voxels(image)[0, 0].tolist() == [False, False, True, False]
    not_all_centered = Outside((True, False), (True, False))
    assert not_all_centered.channels(image)[0, :, 0].tolist() == [[False, True, True, False], [False] * 4]


def naive(outside, image):
    """Voxel by voxel, in Python."""
    result = np.array(image)
    n, channels, *spatial = result.shape
    for b, c in product(range(n), range(channels)):
        low = min(float(v) for v in image[b, c].flatten())
        cubes = {}  # centers of cubes that are near zero throughout
        for center in np.ndindex(*spatial):
            block = tuple(slice(max(0, i - 1), i + 2) for i in center)
            cubes[center] = float(image[b, c][block].abs().max()) <= RIPPLE
        for place in np.ndindex(*spatial):
            near = product(*(range(max(0, i - 1), min(size, i + 2)) for i, size in zip(place, spatial, strict=True)))
            zero = all(float(image[b, k][place]) == 0 for k in range(channels)) and all(outside.centered)
            own = float(image[b, c][place]) == 0 or any(cubes[center] for center in near)
            if zero or (outside.masked[c] and own):
                result[(b, c, *place)] = low
    return torch.from_numpy(result)


@pytest.mark.parametrize("spatial", [(9, 7), (6, 7, 5)])
@pytest.mark.parametrize("masked", [(True, True), (True, False), (False, False)])
@pytest.mark.parametrize("centered", [(True, True), (True, False)])
def test_agrees_with_a_loop_over_voxels(spatial, masked, centered):
    torch.manual_seed(0)
    outside = Outside(masked, centered)
    image = torch.randn(2, 2, *spatial)
    image[:, :, :4] *= 0.004  # as small as resampling ripples
    image[:, 1, 4:, :2] = 0
    image[1, :, :, -1:] = 0
    assert torch.equal(outside.to_minimum(image), naive(outside, image))
    one_by_one = torch.cat([outside.to_minimum(image[:1]), outside.to_minimum(image[1:])])
    assert torch.equal(outside.to_minimum(image), one_by_one)


def test_tissue_near_the_mean_is_not_background():
    torch.manual_seed(0)
    image = torch.randn(1, 1, 24, 24, 24)
    image[0, 0, 3, 4, 5] = 0.001
    image[0, 0, 8:10, 8:10, 8:10] = 0.001  # smaller than a cube of three
    assert torch.equal(MASKED.to_minimum(image), image)


def test_resampling_ripples_outside_a_mask_are_background():
    """After nnU-Net's own cubic resampling no voxel outside is exactly zero, and prediction does not mask again."""
    rng = np.random.default_rng(0)
    data = np.zeros((1, 40, 40, 40), np.float32)
    data[:, 10:30, 10:30, 10:30] = rng.standard_normal((20, 20, 20)) - 0.5
    settings = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    resampled = resample_data_or_seg_to_shape(data, (32, 44, 44), (1, 1, 1), (1.25, 0.909, 0.909), **settings)
    image = torch.as_tensor(np.asarray(resampled))[None].float()
    assert (image == 0).float().mean() < 0.01
    black = MASKED.to_minimum(image) == image.min()
    far = torch.ones_like(image, dtype=torch.bool)
    far[:, :, 3:29, 5:39, 5:39] = False  # five or six voxels around the subject
    inside = (slice(None), slice(None), slice(8, 24), slice(11, 33), slice(11, 33))
    assert black[far].all()
    assert black[inside].float().mean() < 0.001


def test_a_configuration_without_masks_and_centers_is_left_alone():
    image = torch.zeros(1, 2, 3, 3)
    assert Outside((False, False), (True, False)).to_minimum(image) is image
    assert Outside.nowhere(2).to_minimum(image) is image
    assert not Outside.nowhere(2).channels(image).any()


def test_constant_patches_stay_constant():
    for value in (0.0, 2.0):
        image = torch.full((1, 1, 4, 4, 4), value)
        assert torch.equal(MASKED.to_minimum(image), image)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_keeps_the_dtype(dtype):
    image = torch.randn(1, 1, 6, 6, 6, dtype=dtype)
    image[:, :, :3] = 0
    result = MASKED.to_minimum(image)
    assert result.dtype == dtype
    assert (result[:, :, :3] == image.min()).all()
    assert torch.equal(result[:, :, 3:], image[:, :, 3:])


@pytest.mark.parametrize("outside", [MASKED, UNMASKED, Outside((True, False), (True, True))])
def test_compiles_into_one_graph_without_copies_to_the_device(outside):
    image = torch.randn(2, len(outside.masked), 5, 6, 7)
    image[:, :, :2] = 0
    torch._dynamo.reset()
    compiled = torch.compile(outside.to_minimum, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(image), outside.to_minimum(image))
    with torch.device("meta"):  # a constant created by the call would be on this device, not on the image's
        result = outside.to_minimum(image)
    assert torch.equal(result, outside.to_minimum(image))


def test_gradients_of_the_image_pass_where_it_shows_the_subject():
    image = torch.randn(1, 1, 4, 4, dtype=torch.float64)
    image[..., :1, :] = 0
    image.requires_grad_()
    MASKED.to_minimum(image).sum().backward()
    lowest = image == image.detach().min()
    assert torch.equal(image.grad[0, 0, 0], torch.zeros(4, dtype=torch.float64))
    assert image.grad[lowest].item() == 5  # its own, and those of the four voxels that were set to it
    assert (image.grad[..., 1:, :][~lowest[..., 1:, :]] == 1).all()
