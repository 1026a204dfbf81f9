"""The class of each voxel, for labels, regions and the ignore label."""

import pytest
import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunet_dg.training.voxel_classes import Classes


def test_the_classes_of_plain_labels_are_the_labels():
    classes = Classes(LabelManager({"background": 0, "a": 1, "b": 2}, None))
    target = torch.tensor([0.0, 1, 2, 0]).reshape(1, 1, 2, 2)
    assert classes.num == 3
    assert classes.of_target([target, target[..., ::2]]).tolist() == [[[0, 1], [2, 0]]]
    assert classes.of_target(target).dtype == torch.int64


def test_the_ignore_label_is_not_a_class():
    classes = Classes(LabelManager({"background": 0, "a": 1, "b": 2, "ignore": 3}, None))
    assert classes.num == 3
    assert classes.of_target(torch.tensor([0, 3, 2, 1]).reshape(1, 1, 4)).tolist() == [[0, -1, 2, 1]]


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float32])
@pytest.mark.parametrize("ignore", [False, True])
def test_a_class_is_one_combination_of_regions(dtype, ignore):
    """Label 1 is in whole and rim; labels 2 and 3 are in whole and core, so that they are one combination."""
    labels = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "rim": 1}
    manager = LabelManager(labels | ({"ignore": 4} if ignore else {}), [1, 2, 1])
    classes = Classes(manager)
    assert classes.num == 3
    segmentation = torch.tensor([0, 1, 2, 3, 4 if ignore else 0])
    channels = [torch.isin(segmentation, torch.tensor(r)) for r in ([1, 2, 3], [2, 3], [1])]
    if ignore:
        channels.append(segmentation == 4)
    target = torch.stack(channels)[None].to(dtype)
    background, one, two, three, last = classes.of_target(target)[0].tolist()
    assert len({background, one, two}) == 3
    assert {background, one, two} == {0, 1, 2}
    assert two == three
    assert last == (-1 if ignore else background)


def test_a_combination_without_a_label_is_not_a_class():
    classes = Classes(LabelManager({"background": 0, "whole": [1, 2], "core": 2}, [1, 2]))
    assert classes.of_target(torch.tensor([[[0.0], [1]]])).tolist() == [[-1]]  # core, but not whole
