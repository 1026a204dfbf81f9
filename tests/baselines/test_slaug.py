"""SLAug: values of the specification, agreement with naive loops, properties, and the versions of a step."""

import itertools

import numpy as np
import pytest
import torch
from plain_student import PlainStudent, a_batch, a_step
from torch import nn

from nnunet_dg.baselines import slaug
from nnunet_dg.baselines.slaug import (
    Maps,
    SLAug,
    draw_maps,
    global_augmentation,
    local_augmentation,
    map_groups,
    saliency,
)
from nnunet_dg.errors import SettingsError
from nnunet_dg.mechanisms.bezier import bezier_map
from nnunet_dg.method import Step
from nnunet_dg.outside import Outside


def straight(scale, location):
    """A map without a curve."""
    return Maps(torch.tensor([[[1 / 3, 1 / 3], [2 / 3, 2 / 3]]]), torch.tensor([scale]), torch.tensor([location]))


def mapped(values, maps, inverted=False):
    """The values, which are one group."""
    return map_groups(values, torch.zeros(len(values), dtype=torch.long), maps, inverted)


def test_hand_value_of_scale_and_location():
    """The example of the specification: the location of 0.4 is limited to 0.2."""
    result = mapped(torch.tensor([0, 0.25, 0.5, 0.75, 1]), straight(0.9, 0.4))
    torch.testing.assert_close(result, torch.tensor([0.2, 0.425, 0.65, 0.875, 1]))


def test_hand_value_of_the_share_of_the_global_version():
    """The example of the specification: a gradient of 2 x 2 pixels, without upsampling."""
    result = saliency(torch.tensor([[[[4.0, 0], [1, 3]]]]), grid=2)
    assert result.flatten().tolist() == [1, 0, 0.25, 0.75]


@pytest.mark.parametrize("location", [-2.0, -0.3, 0.1, 2.0])
@pytest.mark.parametrize("size", [1, 2, 7, 60])
def test_the_location_agrees_with_numpys_percentiles(location, size):
    torch.manual_seed(0)
    values = torch.rand(size) ** 2
    limits = -np.percentile(values, 20), 1 - np.percentile(values, 80)
    expected = (1.1 * values + np.clip(location, *limits)).clamp(0, 1).float()
    torch.testing.assert_close(mapped(values, straight(1.1, location)), expected, atol=1e-5, rtol=0)


def naive(values, maps, k, inverted):
    """One map of the values, one after the other: curve, limits of the location, scale and location."""
    curve = bezier_map(values, maps.inner[k], inverted)
    limits = -np.percentile(curve, 20), 1 - np.percentile(curve, 80)
    return (maps.scale[k] * curve + np.clip(maps.location[k].item(), *limits)).clamp(0, 1).float()


@pytest.fixture
def recorded(monkeypatch):
    """All maps that are drawn."""
    drawn = []
    monkeypatch.setattr(slaug, "draw_maps", lambda number: drawn.append(draw_maps(number)) or drawn[-1])
    return drawn


@pytest.mark.parametrize("inverted", [False, True])
def test_groups_agree_with_one_map_at_a_time(inverted):
    torch.manual_seed(0)
    group = torch.randint(6, (500,))
    group[group == 3] = 2  # an empty group
    group[0] = 6  # a group of one value
    values, maps = torch.rand(500) * torch.linspace(0.1, 1, 500), draw_maps(8)
    maps.inner[1] = 0  # a degenerate curve
    values[group == 4] = 0.5  # a constant group
    values[1:4] = 0
    result = map_groups(values, group, maps, inverted)
    for k in (0, 1, 2, 4, 5, 6):
        expected = naive(values[group == k], maps, k, inverted)
        torch.testing.assert_close(result[group == k], expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("shape", [(6, 5), (3, 4, 5)])
def test_the_global_version_has_one_increasing_map_for_each_sample_and_channel(recorded, shape):
    torch.manual_seed(0)
    images = torch.rand(2, 3, *shape)
    changed = global_augmentation(images).flatten(0, 1)
    for k, image in enumerate(images.flatten(0, 1)):
        torch.testing.assert_close(changed[k], naive(image, recorded[0], k, False), atol=1e-6, rtol=0)


@pytest.mark.parametrize("shape", [(6, 5), (3, 4, 5)])
def test_the_local_version_agrees_with_a_loop_over_classes(recorded, shape):
    torch.manual_seed(0)
    images, classes = torch.rand(2, 2, *shape), torch.randint(3, (2, *shape))
    images[:, :, 0] = 0.005
    changed = local_augmentation(images, classes, 4, p=1.0)  # one class is absent
    for b, c, k in itertools.product(range(2), range(2), range(3)):
        values = images[b, c][classes[b] == k]
        expected = naive(values, recorded[0], (2 * b + c) * 4 + k, True).where(values > 0.01, values)
        torch.testing.assert_close(changed[b, c][classes[b] == k], expected, atol=1e-6, rtol=0)


def test_background_is_always_mapped_and_other_classes_with_probability_p():
    torch.manual_seed(0)
    images = torch.linspace(0.3, 0.7, 8).reshape(1, 1, 2, 4).expand(200, 1, 2, 4)
    classes = torch.tensor([[0, 0, 1, 1], [2, 2, 2, 2]]).expand(200, 2, 4)
    changed = local_augmentation(images, classes, 3, p=0.3) != images
    assert changed[:, 0, 0, :2].any(1).float().mean() > 0.95
    first, second = changed[:, 0, 0, 2:].any(1), changed[:, 0, 1].any(1)
    assert first.float().mean().item() == pytest.approx(0.3, abs=0.1)
    assert 0.01 < (first & second).float().mean() < 0.2


def test_maps_are_monotone_in_0_1_and_drawn_again_in_every_call():
    torch.manual_seed(0)
    values = torch.linspace(0, 1, 100)
    maps = torch.stack([mapped(values, draw_maps(1)) for _ in range(200)])
    inverted = torch.stack([mapped(values, draw_maps(1), inverted=True) for _ in range(50)])
    assert (maps.diff() >= 0).all()
    assert (inverted.diff() <= 0).all()
    for each in (maps, inverted):
        assert each.min() >= 0
        assert each.max() <= 1
    assert maps.std(0).median() > 0.15
    locations = maps[:, 0][(maps[:, 0] > 0) & (maps[:, 0] < 1)]
    assert len(locations) > 40


def test_scales_and_locations_have_the_published_distribution():
    torch.manual_seed(0)
    _, scales, locations = draw_maps(2000)
    assert scales.min().item() == pytest.approx(0.9)
    assert scales.max().item() == pytest.approx(1.1)
    inside = (scales > 0.9) & (scales < 1.1)
    assert inside.float().mean().item() == pytest.approx(0.683, abs=0.04)  # within one deviation
    assert locations.std().item() == pytest.approx(0.5, abs=0.03)
    assert torch.corrcoef(torch.stack([scales, locations]))[0, 1].abs() < 0.1


def test_inner_points_are_in_the_square_below_the_one_that_is_drawn_first():
    torch.manual_seed(0)
    lower, upper = draw_maps(2000).inner.unbind(1)
    assert (lower <= upper).all()
    assert upper.mean(0).tolist() == pytest.approx([0.5, 0.5], abs=0.03)
    assert lower.mean(0).tolist() == pytest.approx([0.25, 0.25], abs=0.02)
    assert torch.corrcoef(upper.T)[0, 1].abs() < 0.1
    assert torch.corrcoef((lower / upper).T)[0, 1].abs() < 0.1


def test_sensitivity_is_the_mean_over_cells_between_their_centers():
    """On 9 x 9 pixels, the middle of a cell has weight 3/4 of it and 1/8 of each neighbor, along each axis."""
    torch.manual_seed(0)
    gradient = torch.randn(2, 3, 9, 9)
    strength = gradient.square().mean(1).sqrt()
    cells = torch.stack([strength[:, i : i + 3, j : j + 3].mean((1, 2)) for i in (0, 3, 6) for j in (0, 3, 6)], 1)
    cells = torch.nn.functional.pad(cells.reshape(2, 1, 3, 3), (1, 1, 1, 1), mode="replicate")[:, 0]
    kernel = torch.tensor([1 / 9, 7 / 9, 1 / 9])  # of the sampled B-spline of spacing 3
    field = sum(
        kernel[i] * kernel[j] * cells[:, i : i + 3, j : j + 3] for i in range(3) for j in range(3)
    )  # at the centers of the cells
    result = saliency(gradient)[:, 0, 1::3, 1::3]
    for sample in range(2):
        a, b = field[sample].flatten(), result[sample].flatten()
        slope = (b[0] - b[1]) / (a[0] - a[1])  # the scaling to [0, 1] is linear
        torch.testing.assert_close(b - b[0], slope * (a - a[0]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("shape", [(12, 20), (7, 12, 9), (1, 8, 2)])
def test_sensitivity_reaches_0_and_1_in_each_sample(shape):
    torch.manual_seed(0)
    result = saliency(torch.randn(3, 2, *shape) * torch.tensor([1e-9, 1, 1e6]).reshape(3, *[1] * (len(shape) + 1)))
    assert result.shape == (3, 1, *shape)
    assert result.flatten(1).amin(1).tolist() == [0, 0, 0]
    assert result.flatten(1).amax(1).tolist() == [1, 1, 1]


@pytest.mark.parametrize("value", [0.0, 2.0, float("nan"), float("inf")])
def test_a_constant_or_infinite_gradient_has_no_sensitivity(value):
    for size in range(2, 12):
        assert (saliency(torch.full((1, 1, 6, size), value)) == 0).all()


@pytest.mark.parametrize("dims", [2, 3])
def test_both_versions_are_trained_and_fused_where_the_first_pass_is_sensitive(dims):
    torch.manual_seed(0)
    student = PlainStudent(dims, channels=2, rest=1)
    shape = (9, 8, 6)[:dims]
    data, target = torch.randn(2, 3, *shape) * 3 + 1, torch.randint(2, (2, 1, *shape))
    training = SLAug().training_module(student)
    batch = training.augment(a_batch(data, target, channels=2))
    local = training.local.clone()
    student.passes.clear()
    training_again = SLAug().training_module(student)
    training_again.augment = lambda given: batch
    training_again.local = local
    _, terms = a_step(training_again, student, batch)
    first, fused, own = student.passes
    assert torch.equal(first, own)
    assert torch.equal(own, batch.data)
    probe = batch.images.clone().requires_grad_()
    loss = student.loss(student.network(torch.cat([probe, data[:, 2:]], 1)), target)
    share = saliency(torch.autograd.grad(loss, probe)[0])
    torch.testing.assert_close(fused[:, :2], share * batch.images + (1 - share) * local, atol=1e-4, rtol=1e-4)
    assert torch.equal(fused[:, 2:], data[:, 2:])
    assert not fused.requires_grad
    torch.testing.assert_close(terms["segmentation"], student.loss(student.network(own), target))
    torch.testing.assert_close(terms["segmentation_fused"], student.loss(student.network(fused), target))
    assert training.weights(0) == {"segmentation": 1, "segmentation_fused": 1}
    assert student.network.weight.grad is None  # the first pass adds no gradient


class HalfPrecision(nn.Module):
    """Rounds the gradient to half precision, as under autocast; those below 3e-8 become zero."""

    def forward(self, x):
        return x.half().float()


def test_a_gradient_that_half_precision_would_round_to_zero_is_scaled():
    torch.manual_seed(0)
    student = PlainStudent()
    student.network, loss = nn.Sequential(HalfPrecision(), student.network), student.loss
    student.loss = lambda output, target: 1e-6 * loss(output, target)
    training = SLAug().training_module(student)
    batch = training.augment(a_batch(torch.randn(1, 1, 9, 9), torch.randint(2, (1, 1, 9, 9))))
    local = training.local
    training.losses(Step(student, batch, 0))
    probe = batch.images.clone().requires_grad_()
    share = saliency(torch.autograd.grad(loss(student.network(probe), batch.target), probe)[0])
    fused = share * batch.images + (1 - share) * local
    torch.testing.assert_close(student.passes[1], fused, atol=0.02, rtol=0)
    assert (fused - local).abs().max() > 0.5


def test_a_single_cell_has_no_sensitive_places_so_that_the_local_version_is_trained():
    torch.manual_seed(0)
    student = PlainStudent()
    training = SLAug(grid=1).training_module(student)
    given = a_batch(torch.randn(1, 1, 9, 9), torch.randint(2, (1, 1, 9, 9)))
    batch, local = training.augment(given), training.local
    training.losses(Step(student, batch, 0))
    assert torch.equal(student.passes[1], local)
    assert not torch.equal(local, batch.data)


@pytest.fixture
def given(monkeypatch):
    """Values, groups and direction that are given to `map_groups`, which returns them as they are."""
    calls = []

    def unchanged(values, group, maps, inverted=False):
        calls.append((values, group, inverted))
        return values

    monkeypatch.setattr(slaug, "map_groups", unchanged)
    return calls


def test_voxels_outside_a_mask_are_the_darkest_for_the_maps(given):
    student = PlainStudent(outside=Outside((True,), (True,)))
    data = torch.randn(1, 1, 6, 6)  # zero is in the middle of the range
    data[..., :2] = 0
    SLAug(p=1.0).training_module(student).augment(a_batch(data, torch.zeros(1, 1, 6, 6)))
    (whole,) = (values.reshape(6, 6) for values, _, inverted in given if not inverted)
    assert (whole[:, :2] == 0).all()
    assert (whole[:, 2:] == 0).sum() == 1


def test_versions_are_in_the_range_of_each_channel_and_padding_stays_zero():
    torch.manual_seed(0)
    student = PlainStudent(channels=2, outside=Outside((True, True), (True, True)))
    data = torch.randn(2, 2, 12, 12) * torch.tensor([1.0, 50]).reshape(1, 2, 1, 1)  # zero is the mean
    data[:, :, :3] = 0
    training = SLAug(p=1.0).training_module(student)
    batch = training.augment(a_batch(data, torch.randint(2, (2, 1, 12, 12))))
    inside = data[:, :, 3:].flatten(2)
    for version in (batch.data, training.local):
        assert (version[:, :, :3] == 0).all()
        changed = version[:, :, 3:].flatten(2)
        assert (changed >= inside.amin(2, keepdim=True) - 1e-3).all()
        assert (changed <= inside.amax(2, keepdim=True) + 1e-3).all()
        assert (changed != inside).float().mean() > 0.5


def test_ignored_voxels_are_mapped_as_background(given):
    student = PlainStudent(ignore=2)
    target = torch.tensor([[0, 2], [2, 1]])[None, None]
    SLAug(p=0.0).training_module(student).augment(a_batch(torch.rand(1, 1, 2, 2), target))
    assert [group.tolist() for _, group, inverted in given if inverted] == [[0, 0, 0, 1]]


def test_regions_are_mapped_in_combinations(given):
    student = PlainStudent(regions=True)
    target = torch.tensor([[[[0, 1], [1, 1]], [[0, 0], [1, 0]]]])
    SLAug(p=1.0).training_module(student).augment(a_batch(torch.rand(1, 1, 2, 2), target))
    assert [group.tolist() for _, group, inverted in given if inverted] == [[0, 1, 2, 1]]


def test_the_pass_for_the_sensitivity_is_aside():
    """It does not change running statistics, and devices do not synchronize it."""
    student = PlainStudent()
    student.network = nn.Sequential(nn.BatchNorm2d(1), student.network)
    training, seen = SLAug().training_module(student), []
    student.before_each_pass(lambda data: seen.append((student._aside, student.network[0].num_batches_tracked.item())))
    a_step(training, student, a_batch(torch.randn(2, 1, 6, 6), torch.randint(2, (2, 1, 6, 6))))
    assert seen == [(True, 0), (False, 0), (False, 1)]


@pytest.mark.parametrize("value", [3.0, float("nan")])
def test_constant_images_and_half_precision_are_finite(value):
    student = PlainStudent()
    data = torch.full((1, 1, 8, 8), value).nan_to_num(0).half()
    with torch.autocast("cpu", torch.bfloat16):
        batch, terms = a_step(SLAug().training_module(student), student, a_batch(data.float(), torch.zeros(1, 1, 8, 8)))
    torch.testing.assert_close(batch.data, data.float())
    assert all(torch.isfinite(term) for term in terms.values())


@pytest.mark.parametrize(("name", "value"), [("p", 1.1), ("grid", 0), ("grid", 2.5)])
def test_bad_settings_are_refused_by_name(name, value):
    with pytest.raises(SettingsError, match=f"{name} must be .*; got {value}"):
        SLAug(**{name: value})
