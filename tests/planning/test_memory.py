"""What our planners add to nnU-Net's, on handmade plans. tests/contract/test_planners.py runs nnU-Net's commands."""

import json
from copy import deepcopy

import pytest
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner

from nnunet_dg.dropgen import DropGenSettings
from nnunet_dg.errors import SettingsError
from nnunet_dg.planning.memory import DropGenPlanning, share_data
from nnunet_dg.planning.shared_data import kept_sections
from nnunet_dg.training.plans import planned_for_other

MAKES_THE_DATASET = ("transpose_forward", "image_reader_writer", "foreground_intensity_properties_per_channel")
MAKES_THE_DATA = (
    "preprocessor_name", "spacing", "normalization_schemes", "use_mask_for_norm", "resampling_fn_data",
    "resampling_fn_seg", "resampling_fn_data_kwargs", "resampling_fn_seg_kwargs",
)  # fmt: skip


class Planner(DropGenPlanning, ExperimentPlanner):
    plans_name = "somePlans"
    dropgen = DropGenSettings(extractor="mind")


class PlannerAnatomix(DropGenPlanning, ExperimentPlanner):
    plans_name = "somePlans"


def network(spatial_dims, features):
    """A network class and its arguments, as in plans."""
    arguments = {
        "n_stages": 2, "features_per_stage": [features] * 2, "kernel_sizes": [3, 3], "strides": [1, 2],
        "conv_op": f"torch.nn.modules.conv.Conv{spatial_dims}d",
        "n_conv_per_stage": [1, 1], "n_conv_per_stage_decoder": [1],
    }  # fmt: skip
    return "dynamic_network_architectures.architectures.unet.PlainConvUNet", arguments, ("conv_op",)


def counted(planner, patch, channels, features):
    """The estimate of a planner without a dataset, which it does not need for counting."""
    return planner.__new__(planner).static_estimate_VRAM_usage(patch, channels, 3, *network(len(patch), features))


def by_nnunet(patch, channels, features):
    return ExperimentPlanner.static_estimate_VRAM_usage(patch, channels, 3, *network(len(patch), features))


def test_memory_estimate_is_nnunets_for_the_combined_channels_plus_the_channels_themselves():
    patch = (16, 16, 16)
    expected = by_nnunet(patch, 13, 32) + 13 * 16**3 / 2
    assert counted(Planner, patch, 1, 32) == expected
    assert expected > by_nnunet(patch, 1, 32)


@pytest.mark.parametrize("channels", [1, 4])
def test_memory_estimate_is_at_least_the_extractors_peak(channels):
    patch, combined = (64, 64, 64), channels * 13
    network_alone = by_nnunet(patch, combined, 1) + combined * 64**3 / 2
    extractor = channels * 51 * 64**3 / 2  # MIND holds about 51 numbers a voxel and channel
    assert extractor > network_alone
    assert counted(Planner, patch, channels, 1) == pytest.approx(extractor, rel=0.02)


@pytest.mark.parametrize("layer", ["penultimate", "final"])
def test_two_dimensional_plans_count_mind_features(layer):
    class PlannerLayer(PlannerAnatomix):
        dropgen = DropGenSettings(layer=layer)

    patch = (32, 32)
    assert counted(PlannerLayer, patch, 1, 32) == by_nnunet(patch, 5, 32) + 5 * 32**2 / 2


COUNTED = {"nnunet_dg": {"planned_for": {"3d": {"extractor": "anatomix", "layer": "penultimate", "p": 0.5}}}}


def test_a_training_with_other_features_than_planned_is_warned():
    assert planned_for_other(COUNTED, DropGenSettings(p=0.25), 3) == ""
    assert planned_for_other(COUNTED, DropGenSettings(extractor="mind"), 2) == ""  # not counted for 2-D
    assert planned_for_other({}, DropGenSettings(), 3) == ""
    told = planned_for_other(COUNTED, DropGenSettings(extractor="anatomix-dev"), 3)
    assert "chosen for extractor 'anatomix', but this training has 'anatomix-dev'" in told
    everything = {"layer": "penultimate", "combine": "concat", "inputs": "image+features"}
    for name, other in (("layer", "final"), ("combine", "mean"), ("inputs", "features")):
        counted = {"nnunet_dg": {"planned_for": {"3d": everything}}}
        assert f"chosen for {name} '{everything[name]}'" in planned_for_other(
            counted, DropGenSettings(**{name: other}), 3
        )


def plans(name, **changed):
    dataset = {"transpose_forward": [0, 1, 2], "image_reader_writer": "A"}
    dataset["foreground_intensity_properties_per_channel"] = {"0": {"mean": 50.0}}
    configuration = {key: f"the same {key}" for key in MAKES_THE_DATA}
    configuration |= {key: value for key, value in changed.items() if key in MAKES_THE_DATA}
    configurations = {
        "3d_fullres": configuration | {"data_identifier": f"{name}_3d_fullres"},
        "3d_cascade_fullres": {"inherits_from": "3d_fullres"},
    }
    return dataset | {k: v for k, v in changed.items() if k in dataset} | {
        "dataset_name": "Dataset701_Tiny", "plans_name": name, "configurations": configurations,
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
    assert (
        "nnUNetv2_preprocess -d 701 -plans_name ours -c 3d_fullres" in capsys.readouterr().out
    )  # they do not exist yet


def test_existing_data_are_preferred(tmp_path, capsys):
    (tmp_path / "resEncPlans_3d_fullres").mkdir()
    assert shared(tmp_path, plans("ours"), plans("nnUNetPlans"), plans("resEncPlans")) == "resEncPlans_3d_fullres"
    printed = capsys.readouterr().out
    assert "Still to preprocess" not in printed
    assert "nnUNetv2_plan_and_preprocess deletes and recreates" in printed  # they belong to another plans file


def test_data_of_nnunets_default_plans_are_preferred(tmp_path):
    assert shared(tmp_path, plans("ours"), plans("aPlans"), plans("nnUNetPlans")) == "nnUNetPlans_3d_fullres"


@pytest.mark.parametrize("key", [*MAKES_THE_DATA, *MAKES_THE_DATASET])
def test_data_that_differ_are_not_shared(tmp_path, key):
    assert shared(tmp_path, plans("ours"), plans("nnUNetPlans", **{key: "another"})) == "ours_3d_fullres"


@pytest.mark.parametrize(
    "content", ["[]", "null", "3", '"text"', "{}", '{"configurations": null}', '{"dataset_name"', ""]
)
@pytest.mark.parametrize("name", ["aPlans.json", "nnUNetPlans.json", "notes.json"])
def test_files_that_are_not_plans_do_not_stop_planning(tmp_path, name, content, capsys):
    (tmp_path / name).write_text(content)
    assert shared(tmp_path, plans("ours"), plans("zPlans")) == "zPlans_3d_fullres"
    damaged = content in ('{"configurations": null}', '{"dataset_name"', "")
    assert (str(tmp_path / name) in capsys.readouterr().out) == damaged


def test_binary_files_folders_and_hidden_files_do_not_stop_planning(tmp_path, capsys):
    (tmp_path / "._nnUNetPlans.json").write_bytes(b"\0\5\xff")
    (tmp_path / "aPlans.json").write_bytes(b"\0\5\xff")
    (tmp_path / "bPlans.json").mkdir()
    assert shared(tmp_path, plans("ours"), plans("zPlans")) == "zPlans_3d_fullres"
    printed = capsys.readouterr().out
    assert "aPlans.json contains NUL bytes" in printed
    assert "bPlans.json is not a regular file" in printed
    assert "._nnUNetPlans" not in printed


def test_data_of_plans_without_a_data_identifier_are_not_shared(tmp_path):
    other = plans("aPlans")
    del other["configurations"]["3d_fullres"]["data_identifier"]
    assert shared(tmp_path, plans("ours"), other) == "ours_3d_fullres"


def test_settings_of_an_earlier_plans_file_are_kept(tmp_path):
    path = tmp_path / "ours.json"
    assert kept_sections(path) == {}
    path.write_text(json.dumps(plans("ours") | {"dataset_name": "x", "nnunet_dg": {"dropgen": {"p": 0.25}}}))
    assert kept_sections(path) == {"dropgen": {"p": 0.25}}
    path.write_text(json.dumps(plans("ours") | {"dataset_name": "x", "nnunet_dg": {"dropgem": {}}}))
    with pytest.raises(SettingsError, match=r"ours\.json: .*Did you mean 'dropgen'"):
        kept_sections(path)


@pytest.mark.parametrize("content", ['{"configurations": {"2d": {', "[]", "{}"])
def test_a_damaged_earlier_plans_file_is_renamed_and_kept(tmp_path, content, capsys):
    path = tmp_path / "ours.json"
    path.write_text(content)
    assert kept_sections(path) == {}
    assert not path.exists()
    assert (tmp_path / "ours.json.damaged").read_text() == content
    assert "ours.json.damaged" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gpu_memory_target_in_gb": float("nan")}, r"-gpu_memory_target must be a positive number.*got nan"),
        ({"gpu_memory_target_in_gb": 0.0}, r"-gpu_memory_target must be a positive number.*got 0"),
        ({"gpu_memory_target_in_gb": -8.0}, r"-gpu_memory_target must be a positive number.*got -8"),
        ({"gpu_memory_target_in_gb": float("inf")}, r"-gpu_memory_target must be a positive number.*got inf"),
        ({"overwrite_target_spacing": [1.0, 1.0]}, r"-overwrite_target_spacing takes three.*got 2: 1\.0, 1\.0"),
        ({"overwrite_target_spacing": []}, r"-overwrite_target_spacing takes three.*got 0"),
        ({"overwrite_target_spacing": [0.0] * 3}, r"three positive numbers.*got 0\.0, 0\.0, 0\.0"),
        ({"overwrite_target_spacing": [1.0, float("nan"), 1.0]}, r"three positive numbers.*got 1\.0, nan"),
        ({"overwrite_target_spacing": [1.0, float("inf"), 1.0]}, r"three positive numbers.*got 1\.0, inf"),
        ({"overwrite_target_spacing": [1.0, -1.0, 1.0]}, r"three positive numbers.*got 1\.0, -1"),
        ({"plans_name": "../elsewhere"}, r"plans name becomes a file name.*'\.\./elsewhere'"),
        ({"plans_name": ".."}, r"plans name becomes a file name"),
        ({"plans_name": ""}, r"plans name becomes a file name"),
    ],
)
def test_invalid_options_are_refused_with_an_explanation(options, message):
    with pytest.raises(SettingsError, match=message):
        Planner(701, **options)


@pytest.mark.parametrize("patch", [(0, 4, 4), (4, -1, 4), (4, 0)])
def test_a_memory_target_for_which_the_patch_shrinks_to_nothing_is_refused(patch):
    planner = PlannerAnatomix.__new__(PlannerAnatomix)
    planner.UNet_vram_target_GB = 0.01
    with pytest.raises(SettingsError, match=rf"-gpu_memory_target 0\.01 .* too small for any {len(patch)}-D network"):
        planner.static_estimate_VRAM_usage(patch, 1, 3, *network(len(patch), 32))
