import pytest

from nnunet_dg.datasets.labels import Labels
from nnunet_dg.errors import DataError


@pytest.mark.parametrize(
    ("labels", "foreground", "ignore"),
    [
        ({"background": 0, "a": 1, "b": 2}, {"a": [1], "b": [2]}, None),
        ({"background": "0", "a": "1", "b": "2"}, {"a": [1], "b": [2]}, None),
        ({"background": 0.0, "a": 1.0}, {"a": [1]}, None),
        ({"background": 0, "a": [1], "b": [2]}, {"a": [1], "b": [2]}, None),  # lists of one value are not regions
        ({"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}, {"whole": [1, 2], "core": [2]}, 3),
        ({"background": 0, "whole": [1.0, 2.0], "core": [2]}, {"whole": [1, 2], "core": [2]}, None),
        ({"background": 0, "outside": 0, "a": 1}, {"a": [1]}, None),
    ],
)
def test_labels_agree_with_nnunets_label_manager(labels, foreground, ignore):
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    dataset = {"labels": labels, "regions_class_order": [1, 2]}
    read = Labels.of_dataset(dataset)
    assert (read.foreground, read.ignore) == (foreground, ignore)
    manager = LabelManager(labels, [1, 2])
    ignored = [manager.ignore_label] if manager.has_ignore_label else []
    assert read.values == sorted([*manager.all_labels, *ignored])
    if not manager.has_regions:
        assert sorted(value for values in read.foreground.values() for value in values) == manager.foreground_labels


@pytest.mark.parametrize(
    ("labels", "fault"),
    [
        ({"0": "background", "1": "a"}, "nnU-Net does not accept these labels: Background label not declared"),
        ({"a": 1}, "Background label not declared"),
        ({"background": 1, "a": 2}, "Background label must be 0"),
        ({"background": 0, "a": None}, "nnU-Net does not accept these labels"),
        ({"background": 0, "a": "one"}, "invalid literal for int"),
        ({"background": 0, "a": {"b": 1}}, "nnU-Net does not accept these labels"),
        ({"background": 0, "a": [[1, 2], 3]}, "nnU-Net does not accept these labels"),
        ({"background": 0, "a": float("nan")}, "cannot convert float NaN"),
        ({"background": 0, "a": float("inf")}, "cannot convert float infinity"),
        ({"background": 0, "a": [1, 2]}, "you need to define regions_class_order"),
        ({"background": 0, "a": 1, "ignore": 1}, "it must have the highest label value"),
        ({"background": 0, "a": 1, "ignore": "2"}, "Ignore label has to be an integer"),
        ({"background": 0, "a": 1.7}, "'a' must be one or more integers in [0, 65535]; got 1.7"),
        ({"background": 0, "a": -1}, "'a' must be one or more integers in [0, 65535]; got -1"),
        ({"background": 0, "a": 10**50}, "'a' must be one or more integers in [0, 65535]"),
        ({"background": 0, "a": 70000}, "got 70000"),
        ({"background": 0, "a": []}, "'a' must be one or more integers in [0, 65535]; got []"),
        ({"background": 0}, "no label other than the background"),
    ],
)
def test_invalid_labels_are_refused_in_one_line(labels, fault):
    with pytest.raises(DataError) as raised:
        Labels.of_dataset({"labels": labels}, "/data/dataset.json")
    assert str(raised.value).startswith("/data/dataset.json")
    assert fault in str(raised.value)
    assert "\n" not in str(raised.value)


def test_numbers_as_text_are_refused_in_a_dataset_with_regions():
    """nnU-Net accepts them and then finds no voxel of the region."""
    dataset = {"labels": {"background": 0, "whole": ["1", "2"], "core": 2}, "regions_class_order": [1, 2]}
    with pytest.raises(DataError, match=r"'whole' is \['1', '2'\].* finds no voxel of this label.*Write \[1, 2\]"):
        Labels.of_dataset(dataset)
