"""The planner of the DropGen paper's recipe, and the trainers that complete it."""

import copy
import json

import numpy as np
import on_noise
import pytest
import torch
from helpers import set_nnunets_folders
from nnunet_host import write_case
from on_noise import initialized
from small_trainers import CPU, batch, planned, step

from nnunet_dg.datasets.normalization import UnitRangeNormalization
from nnunet_dg.dropgen.paper_network import ARCHITECTURE, MaxPoolUNet
from nnunet_dg.planners.nnUNetPlannerDropGen_Paper import nnUNetPlannerDropGen_Paper
from nnunet_dg.trainers.comparisons import nnUNetTrainerERM_Paper, nnUNetTrainerERM_Paper_FewShot
from nnunet_dg.trainers.nnUNetTrainerDropGen_Paper import (
    nnUNetTrainerDropGen_Paper_FewShot,
    nnUNetTrainerDropGen_Paper_NoMirroring,
)

DATASET = "Dataset703_Paper"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    set_nnunets_folders(monkeypatch, tmp_path)
    return tmp_path


def plan(folder, shape, spacing=(1.0, 1.0, 1.0), channels=("MRI",)):
    """Plans for 40 cases of a shape, which nnU-Net reads from the fingerprint."""
    write_case(folder / "nnUNet_raw" / DATASET, "case_0", np.random.default_rng(0), channels=len(channels))
    names = {str(i): name for i, name in enumerate(channels)}
    labels = {"background": 0, "box": 1, "core": 2}
    description = {"channel_names": names, "labels": labels, "numTraining": 40, "file_ending": ".nii.gz"}
    (folder / "nnUNet_raw" / DATASET / "dataset.json").write_text(json.dumps(description))
    intensities = dict.fromkeys(("max", "mean", "median", "min", "percentile_00_5", "percentile_99_5", "std"), 1.0)
    fingerprint = {
        "spacings": [spacing] * 40, "shapes_after_crop": [shape] * 40,
        "foreground_intensity_properties_per_channel": dict.fromkeys(names, intensities),
        "median_relative_size_after_cropping": 0.5,
    }  # fmt: skip
    preprocessed = folder / "nnUNet_preprocessed" / DATASET
    preprocessed.mkdir(parents=True)
    (preprocessed / "dataset_fingerprint.json").write_text(json.dumps(fingerprint))
    planner = nnUNetPlannerDropGen_Paper(DATASET)
    planner.plan_experiment()
    return json.loads((preprocessed / "nnUNetDropGenPaperPlans.json").read_text())


def test_the_planner_writes_the_papers_network_batch_and_normalization(folder):
    plans = plan(folder, (120, 200, 200), channels=("CT", "MRI"))
    configuration = plans["configurations"]["3d_fullres"]
    assert configuration["architecture"] == ARCHITECTURE
    assert configuration["batch_size"] == 4
    assert configuration["normalization_schemes"] == ["UnitRangeNormalization"] * 2
    assert configuration["use_mask_for_norm"] == [False, False]
    assert all(size % 32 == 0 and size >= 64 for size in configuration["patch_size"])
    assert np.prod(configuration["patch_size"]) >= 96**3
    assert plans["nnunet_dg"]["dropgen"] == {"image_scaling": "none"}
    assert plans["configurations"]["2d"]["architecture"]["network_class_name"].endswith("PlainConvUNet")
    assert plans["configurations"]["2d"]["architecture"]["arch_kwargs"]["features_per_stage"][0] == 32


def test_small_and_anisotropic_images_have_patches_of_at_least_64_voxels(folder):
    configuration = plan(folder, (20, 200, 180), spacing=(3.0, 1.0, 1.0))["configurations"]["3d_fullres"]
    assert configuration["patch_size"][0] == 64
    assert configuration["architecture"]["arch_kwargs"]["strides"][1] == [2, 2, 2]


def test_ct_is_scaled_from_its_range_and_other_images_from_their_own():
    normalize = UnitRangeNormalization(intensityproperties={}).run
    ct = np.array([-3000.0, -1024, 0, 1024, 5000], np.float32)
    assert normalize(ct.copy()).tolist() == [0, 0, 0.5, 1, 1]
    mr = np.array([0.0, 300, 1200], np.float32)
    assert normalize(mr).tolist() == [0, 0.25, 1]
    assert mr.tolist() == [0, 300, 1200]  # the given image is not changed
    assert normalize(np.full(3, 7)).tolist() == [0, 0, 0]


def test_the_recipe_has_no_deep_supervision_clipping_or_oversampling(folder, monkeypatch):
    clipped = []
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *args: clipped.append(args))
    content = planned()
    content["configurations"]["3d_fullres"]["architecture"]["network_class_name"] = ARCHITECTURE["network_class_name"]
    trainer = initialized(nnUNetTrainerERM_Paper, content, CPU)
    assert type(trainer.network.network) is MaxPoolUNet
    assert trainer.network.train()(batch(trainer)["data"]).shape == (2, 3, 16, 16, 16)
    assert trainer.oversample_foreground_percent == 0
    rate = trainer.optimizer.param_groups[0]["lr"]
    before = {key: value.clone() for key, value in trainer.network.state_dict().items()}
    assert np.isfinite(float(step(trainer, batch(trainer))["loss"]))
    assert any(not torch.equal(value, before[key]) for key, value in trainer.network.state_dict().items())
    assert trainer.optimizer.param_groups[0]["lr"] < rate == 2e-4
    assert not clipped


@pytest.mark.parametrize(
    ("trainer", "steps"), [(nnUNetTrainerERM_Paper, 250_000), (nnUNetTrainerERM_Paper_FewShot, 40_000)]
)
def test_the_number_of_steps(folder, trainer, steps):
    trained = initialized(trainer, planned(), CPU)
    assert trained.num_epochs * trained.num_iterations_per_epoch == trained.lr_scheduler.total_steps == steps
    assert nnUNetTrainerDropGen_Paper_FewShot.methods == nnUNetTrainerDropGen_Paper_NoMirroring.methods


def test_without_mirroring_neither_training_nor_inference_flips(folder):
    trainer = nnUNetTrainerDropGen_Paper_NoMirroring(
        planned() | {"continue_training": False}, "3d_fullres", 0, copy.deepcopy(on_noise.DATASET), CPU
    )
    assert trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()[3] is None
    assert trainer.inference_allowed_mirroring_axes is None
