"""What the planners add, on plans made by hand; tests/contract/test_planners.py runs nnU-Net's commands."""

import json
from copy import deepcopy

import pytest

from nnunet_dg.dropgen import DropGenSettings
from nnunet_dg.nnunet.planning import WHAT_MAKES_THE_DATA, WHAT_MAKES_THE_DATASET, DropGenPlanning, share_data


class Host:
    """Stands where nnU-Net's planner stands."""

    def __init__(self, *args, **kwargs):
        self.arguments = kwargs

    @staticmethod
    def static_estimate_VRAM_usage(patch_size, input_channels, *rest):
        return 1000 * input_channels

    def get_plans_for_configuration(self, *args, **kwargs):
        return {"patch_size": [1, 64, 64], "batch_size": 2}


class Planner(DropGenPlanning, Host):
    plans_name = "somePlans"
    dropgen = DropGenSettings(extractor="mind")


def test_names_and_targets_are_the_planners_own_unless_given():
    assert Planner(1).arguments["plans_name"] == "somePlans"
    assert "gpu_memory_target_in_gb" not in Planner(1).arguments
    given = Planner(1, 24, plans_name="mine", overwrite_target_spacing=[1.0, 1.0, 1.0]).arguments
    assert (given["plans_name"], given["gpu_memory_target_in_gb"]) == ("mine", 24)
    assert given["overwrite_target_spacing"] == [1.0, 1.0, 1.0]


def test_counts_the_combined_channels_or_what_the_extractor_holds_by_hand():
    one_channel = Planner(1).static_estimate_VRAM_usage((2, 2, 2), 1, 3, "", {}, ())
    assert one_channel == 1000 * 13 + 13 * 8 / 2
    wide = Planner(1).static_estimate_VRAM_usage((64, 64, 64), 1, 3, "", {}, ())
    assert wide > 13_000 + 13 * 64**3 / 2  # MIND holds about 51 numbers a voxel: more than this network
    assert wide == pytest.approx(51 * 64**3 / 2, rel=0.02)


def test_in_two_dimensions_the_features_are_minds():
    class Anatomix(Planner):
        dropgen = DropGenSettings()

    assert Anatomix(1).static_estimate_VRAM_usage((2, 2), 1, 3, "", {}, ()) == 1000 * 5 + 5 * 4 / 2


def test_no_axis_of_a_patch_is_too_short_for_an_extractor():
    assert Planner(1).get_plans_for_configuration()["patch_size"] == [2, 64, 64]


def plans(name, **changed):
    dataset = {"transpose_forward": [0, 1, 2], "image_reader_writer": "A"}
    dataset["foreground_intensity_properties_per_channel"] = {"0": {"mean": 50.0}}
    configuration = {key: f"the same {key}" for key in WHAT_MAKES_THE_DATA}
    configuration |= {key: value for key, value in changed.items() if key in WHAT_MAKES_THE_DATA}
    configurations = {
        "3d_fullres": configuration | {"data_identifier": f"{name}_3d_fullres"},
        "3d_cascade_fullres": {"inherits_from": "3d_fullres"},
    }
    return dataset | {k: v for k, v in changed.items() if k in dataset} | {
        "plans_name": name, "configurations": configurations,
    }  # fmt: skip


def shared(tmp_path, ours, *others):
    for other in others:
        (tmp_path / f"{other['plans_name']}.json").write_text(json.dumps(other))
    (tmp_path / "dataset_fingerprint.json").write_text("{}")
    ours = deepcopy(ours)
    share_data(ours, tmp_path)
    return ours["configurations"]["3d_fullres"]["data_identifier"]


def test_the_same_data_are_shared(tmp_path, capsys):
    assert shared(tmp_path, plans("ours"), plans("nnUNetPlans")) == "nnUNetPlans_3d_fullres"
    assert "nnUNetv2_preprocess -plans_name ours -c 3d_fullres" in capsys.readouterr().out  # nobody has made them yet


def test_data_that_exist_come_first(tmp_path, capsys):
    (tmp_path / "resEncPlans_3d_fullres").mkdir()
    assert shared(tmp_path, plans("ours"), plans("nnUNetPlans"), plans("resEncPlans")) == "resEncPlans_3d_fullres"
    assert "To be preprocessed" not in capsys.readouterr().out


@pytest.mark.parametrize("key", [*WHAT_MAKES_THE_DATA, *WHAT_MAKES_THE_DATASET])
def test_other_data_are_not_shared(tmp_path, key):
    assert shared(tmp_path, plans("ours"), plans("nnUNetPlans", **{key: "another"})) == "ours_3d_fullres"
