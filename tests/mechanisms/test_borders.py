"""Border and band of foreground classes, and their mean features."""

import numpy as np
import pytest
import torch
from plain_student import PlainStudent
from scipy import ndimage

from nnunet_dg.mechanisms.borders import BAND, border_and_band, embeddings, foreground, grown


def a_mask(*shape, seed=0):
    torch.manual_seed(seed)
    return torch.rand(2, 2, *shape) > 0.7


@pytest.mark.parametrize("shape", [(12, 9), (7, 1, 8)])
@pytest.mark.parametrize("steps", [1, 3])
def test_growing_is_scipys_dilation(shape, steps):
    mask = a_mask(*shape) & a_mask(*shape).roll(1, -1)
    expected = [[ndimage.binary_dilation(m, iterations=steps) for m in sample] for sample in mask.numpy()]
    assert np.array_equal(grown(mask, steps), expected)


def test_border_and_band_of_a_cube_are_scipys():
    mask = torch.zeros(1, 1, 20, 20, 20, dtype=torch.bool)
    mask[..., 8:12, 7:12, 8:13] = True
    border, band = border_and_band(mask)
    cube = mask[0, 0].numpy()
    assert np.array_equal(border[0, 0], cube & ~ndimage.binary_erosion(cube))
    assert np.array_equal(band[0, 0], ndimage.binary_dilation(cube, iterations=BAND) & ~cube)


def test_the_edge_of_the_patch_is_no_border():
    mask = torch.ones(1, 1, 6, 6, dtype=torch.bool)
    assert not border_and_band(mask)[0].any()
    mask[..., 4:] = False
    assert border_and_band(mask)[0].sum() == 6


def test_next_to_ignored_voxels_is_no_border():
    mask, known = torch.zeros(1, 1, 8, 8, dtype=torch.bool), torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    mask[..., 2:6, 2:6] = known[..., 2:6, 2:6] = True
    assert not torch.cat(border_and_band(mask, known)).any()
    known[..., :] |= torch.arange(8) < 2  # the columns before the square
    border, band = border_and_band(mask, known)
    assert border.nonzero()[:, 2:].tolist() == [[row, 2] for row in range(2, 6)]
    assert (band & ~known).sum() == 0
    assert band.any()


def test_embeddings_are_the_means_of_a_loop_and_skip_ignored_voxels():
    masks, known = a_mask(8, 8), ~a_mask(8, 8, seed=1)[:, :1]
    features = torch.rand(2, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    found = embeddings(features, masks, known)
    border, band = border_and_band(masks, known)
    for i in range(2):
        for k in range(2):
            for values, region in ((found.border, border), (found.band, band)):
                inside = region[i, k] & known[i, 0]
                torch.testing.assert_close(values[i, k], features[i][:, inside].mean(1))
    (gradient,) = torch.autograd.grad(found.border.sum(), features)
    assert ((gradient != 0).any(1) == ((border & known).any(1))).all()


def test_a_class_without_border_or_band_is_not_present():
    masks = torch.zeros(1, 3, 8, 8, dtype=torch.bool)
    masks[0, 0], masks[0, 1, 2:4, 2:4] = True, True  # the second fills the patch, the last is empty
    found = embeddings(torch.rand(1, 2, 8, 8), masks, torch.ones(1, 1, 8, 8).bool())
    assert found.present.tolist() == [[False, True, False]]
    assert torch.isfinite(torch.stack([found.border, found.band])).all()


def test_half_precision_features_do_not_overflow():
    features = torch.full((1, 1, 64, 64, 64), 60.0, dtype=torch.bfloat16)
    masks = torch.zeros(1, 1, 64, 64, 64, dtype=torch.bool)
    masks[..., 8:56] = True
    with torch.autocast("cpu", torch.bfloat16):
        found = embeddings(features, masks, torch.ones_like(masks))
    assert found.border.dtype == torch.float32
    assert found.band.item() == pytest.approx(60)


def test_foreground_of_labels_regions_and_ignored_voxels():
    labels = PlainStudent(outputs=3, ignore=3)
    masks, known = foreground(labels, torch.tensor([[[[0, 1, 2, 3]]]]))
    assert masks[0, :, 0].int().tolist() == [[0, 1, 0, 0], [0, 0, 1, 0]]
    assert known[0, 0, 0].tolist() == [True, True, True, False]
    regions = PlainStudent(outputs=2, regions=True)
    masks, known = foreground(regions, torch.tensor([[[[0, 1, 1, 0]], [[0, 0, 1, 0]]]]))
    assert masks[0, :, 0].int().tolist() == [[0, 1, 1, 0], [0, 0, 1, 0]]
    assert known.all()
