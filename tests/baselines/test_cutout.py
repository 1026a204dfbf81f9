"""CutOut: values of the specification, agreement with a naive loop, properties, and the targets of a batch."""

import itertools

import pytest
import torch
from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import DownsampleSegForDSTransform
from plain_student import PlainStudent, a_batch

from nnunet_dg.baselines.cutout import CutOut, cut_images, cut_target, hole_edges, holes
from nnunet_dg.errors import SettingsError


def test_hand_values_of_edges():
    """Example CUT-1 of the specification."""
    assert hole_edges((128, 128, 128), 0.33) == (42, 42, 42)
    assert hole_edges((192, 160, 128), 0.33) == (63, 53, 42)
    assert hole_edges((224, 256, 64), 0.33) == (74, 84, 21)
    assert hole_edges((7, 7), 0.33) == (2, 2)
    assert hole_edges((1, 8), 0.33) == (1, 3)


@pytest.mark.parametrize(("center", "extent"), [(0, [0, 1]), (5, [4, 5, 6]), (9, [8, 9])])
def test_hand_values_of_extents(center, extent):
    """Example CUT-2: three of ten voxels, clipped at the ends."""
    assert holes(torch.tensor([[center]]), (3,), (10,))[0, 0].nonzero().flatten().tolist() == extent


def test_hand_value_of_image_and_label():
    """Example CUT-3: two voxels of a 3 x 3 image; 9 is the ignore label."""
    hole = holes(torch.tensor([[0, 2]]), (2, 2), (3, 3))
    assert hole[0, 0].int().tolist() == [[0, 1, 1], [0, 0, 0], [0, 0, 0]]
    image = torch.arange(9.0).reshape(1, 1, 3, 3) - 2
    assert cut_images(image, hole).flatten().tolist() == [-2, 0, 0, 1, 2, 3, 4, 5, 6]
    assert cut_images(image, hole, "midrange").flatten().tolist() == [-2, 2, 2, 1, 2, 3, 4, 5, 6]
    label = torch.tensor([[1, 2, 9], [1, 1, 9], [0, 2, 2]])[None, None]
    assert cut_target(label, hole, ignored=label == 9).flatten().tolist() == [1, 0, 9, 1, 1, 9, 0, 2, 2]


@pytest.mark.parametrize("shape", [(7, 5), (4, 6, 5)])
def test_agrees_with_a_loop_over_voxels(shape):
    torch.manual_seed(0)
    edges = (3, 2, 4)[: len(shape)]
    centers = torch.stack([torch.randint(size, (4,)) for size in shape], 1)
    hole = holes(centers, edges, shape)
    for sample, voxel in itertools.product(range(4), itertools.product(*map(range, shape))):
        first = [int(c) - length // 2 for c, length in zip(centers[sample], edges, strict=True)]
        inside = all(f <= v < f + length for f, v, length in zip(first, voxel, edges, strict=True))
        assert bool(hole[(sample, 0, *voxel)]) == inside


def test_the_middle_is_that_of_each_sample_and_channel():
    image = torch.tensor([[[0.0, 1, 4], [2, 3, 4]], [[-1, 0, 1], [5, 5, 9]]])
    hole = torch.tensor([[[False, True, False]], [[False, True, False]]])
    assert cut_images(image, hole, "midrange")[..., 1].tolist() == [[2, 3], [0, 7]]


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("fill", ["zero", "midrange"])
def test_all_images_and_cascade_channels_of_a_sample_have_the_same_hole(dims, fill):
    torch.manual_seed(0)
    shape = (20, 12, 16)[:dims]
    data, target = torch.randn(3, 4, *shape) + 5, torch.ones(3, 1, *shape, dtype=torch.int16)
    training = CutOut(p=1.0, fill=fill).training_module(PlainStudent(dims, 2))
    batch = training.augment(a_batch(data, target, channels=2))
    hole = batch.target == 0
    assert hole.flatten(1).any(1).all()
    changed = batch.data != data
    assert (changed == hole.expand_as(changed)).all()
    assert (batch.data[:, 2:].masked_select(hole) == 0).all()
    middle = (data.flatten(2).amin(2) + data.flatten(2).amax(2)) / 2
    value = middle if fill == "midrange" else torch.zeros_like(middle)
    for sample, channel in itertools.product(range(3), range(2)):
        inside = batch.data[sample, channel][hole[sample, 0]]
        torch.testing.assert_close(inside, value[sample, channel].expand_as(inside))
    assert target.min() == 1  # the data loader's tensors are not changed
    assert len({tuple(each.nonzero()[0].tolist()) for each in hole[:, 0]}) > 1  # each sample has its own


def test_samples_have_a_hole_with_probability_p_anywhere_in_the_patch():
    torch.manual_seed(0)
    training = CutOut(p=0.3, size=0.1).training_module(PlainStudent())
    batch = a_batch(torch.ones(4, 1, 10, 20), torch.zeros(4, 1, 10, 20))
    cut = torch.cat([training.augment(batch).data == 0 for _ in range(800)])
    holes_of_batch = cut.flatten(1).any(1).reshape(800, 4).sum(1).float()
    assert holes_of_batch.var().item() == pytest.approx(4 * 0.3 * 0.7, abs=0.15)  # samples are independent
    assert cut.flatten(1).any(1).float().mean().item() == pytest.approx(0.3, abs=0.03)
    counts = cut.sum((0, 1))  # edges of 1 and 2 voxels, so that the last column is reached by one center only
    expected = 3200 * 0.3 * 2 / 200
    assert (counts[:, :-1].float().mean() - expected).abs() < 1
    assert (counts[:, :-1] > 0).all()
    assert ((cut.sum((1, 2, 3)) == 2) | (cut.sum((1, 2, 3)) == 1) | (cut.sum((1, 2, 3)) == 0)).all()


def test_nothing_changes_with_a_probability_of_zero():
    data, target = torch.randn(2, 1, 8, 8), torch.randint(3, (2, 1, 8, 8))
    batch = CutOut(p=0.0).training_module(PlainStudent()).augment(a_batch(data, target))
    assert torch.equal(batch.data, data)
    assert torch.equal(batch.target, target)


@pytest.mark.parametrize("shape", [(20, 12), (9, 16, 14)])
def test_all_resolutions_are_those_of_nnunets_downsampling_after_the_cut(shape):
    torch.manual_seed(0)
    target = torch.randint(1, 4, (1, 1, *shape))
    ignored = target == 3
    hole = holes(torch.tensor([[s // 3 for s in shape]]), hole_edges(shape, 0.33), shape)
    scales = [[1.0] * len(shape), [0.5] * len(shape), [1.0, *[0.25] * (len(shape) - 1)]]
    downsample = DownsampleSegForDSTransform(scales)
    expected = downsample(segmentation=cut_target(target, hole, ignored=ignored)[0])["segmentation"]
    for given, wanted in zip(downsample(segmentation=target[0])["segmentation"], expected, strict=True):
        assert torch.equal(cut_target(given[None], hole, ignored=(given == 3)[None])[0], wanted)
        assert (wanted == 0).any()


@pytest.mark.parametrize("ignore", [None, 2])
def test_regions_are_absent_in_the_hole_and_ignored_voxels_stay_ignored(ignore):
    torch.manual_seed(0)
    target = [torch.ones(2, 3 if ignore else 2, n, n, dtype=torch.bool) for n in (16, 8)]
    student = PlainStudent(regions=True, ignore=ignore)
    batch = CutOut(p=1.0).training_module(student).augment(a_batch(torch.ones(2, 1, 16, 16), target))
    for scale in batch.target:
        assert scale.dtype == torch.bool
        assert torch.equal(scale[:, 0], scale[:, 1])
        assert not scale[:, 0].all()
        assert scale[:, 0].any()
        assert scale[:, 2:].all()
    assert torch.equal(batch.target[0][:, :1], batch.data != 0)


def test_ignored_voxels_of_labels_stay_ignored():
    target = [torch.full((2, 1, n, n), 3, dtype=torch.int16) for n in (16, 8)]
    student = PlainStudent(ignore=3)
    batch = CutOut(p=1.0).training_module(student).augment(a_batch(torch.ones(2, 1, 16, 16), target))
    assert (batch.data == 0).any()
    assert all((scale == 3).all() for scale in batch.target)


@pytest.mark.parametrize(("name", "value"), [("p", -0.1), ("size", 0), ("size", 1.5), ("fill", "mean")])
def test_bad_settings_are_refused_by_name(name, value):
    with pytest.raises(SettingsError, match=f"{name} must be .*; got {value!r}"):
        CutOut(**{name: value})
