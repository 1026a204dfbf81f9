"""The planners and trainers of the recipes of TinyMIG's and SgCG's papers."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet
from helpers import set_nnunets_folders
from nnunet_host import write_case
from on_noise import initialized
from small_trainers import CPU, batch, planned, step

from nnunet_dg.datasets.normalization import SymmetricRangeNormalization
from nnunet_dg.errors import VersionError
from nnunet_dg.outside import Outside
from nnunet_dg.planners.nnUNetPlannerSgCG_Paper import nnUNetPlannerSgCG_Paper
from nnunet_dg.planners.nnUNetPlannerTinyMIG_Paper import nnUNetPlannerTinyMIG_Paper
from nnunet_dg.planning.paper_batches import ARCHITECTURE
from nnunet_dg.sgcg import SgCG
from nnunet_dg.trainers.nnUNetTrainerSgCG import nnUNetTrainerSgCG_Paper, nnUNetTrainerSgCG_Paper_200epochs
from nnunet_dg.training.trainer import MethodsTrainer

DATASET = "Dataset704_Papers"


@pytest.fixture
def plan(tmp_path, monkeypatch):
    """Function from a planner to its plans for 40 cases of one shape."""
    set_nnunets_folders(monkeypatch, tmp_path)

    def plan(planner, shape=(20, 384, 384), spacing=(3.0, 0.5, 0.5)):
        write_case(tmp_path / "nnUNet_raw" / DATASET, "case_0", np.random.default_rng(0))
        description = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "a": 1}, "numTraining": 40}
        raw = tmp_path / "nnUNet_raw" / DATASET / "dataset.json"
        raw.write_text(json.dumps(description | {"file_ending": ".nii.gz"}))
        intensities = dict.fromkeys(("max", "mean", "median", "min", "percentile_00_5", "percentile_99_5", "std"), 1.0)
        fingerprint = {
            "spacings": [spacing] * 40, "shapes_after_crop": [shape] * 40,
            "foreground_intensity_properties_per_channel": {"0": intensities},
            "median_relative_size_after_cropping": 0.5,
        }  # fmt: skip
        folder = tmp_path / "nnUNet_preprocessed" / DATASET
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "dataset_fingerprint.json").write_text(json.dumps(fingerprint))
        planner(DATASET).plan_experiment()
        return json.loads((folder / f"{planner.plans_name}.json").read_text())["configurations"]

    return plan


def test_tinymigs_planner_writes_a_network_like_resnet_34_with_batches_of_eight(plan):
    configurations = plan(nnUNetPlannerTinyMIG_Paper)
    configuration = configurations["2d"]
    assert configuration["architecture"] == ARCHITECTURE
    assert configuration["batch_size"] == 8
    assert configuration["normalization_schemes"] == ["UnitRangeNormalization"]
    assert all(size % 16 == 0 and 128 <= size <= 384 for size in configuration["patch_size"])
    assert configurations["3d_fullres"]["batch_size"] == 2
    assert configurations["3d_fullres"]["architecture"]["arch_kwargs"]["features_per_stage"][0] == 32


def test_the_network_has_the_papers_number_of_parameters():
    arguments = ARCHITECTURE["arch_kwargs"] | {
        "conv_op": torch.nn.Conv2d, "norm_op": torch.nn.BatchNorm2d, "nonlin": torch.nn.ReLU
    }  # fmt: skip
    network = ResidualEncoderUNet(input_channels=3, num_classes=2, **arguments)
    assert sum(parameter.numel() for parameter in network.parameters()) == pytest.approx(22.52e6, rel=2e-3)


def test_sgcgs_planner_writes_batches_of_eight_and_images_in_a_symmetric_range(plan):
    configurations = plan(nnUNetPlannerSgCG_Paper)
    for name in ("2d", "3d_fullres"):
        assert configurations[name]["batch_size"] == 8
        assert configurations[name]["normalization_schemes"] == ["SymmetricRangeNormalization"]
        assert configurations[name]["use_mask_for_norm"] == [False]


def test_images_are_scaled_to_minus_one_to_one():
    normalize = SymmetricRangeNormalization(intensityproperties={}).run
    assert normalize(np.array([-3000.0, -1024, 0, 1024, 5000], np.float32)).tolist() == pytest.approx(
        [-1, -1, 0, 1, 1], abs=1e-5
    )
    assert normalize(np.array([0.0, 300, 1200], np.float32)).tolist() == [-1, -0.5, 1]
    assert normalize(np.array([0.0, 5, 10], np.float32))[1] == pytest.approx(0, abs=1e-5)
    assert normalize(np.full(3, 7)).tolist() == [-1, -1, -1]


def test_padding_of_images_in_a_symmetric_range_is_outside_and_their_middle_is_not():
    managed = SimpleNamespace(normalization_schemes=["SymmetricRangeNormalization"], use_mask_for_norm=[False])
    image = SymmetricRangeNormalization(intensityproperties={}).run(np.array([[0.0, 600, 1200]], np.float32))
    padded = torch.from_numpy(np.pad(image, ((0, 0), (0, 2))))[None, None]
    assert Outside.of(managed).voxels(padded)[0].tolist() == [[False, False, False, True, True]]


def test_a_training_beyond_the_epochs_of_the_recipe_is_refused(tmp_path, monkeypatch):
    set_nnunets_folders(monkeypatch, tmp_path)
    trainer = initialized(nnUNetTrainerSgCG_Paper_200epochs, planned(), CPU)
    trainer.current_epoch = 201
    started = []
    monkeypatch.setattr(MethodsTrainer, "on_train_start", lambda trainer: started.append(trainer))
    with pytest.raises(VersionError, match="has 201 epochs, but nnUNetTrainerSgCG_Paper_200epochs trains 200"):
        trainer.on_train_start()
    assert not started
    trainer.current_epoch = 200  # a checkpoint of the last epoch, which nnU-Net validates
    trainer.on_train_start()
    assert started == [trainer]


def test_sgcgs_recipe_logs_the_rates_of_both_groups(tmp_path, monkeypatch, capsys):
    set_nnunets_folders(monkeypatch, tmp_path)
    trainer = initialized(nnUNetTrainerSgCG_Paper, planned(), CPU)
    trainer.on_train_epoch_start()
    assert "Learning rates: 0.0005 of the encoder, 0.001 of all other parameters" in capsys.readouterr().out


def test_sgcgs_recipe_is_adam_with_half_the_rate_for_the_encoder(tmp_path, monkeypatch):
    set_nnunets_folders(monkeypatch, tmp_path)
    trainer = initialized(nnUNetTrainerSgCG_Paper, planned(), CPU)
    assert trainer.methods == (SgCG(memory=None),)
    assert type(trainer.optimizer) is torch.optim.Adam
    encoder, others, auxiliary = trainer.optimizer.param_groups
    assert {id(p) for p in encoder["params"]} == {id(p) for p in trainer.network.encoder.parameters()}
    network = {id(p) for p in trainer.network.parameters()}
    assert {id(p) for group in (encoder, others) for p in group["params"]} == network
    for epoch in (0, 200, 399):
        trainer.lr_scheduler.step(epoch)
        rate = 1e-3 * (1 - epoch / 400) ** 0.9
        assert [group["lr"] for group in (encoder, others, auxiliary)] == pytest.approx([rate / 2, rate, rate])
    assert np.isfinite(float(step(trainer, batch(trainer))["loss"]))
    state = trainer.optimizer.state_dict()
    resumed = initialized(nnUNetTrainerSgCG_Paper_200epochs, planned() | {"plans_name": "others"}, CPU)
    assert resumed.num_epochs == 200
    resumed.optimizer.load_state_dict(state)
    resumed.lr_scheduler.step(100)
    rates = [group["lr"] for group in resumed.optimizer.param_groups]
    assert rates == pytest.approx([5e-4 * 0.5**0.9, 1e-3 * 0.5**0.9, 1e-3 * 0.5**0.9])
