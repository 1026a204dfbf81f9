"""GIN+IPA: values of the specification, agreement with a naive version, properties, and the views of a step."""

import pytest
import torch
from plain_student import PlainStudent, a_batch, a_step

from nnunet_dg.baselines.gin_ipa import GIN_IPA, blend, blending_mask, control_spacing, draw_control
from nnunet_dg.errors import SettingsError
from nnunet_dg.mechanisms.views import view_divergences
from nnunet_dg.outside import Outside


def test_hand_value_of_a_mask():
    """Example IPA-2 of the specification, along one axis."""
    control = torch.tensor([[0.5, -1, 2, 0, 1]], dtype=torch.float64) / 2.5
    expected = [0.0, 0.065018, 0.250587, 0.630318, 0.910516, 1.0, 0.867424, 0.558863, 0.395104]
    torch.testing.assert_close(blending_mask(control, (4,), (9,)).flatten().tolist(), expected, atol=1e-6, rtol=0)


def test_hand_value_of_a_blend():
    """Example IPA-3 of the specification."""
    first, second, mask = (torch.tensor(v)[None, None] for v in ([1.0, 2, -1], [0.0, 4, 3], [0, 0.25, 1]))
    one, other = blend(first, second, mask)
    assert one.flatten().tolist() == [0, 3.5, -1]
    assert other.flatten().tolist() == [1, 2.5, 3]


def test_both_blends_add_up_to_the_sum_of_the_images():
    torch.manual_seed(0)
    first, second = torch.randn(2, 2, 3, 5, 5)
    mask = torch.rand(2, 1, 5, 5)
    torch.testing.assert_close(sum(blend(first, second, mask)), first + second)


@pytest.mark.parametrize("shape", [(20, 33), (9, 16, 30)])
def test_masks_reach_0_and_1_in_each_sample_and_have_one_more_control_point_beyond_each_end(shape):
    torch.manual_seed(0)
    spacing = (4, 8, 16)[-len(shape) :]
    control = draw_control(3, spacing, shape)
    assert control.shape == (3, *(-(-size // s) + 2 for size, s in zip(shape, spacing, strict=True)))
    torch.testing.assert_close(control.flatten(1).norm(dim=1), torch.ones(3))
    mask = blending_mask(control, spacing, shape)
    assert mask.shape == (3, 1, *shape)
    assert mask.flatten(1).amin(1).tolist() == [0, 0, 0]
    assert mask.flatten(1).amax(1).tolist() == [1, 1, 1]
    torch.testing.assert_close(blending_mask(control[1:2], spacing, shape), mask[1:2], atol=1e-5, rtol=0)


def test_rescaling_the_field_in_between_changes_nothing():
    """The published form scales the field to 0.7 ... 1.3 first."""
    torch.manual_seed(0)
    control = draw_control(1, (4, 4), (12, 12)).double()
    mask = blending_mask(control, (4, 4), (12, 12))
    published = 0.7 + 0.6 * mask
    torch.testing.assert_close((published - published.min()) / (published.max() - published.min()), mask)


def test_a_constant_field_blends_half_and_half():
    assert (blending_mask(torch.zeros(1, 4, 4), (4, 4), (8, 8)) == 0.5).all()


def test_the_spacing_is_equal_in_millimeters_and_at_least_two_voxels():
    assert control_spacing(16, (1.0, 1.0, 1.0)) == (16, 16, 16)
    assert control_spacing(16, (3.0, 0.5, 1.0)) == (3, 16, 8)
    assert control_spacing(16, (100.0, 1.0)) == (2, 16)


class Ramp:
    """In place of GIN: the images plus 1, 2, 3, ... in successive calls."""

    def __init__(self):
        self.calls = 0

    def __call__(self, images, settings, outside):
        self.calls += 1
        return images + self.calls


@pytest.fixture
def ramp(monkeypatch):
    ramp = Ramp()
    monkeypatch.setattr("nnunet_dg.baselines.gin_ipa.random_view", ramp)
    return ramp


def test_the_views_are_two_blends_and_an_unblended_version(ramp):
    torch.manual_seed(0)
    student = PlainStudent()
    data, target = torch.zeros(2, 1, 32, 32), torch.randint(2, (2, 1, 32, 32))
    training = GIN_IPA().training_module(student)
    _, terms = a_step(training, student, a_batch(data, target))
    first, exchanged, third = student.passes
    torch.testing.assert_close(first + exchanged, torch.full_like(first, 3.0))  # of versions 1 and 2
    assert first.flatten(1).amin(1).tolist() == [1, 1]
    assert first.flatten(1).amax(1).tolist() == [2, 2]
    assert not torch.equal(first[0], first[1])  # one mask per sample
    assert (third == 3).all()
    logits = [student.network(view) for view in student.passes]
    expected = view_divergences(logits).mean() / 2  # over two classes
    torch.testing.assert_close(terms["view_consistency"], expected)
    torch.testing.assert_close(terms["segmentation"], student.loss(logits[0], target))
    assert training.weights(0) == {"view_consistency": 10.0}


def test_regions_are_independent(ramp):
    student = PlainStudent(outputs=3, regions=True)
    target = torch.randint(2, (2, 3, 16, 16))
    _, terms = a_step(GIN_IPA().training_module(student), student, a_batch(torch.zeros(2, 1, 16, 16), target))
    logits = [student.network(view) for view in student.passes]
    torch.testing.assert_close(terms["view_consistency"], view_divergences(logits, regions=True).mean() / 3)


def test_without_a_consistency_only_the_first_blend_is_made(ramp):
    student = PlainStudent()
    batch = a_batch(torch.zeros(2, 1, 16, 16), torch.zeros(2, 1, 16, 16))
    a_step(GIN_IPA(consistency=0).training_module(student), student, batch)
    assert len(student.passes) == 1
    assert ramp.calls == 2


@pytest.mark.parametrize("dims", [2, 3])
def test_masked_voxels_and_padding_stay_zero_in_all_views_and_gradients_are_finite(dims):
    student = PlainStudent(dims, channels=2, rest=1, outside=Outside((True, True), (True, True)))
    data = torch.randn(2, 3, *[12] * dims) + 5
    data[:, :2, :3] = 0
    batch = a_batch(data, torch.randint(2, (2, 1, *[12] * dims)), channels=2)
    _, terms = a_step(GIN_IPA(spacing=4).training_module(student), student, batch)
    assert len(student.passes) == 3
    for view in student.passes:
        assert (view[:, :2, :3] == 0).all()
        assert (view[:, :2, 3:] != data[:, :2, 3:]).all()
        assert torch.equal(view[:, 2:], data[:, 2:])
        assert not view.requires_grad
    terms["view_consistency"].backward()
    assert torch.isfinite(student.network.weight.grad).all()
    assert (student.network.weight.grad != 0).any()


@pytest.mark.parametrize(
    ("name", "value"), [("spacing", 1), ("spacing", 4.5), ("consistency", -1), ("layers", 0), ("keep_outside", 1)]
)
def test_bad_settings_are_refused_by_name(name, value):
    with pytest.raises(SettingsError, match=f"{name} must be .*; got {value}"):
        GIN_IPA(**{name: value})
