"""Contracts of trainers, tested by nnU-Net's own commands: of all, and of those with training modules."""

import json
import shutil

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunet_host import one_case
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from PIL import Image

from nnunet_dg.extractors import build_extractor


class TrainerContract:
    """The contract of all trainers. A subclass names the trainer."""

    trainer: str
    uses_weights = False
    settings = ("dropgen", "extractor", "mind")  # method, name and value of a setting that it records
    environment: dict[str, str] = {}  # noqa: RUF012, environment variables of its trainings

    @pytest.fixture(scope="class")
    def trained(self, host):
        """The trainer is killed after the first of three epochs and resumed: output, checkpoint and second output."""
        shutil.rmtree(host.results(self.trainer), ignore_errors=True)  # another test may have trained it
        first = host.train(self.trainer, status=-9, TINY_STOP_AFTER="1", **self.environment)
        saved = torch.load(host.results(self.trainer) / "checkpoint_latest.pth", weights_only=False)
        second = host.train(self.trainer, "--c", **self.environment)
        return first, saved, second

    def checkpoint(self, host):
        return torch.load(host.results(self.trainer) / "checkpoint_final.pth", weights_only=False)

    def test_resumes_after_the_last_epoch(self, host, trained):
        first, saved, second = trained
        assert saved["current_epoch"] == 1
        assert "Epoch 0\n" in first
        assert "Epoch 0\n" not in second
        assert "Epoch 1\n" in second
        assert "Epoch 2\n" in second
        assert len(self.checkpoint(host)["logging"]["train_losses"]) == 3
        assert np.isfinite(self.checkpoint(host)["logging"]["train_losses"]).all()

    def test_all_trainable_parameters_change(self, host, trained):
        _, saved, _ = trained
        final = self.checkpoint(host)["network_weights"]
        network = [key for key in final if not key.startswith("extractor.")]
        unmoved = [key for key in network if torch.equal(final[key], saved["network_weights"][key])]
        # the lowest output of deep supervision has weight zero; a bias before an instance norm has no effect
        assert not [key for key in unmoved if "seg_layers" not in key and not key.endswith("conv.bias")]

    def test_settings_are_written_where_inference_reads_them(self, host, trained):
        plans = json.loads((host.results(self.trainer).parent / "plans.json").read_text())
        assert plans["nnunet_dg"] == self.checkpoint(host)["init_args"]["plans"]["nnunet_dg"]
        method, name, value = self.settings
        assert plans["nnunet_dg"][method][name] == value

    def test_extractor_is_bit_identical_after_training(self, host, trained):
        final = self.checkpoint(host)["network_weights"]
        saved = {k.removeprefix("extractor."): v for k, v in final.items() if k.startswith("extractor.")}
        if not self.uses_weights:
            assert saved == {}
            return
        loaded = build_extractor("anatomix", weights=host.folder / "random.pth").state_dict()
        assert saved.keys() == loaded.keys()
        assert all(torch.equal(saved[key], loaded[key]) for key in loaded)

    def test_predicts_the_same_by_command_and_by_api_without_weights_or_network(self, host, trained, tmp_path):
        """In two fresh processes; the second also compares two passes of the network."""
        images = one_case(host, tmp_path / "in")
        without = {"NNUNET_DG_HOME": str(tmp_path / "empty")}
        host.predict(self.trainer, images, tmp_path / "command", "--save_probabilities", **without)
        model, image = host.results(self.trainer).parent, images / "case_0_0000.nii.gz"
        host.script("predict_by_api.py", model, image, tmp_path / "api", **without)
        with np.load(tmp_path / "command" / "case_0.npz") as command, np.load(tmp_path / "api.npz") as api:
            assert np.array_equal(command["probabilities"], api["probabilities"])
            assert np.isfinite(command["probabilities"]).all()
        assert sitk.ReadImage(tmp_path / "command" / "case_0.nii.gz").GetSize() == (20, 24, 20)
        assert not (tmp_path / "empty").exists()


class AuxiliaryContract:
    """The contract of trainers with training modules, whose network is the planned one.

    A subclass names the loss terms and their weights from the second epoch on.
    """

    terms: tuple[tuple[str, float], ...]

    def test_the_network_is_the_planned_one(self, host, trained):
        plans = json.loads((host.results(self.trainer).parent / "plans.json").read_text())
        manager = PlansManager(plans)
        planned = nnUNetTrainer.build_network_architecture(manager, manager.get_configuration("3d_fullres"), 1, 3, True)
        weights = self.checkpoint(host)["network_weights"]
        assert {k: v.shape for k, v in weights.items()} == {k: v.shape for k, v in planned.state_dict().items()}

    def test_every_term_is_logged_in_every_epoch(self, host, trained):
        first, _, second = trained
        logging = self.checkpoint(host)["logging"]
        for term, _ in self.terms:
            assert np.isfinite(logging[f"loss_{term}"]).all()
            assert len(logging[f"loss_{term}"]) == 3
            assert (first + second).count(f": loss_{term} ") == 3
        total = sum(weight * np.array(logging[f"loss_{term}"]) for term, weight in self.terms)
        assert logging["train_losses"][1:] == pytest.approx(total[1:], rel=1e-4)

    def test_the_terms_are_in_the_progress_picture(self, host, trained):
        with Image.open(host.results(self.trainer) / "progress.png") as ours:
            assert ours.height > 1.9 * ours.width  # nnU-Net's three panels are 1.8 times as high as wide
