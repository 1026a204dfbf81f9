"""A method's view of a training: batches, passes and the features that are read in them."""

import pytest
import torch
from torch import nn

from nnunet_dg.method import Batch, Step, Student, full_resolution


class PlainStudent(Student):
    """A student in plain PyTorch, whose only stage is the identity."""

    def __init__(self):
        super().__init__()
        self.stage = nn.Identity()
        self.network = nn.Sequential(self.stage, nn.Flatten()).train()

    def module(self, stage):
        return self.stage

    def loss(self, output, target):
        return (output.sum() - full_resolution(target).sum()).abs()

    full_resolution_loss = classes = domains = log = agreed = scaled = None
    domain_names = training_domains = pretrained = None


def test_image_channels_are_replaced_and_those_of_a_cascades_previous_stage_are_kept():
    data = torch.arange(12.0).reshape(1, 3, 4)
    batch = Batch(data, data, ("a",), 2)
    assert torch.equal(batch.images, data[:, :2])
    changed = batch.with_images(-batch.images)
    assert torch.equal(changed.data, torch.cat([-data[:, :2], data[:, 2:]], 1))
    assert torch.equal(batch.data, data)
    assert (changed.keys, changed.image_channels) == (("a",), 2)


def test_the_batchs_own_pass_is_computed_once_and_keeps_its_features_after_later_passes():
    student = PlainStudent()
    tap, passes = student.tap(0), []
    student.before_each_pass(passes.append)
    data = torch.ones(1, 1, 3)
    step = Step(student, Batch(data, torch.zeros(1), ("a",), 1), 7)
    assert passes == []
    assert torch.equal(step.output, data.flatten(1))
    other = step.forward(5 * data)
    assert torch.equal(other.features(tap), 5 * data)
    assert torch.equal(step.own.features(tap), data)
    assert len(passes) == 2
    assert float(step.segmentation(step.output)) == 3
    assert float(step.segmentation(step.output, torch.ones(1))) == 2
    assert step.epoch == 7


@pytest.mark.parametrize(
    ("stage", "at", "error", "message"),
    [
        ("penultimate", "stage", TypeError, "Only the features of encoder stages can be replaced; got 'penultimate'"),
        (0, "norm", ValueError, "at must be one of stage, pre-activation; got 'norm'"),
        (0, "pre-activation", NotImplementedError, "PlainStudent does not know the last non-linearity of a stage"),
    ],
)
def test_features_that_cannot_be_replaced_are_refused_by_name(stage, at, error, message):
    with pytest.raises(error, match=message):
        PlainStudent().change(stage, lambda feature: feature, at=at)


@pytest.mark.parametrize("scales", [torch.ones(2), [torch.ones(2), torch.zeros(1)]])
def test_full_resolution_is_the_first_scale(scales):
    assert torch.equal(full_resolution(scales), torch.ones(2))
