"""Agreement of views: values of the specification, agreement with a loop, properties, gradients, and the passes."""

import math

import pytest
import torch
from plain_student import PlainStudent, a_batch, a_step

from nnunet_dg.mechanisms.views import ViewsTraining, view_divergences

LOGITS = torch.tensor([[[2.0, 0], [0, 1]], [[1, 0], [0, 0]], [[0, 0], [1, 1]]])[:, None]  # view, sample, class, voxel
PROBABILITIES = torch.tensor([[0.7, 0.3], [0.5, 0.5], [0.9, 0.1]])[:, None, :, None]


def test_hand_value_of_classes():
    """Example IPA-4: the divergence of each view in two voxels, and its mean."""
    result = view_divergences(list(LOGITS))
    expected = torch.tensor([[0.212495, 0.014312], [0.025761, 0.048237], [0.279626, 0.014312]])
    torch.testing.assert_close(result[:, 0], expected, atol=1e-6, rtol=0)
    assert result.mean().item() == pytest.approx(0.099124, abs=1e-6)


def test_hand_value_of_regions():
    """Example IPA-5: the same logits as two regions."""
    assert view_divergences(list(LOGITS), regions=True).mean().item() == pytest.approx(0.059123, abs=1e-6)


def test_hand_values_of_both_directions():
    """GIN+IPA's divergence of three probabilities, (0, 0.082283, 0.153664), and RandConv's, 0.067833 on average."""
    result = view_divergences(list(PROBABILITIES.log()))
    torch.testing.assert_close(result.flatten(), torch.tensor([0, 0.082283, 0.153664]), atol=1e-6, rtol=0)
    assert result.mean().item() / 2 == pytest.approx(0.039324, abs=1e-6)  # over views and classes
    assert view_divergences(list(PROBABILITIES.log()), to_mean=True).mean().item() == pytest.approx(0.067833, abs=1e-6)


@pytest.mark.parametrize("to_mean", [False, True])
@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("spatial", [(3, 2), (2, 1, 3)])
def test_agrees_with_a_loop_over_views_classes_and_voxels(spatial, regions, to_mean):
    torch.manual_seed(0)
    views = [torch.randn(2, 3, *spatial, dtype=torch.float64) for _ in range(4)]
    result = view_divergences(views, regions, to_mean).flatten(2)
    flat = [view.flatten(2) for view in views]
    for sample in range(2):
        for voxel in range(math.prod(spatial)):
            values = [[float(view[sample, k, voxel]) for k in range(3)] for view in flat]
            for i, each in enumerate(divergences(values, regions, to_mean)):
                assert float(result[i, sample, voxel]) == pytest.approx(each, rel=1e-9)


def divergences(values, regions, to_mean):
    """The divergence of each view, from its list of logits."""
    if regions:
        binary = [[[1 / (1 + math.exp(-v)), 1 / (1 + math.exp(v))] for v in view] for view in values]
    else:
        binary = [[[math.exp(v) / sum(map(math.exp, view)) for v in view]] for view in values]
    for view in binary:
        total = 0
        for part, own in enumerate(view):
            for outcome, p in enumerate(own):
                mean = sum(other[part][outcome] for other in binary) / len(binary)
                total += p * math.log(p / mean) if to_mean else mean * math.log(mean / p)
        yield total


def test_equal_views_agree_and_the_order_of_views_does_not_matter():
    torch.manual_seed(0)
    views = list(torch.randn(3, 1, 2, 4, 4))
    assert view_divergences([views[0]] * 3).abs().max() < 1e-6
    torch.testing.assert_close(view_divergences(views[::-1]).flip(0), view_divergences(views))


@pytest.mark.parametrize("to_mean", [False, True])
@pytest.mark.parametrize("regions", [False, True])
def test_gradients_reach_all_views_also_through_the_mean(regions, to_mean):
    torch.manual_seed(0)
    views = torch.randn(3, 1, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: view_divergences(list(x), regions, to_mean).mean(), (views,))


@pytest.mark.parametrize("regions", [False, True])
def test_half_precision_and_certain_predictions_give_finite_values_and_gradients(regions):
    views = (torch.tensor([1.0, -1, 0]) * 200)[:, None, None, None] * torch.tensor([1.0, -1])[None, None, :, None]
    views = views.half().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = view_divergences(list(views), regions).mean()
    loss.backward()
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    assert torch.isfinite(views.grad).all()


class Shifted(ViewsTraining):
    """Views that are 1, 2 and 3 brighter than the image."""

    def views(self, images):
        yield from (images + shift for shift in (1, 2, 3))

    def disagreement(self, logits):
        return view_divergences(logits, self.student.regions).mean()


def test_the_first_view_is_segmented_and_the_others_have_the_same_cascade_channels():
    student = PlainStudent(channels=1, rest=1)
    data, target = torch.randn(2, 2, 4, 4), torch.randint(2, (2, 1, 4, 4))
    training = Shifted(student, 0.5)
    batch, terms = a_step(training, student, a_batch(data, target, channels=1))
    shifts = [(passed - data)[:, 0].mean().round().item() for passed in student.passes]
    assert shifts == [1, 2, 3]
    assert all(torch.equal(passed[:, 1], data[:, 1]) for passed in student.passes)
    torch.testing.assert_close(batch.data, student.passes[0])
    torch.testing.assert_close(terms["segmentation"], student.loss(student.network(batch.data), target))
    logits = [student.network(passed) for passed in student.passes]
    torch.testing.assert_close(terms["view_consistency"], view_divergences(logits).mean())
    assert training.weights(0) == {"view_consistency": 0.5}


@pytest.mark.parametrize(("consistency", "lines"), [(1.0, 1), (0.0, 0)])
def test_the_memory_of_three_passes_is_in_the_log(consistency, lines):
    student = PlainStudent()
    Shifted(student, consistency).prepare()
    assert len(student.lines) == lines
    assert all("three times the memory" in line and "-gpu_memory_target" in line for line in student.lines)


def test_without_a_consistency_there_is_one_pass():
    student = PlainStudent()
    training = Shifted(student, 0.0)
    _, terms = a_step(training, student, a_batch(torch.randn(2, 1, 4, 4), torch.zeros(2, 1, 4, 4)))
    assert set(terms) == {"segmentation"}
    assert len(student.passes) == 1
    assert training.weights(0) == {}
