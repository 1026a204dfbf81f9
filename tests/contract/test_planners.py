"""The planners run by nnU-Net's own commands: memory, patches, names, and shared preprocessed data."""

import json
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from nnunet_host import DATASET, write_case
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner

PLANNERS = {
    "nnUNetPlannerDropGen": ("nnUNetDropGenPlans", "PlainConvUNet"),
    "nnUNetPlannerDropGenResEncM": ("nnUNetDropGenResEncUNetMPlans", "ResidualEncoderUNet"),
    "nnUNetPlannerDropGenResEncL": ("nnUNetDropGenResEncUNetLPlans", "ResidualEncoderUNet"),
    "nnUNetPlannerDropGenResEncXL": ("nnUNetDropGenResEncUNetXLPlans", "ResidualEncoderUNet"),
}


def plan(host, planner, options="", dataset=DATASET, name=None):
    host.run(f"nnUNetv2_plan_experiment -d {int(dataset[7:10])} -pl {planner} {options}")
    return json.loads(
        (host.folder / "nnUNet_preprocessed" / dataset / f"{name or PLANNERS[planner][0]}.json").read_text()
    )


@pytest.mark.parametrize("planner", PLANNERS)
def test_planners_are_found_and_their_plans_share_nnunets_data(host, planner):
    plans = plan(host, planner)
    name, network = PLANNERS[planner]
    assert plans["plans_name"] == name
    assert plans["experiment_planner_used"] == planner
    for configuration in ("2d", "3d_fullres"):
        assert plans["configurations"][configuration]["data_identifier"] == f"nnUNetPlans_{configuration}"
        assert plans["configurations"][configuration]["architecture"]["network_class_name"].endswith(network)
    assert plans["nnunet_dg"]["planned_for"]["3d"]["extractor"] == "anatomix"
    assert plans["nnunet_dg"]["planned_for"]["2d"]["extractor"] == "mind"
    assert plans["nnunet_dg"].keys() == {"planned_for"}  # no settings, so each trainer keeps its own


@pytest.mark.parametrize(("planner", "spacing"), [("nnUNetPlannerDropGen", 2.0), ("nnUNetPlannerDropGenResEncM", 2.5)])
def test_other_spacing_memory_and_name_work_as_in_nnunet(host, planner, spacing):
    name = f"otherSpacing{planner}"
    options = (
        f"-overwrite_plans_name {name} -overwrite_target_spacing {spacing} {spacing} {spacing} -gpu_memory_target 3"
    )
    plans = plan(host, planner, options, name=name)
    configuration = plans["configurations"]["3d_fullres"]
    assert plans["plans_name"] == name
    assert configuration["spacing"] == [spacing] * 3
    assert configuration["data_identifier"] == f"{name}_3d_fullres"  # data with another spacing are not shared


def test_a_planner_with_its_own_settings_writes_them_for_the_trainers(host):
    path = host.folder / "nnUNet_preprocessed" / DATASET / "ownPlans.json"
    host.script("plan_with_own_settings.py")
    plans = json.loads(path.read_text())
    assert plans["nnunet_dg"]["dropgen"] == {"extractor": "mind", "p": 0.25}
    assert plans["nnunet_dg"]["planned_for"]["3d"]["extractor"] == "mind"
    plans["nnunet_dg"]["dropgen"] = {"p": 0.1}  # edited by hand
    path.write_text(json.dumps(plans))
    host.script("plan_with_own_settings.py")
    assert json.loads(path.read_text())["nnunet_dg"]["dropgen"] == {"extractor": "mind", "p": 0.1}


def test_memory_target_preprocessor_and_shortest_patch_axis(host):
    printed = host.script("planner_options.py")
    assert "TARGETS 24 3" in printed
    assert "PREPROCESSOR OwnPreprocessor" in printed
    assert "PATCH [2, 64, 64]" in printed  # nnU-Net's own planner takes one voxel, which extractors cannot use


def test_a_new_dataset_is_planned_and_preprocessed_by_one_command_and_keeps_settings(host):
    dataset = "Dataset704_New"
    shutil.copytree(host.folder / "nnUNet_raw" / DATASET, host.folder / "nnUNet_raw" / dataset)
    printed = host.run("nnUNetv2_plan_and_preprocess -d 704 -c 3d_fullres -pl nnUNetPlannerDropGen -np 1 -npfp 1")
    assert "deletes and recreates" not in printed
    folder = host.folder / "nnUNet_preprocessed" / dataset
    assert len(list((folder / "nnUNetDropGenPlans_3d_fullres").glob("*.pkl"))) == 5
    path = folder / "nnUNetDropGenPlans.json"
    plans = json.loads(path.read_text())
    plans["nnunet_dg"]["dropgen"] = {"p": 0.25}
    path.write_text(json.dumps(plans))
    replanned = plan(host, "nnUNetPlannerDropGen", dataset=dataset)
    assert replanned["nnunet_dg"] == plans["nnunet_dg"]


@pytest.fixture(scope="module")
def large(host):
    """A dataset whose fingerprint describes large volumes in four contrasts, which is all that planning reads."""
    dataset = "Dataset702_Large"
    write_case(host.folder / "nnUNet_raw" / dataset, "case_0", np.random.default_rng(0), channels=4)
    names = {str(i): f"MRI{i}" for i in range(4)}
    labels = {"background": 0, "box": 1, "core": 2}
    description = {"channel_names": names, "labels": labels, "numTraining": 40, "file_ending": ".nii.gz"}
    (host.folder / "nnUNet_raw" / dataset / "dataset.json").write_text(json.dumps(description))
    intensities = dict.fromkeys(("max", "mean", "median", "min", "percentile_00_5", "percentile_99_5", "std"), 1.0)
    fingerprint = {
        "spacings": [[1.0, 1.0, 1.0]] * 40, "shapes_after_crop": [[320, 440, 440]] * 40,
        "foreground_intensity_properties_per_channel": dict.fromkeys(names, intensities),
        "median_relative_size_after_cropping": 1.0,
    }  # fmt: skip
    preprocessed = host.folder / "nnUNet_preprocessed" / dataset
    preprocessed.mkdir(parents=True)
    (preprocessed / "dataset_fingerprint.json").write_text(json.dumps(fingerprint))
    host.run("nnUNetv2_plan_experiment -d 702")
    return dataset


def feature_maps(configuration, channels):
    """nnU-Net's own count of feature map elements, for one sample."""
    architecture = configuration["architecture"]
    return ExperimentPlanner.static_estimate_VRAM_usage(
        configuration["patch_size"], channels, 3, architecture["network_class_name"], architecture["arch_kwargs"],
        architecture["_kw_requires_import"],
    )  # fmt: skip


def test_the_features_are_counted_in_the_memory_estimate(host, large):
    preprocessed = host.folder / "nnUNet_preprocessed" / large
    plain = json.loads((preprocessed / "nnUNetPlans.json").read_text())["configurations"]["3d_fullres"]
    ours = plan(host, "nnUNetPlannerDropGen", dataset=large)["configurations"]["3d_fullres"]
    target = 560_000_000  # nnU-Net's limit for 8 GB at batch size 2
    voxels = np.prod(ours["patch_size"])
    counted = feature_maps(ours, 4 + 4 * 16) + (4 + 4 * 16) * voxels / 2
    assert counted <= target
    assert feature_maps(plain, 4) + (4 + 4 * 16) * np.prod(plain["patch_size"]) / 2 > target
    assert voxels < np.prod(plain["patch_size"])
    assert ours["batch_size"] == plain["batch_size"] == 2


def test_a_training_step_uses_the_planned_memory(host, large):
    """Within a tenth of nnUNetTrainer's memory on nnU-Net's own plans, and within the target."""
    preprocessed = host.folder / "nnUNet_preprocessed" / large
    plan(host, "nnUNetPlannerDropGen", dataset=large)
    shutil.copy(host.folder / "nnUNet_raw" / large / "dataset.json", preprocessed)
    benchmark = Path(__file__).parents[2] / "benchmarks" / "planned_memory.py"
    printed = host.run(shlex.join([sys.executable, str(benchmark), str(preprocessed), "--how", "counted"]))
    plain, _, ours = [line.split("|")[1:-1] for line in printed.splitlines() if line.startswith("| nnUNetTrainer")]
    assert [row[1].strip() for row in (plain, ours)] == ["nnUNetPlans", "nnUNetDropGenPlans"]
    memory, planned = float(plain[4]), float(ours[4])
    assert 0.9 * memory <= planned <= min(1.1 * memory, 8)


def test_a_lower_resolution_is_planned_with_its_cascade(host, large):
    ours = plan(host, "nnUNetPlannerDropGen", dataset=large)
    assert ours["configurations"]["3d_lowres"]["next_stage"] == "3d_cascade_fullres"
    assert ours["configurations"]["3d_lowres"]["data_identifier"] == "nnUNetDropGenPlans_3d_lowres"
    assert "architecture" not in ours["configurations"]["3d_cascade_fullres"]


def test_plans_on_ct_that_fit_any_modality_do_not_saturate_mr(host, tmp_path):
    """Plan and preprocess CT by nnU-Net's command, then preprocess an MR-like image as its prediction would."""
    dataset = "Dataset706_CT"
    raw = host.folder / "nnUNet_raw" / dataset
    for i in range(2):
        write_case(raw, f"case_{i}", np.random.default_rng(i))
    for path in (raw / "imagesTr").iterdir():  # air, soft tissue, and a metal implant
        image = sitk.GetArrayFromImage(sitk.ReadImage(path)) - 50
        image[:, :3], image[0, -1, -1] = -1000, 5000
        sitk.WriteImage(sitk.GetImageFromArray(image), path)
    labels = {"background": 0, "box": 1, "core": 2}
    description = {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": 2, "file_ending": ".nii.gz"}
    (raw / "dataset.json").write_text(json.dumps(description))
    command = "nnUNetv2_plan_and_preprocess -d 706 -c 3d_fullres -np 1 -npfp 1"
    host.run(f"{command} -pl nnUNetPlannerDropGenAnyModality")
    host.run("nnUNetv2_plan_experiment -d 706 -pl nnUNetPlannerAnyModality")
    host.run("nnUNetv2_plan_experiment -d 706")
    folder = host.folder / "nnUNet_preprocessed" / dataset
    ours, plain = (json.loads((folder / f"nnUNet{n}AnyModalityPlans.json").read_text()) for n in ("DropGen", ""))
    for plans in (ours, plain):
        configuration = plans["configurations"]["3d_fullres"]
        assert configuration["normalization_schemes"] == ["AnyModalityNormalization"]
        assert (
            configuration["data_identifier"] == "nnUNetDropGenAnyModalityPlans_3d_fullres"
        )  # shared between these plans, not with nnU-Net's
    assert "nnunet_dg" not in plain
    image = np.random.default_rng(0).gamma(3, 300, (20, 24, 20)).astype(np.float32)
    sitk.WriteImage(sitk.GetImageFromArray(image), tmp_path / "mr_0000.nii.gz")
    names = ("nnUNetPlans", "nnUNetDropGenAnyModalityPlans")
    printed = host.script("saturated_voxels.py", folder, tmp_path / "mr_0000.nii.gz", *names)
    saturated = [float(line.split()[-1]) for line in printed.splitlines() if "SATURATED" in line]
    assert saturated[0] > 0.5  # nnU-Net's own
    assert saturated[1] < 0.001
