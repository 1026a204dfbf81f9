"""Contract of trainers whose network is nnU-Net's own: their exported models work with plain nnU-Net."""

import hashlib
import json
import re
import shlex
import shutil

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunet_host import DATASET, PREDICTION


def plain(host, module, function, options, **environment):
    """Run a command of nnU-Net as if nnunet-dg were not installed."""
    arguments = module, function, *shlex.split(str(options))
    return host.script("without_this_package.py", *arguments, warm=False, **environment)


class ExportContract:
    """Export a model, then predict and validate with it without this package."""

    trainer: str

    def export(self, host, out, change="", status=0):
        model = f"-d 701 -c 3d_fullres -tr {self.trainer} -p tinyPlans -f 0"
        return host.run(f"nnunet-dg export {model} -o {out} {change}", status)

    @pytest.fixture(scope="class")
    def ours(self, host, trained, tmp_path_factory):
        """Images, and our trainer's predictions for them."""
        out = tmp_path_factory.mktemp("ours")
        images = host.folder / "nnUNet_raw" / DATASET / "imagesTr"
        host.predict(self.trainer, images, out)
        return images, out

    def assert_same(self, out, other):
        files = sorted(path.name for path in out.glob("*.nii.gz"))
        assert len(files) == 5
        for name in files:
            assert np.array_equal(*(sitk.GetArrayFromImage(sitk.ReadImage(f / name)) for f in (out, other))), name

    def test_a_model_folder_predicts_the_same_without_this_package(self, host, ours, tmp_path):
        images, expected = ours
        self.export(host, tmp_path / "model")
        options = (
            f"-i {images} -o {tmp_path / 'out'} -m {tmp_path / 'model'} -f 0 -device cpu -npp 1 -nps 1 --disable_tta"
        )
        plain(host, "inference.predict_from_raw_data", "predict_entry_point_modelfolder", options)
        self.assert_same(tmp_path / "out", expected)

    def test_a_zip_is_installed_and_predicts_and_validates_without_this_package(self, host, ours, tmp_path):
        images, expected = ours
        self.export(host, tmp_path / "model.zip")
        environment = {"nnUNet_results": str(tmp_path / "results")}
        (tmp_path / "results").mkdir()
        plain(host, "model_sharing.entry_points", "install_from_zip_entry_point", tmp_path / "model.zip", **environment)
        model = "-d 701 -c 3d_fullres -p tinyPlans -tr nnUNetTrainer -f 0"
        options = f"-i {images} -o {tmp_path / 'out'} {model} {PREDICTION}"
        plain(host, "inference.predict_from_raw_data", "predict_entry_point", options, **environment)
        self.assert_same(tmp_path / "out", expected)
        options = "701 3d_fullres 0 -p tinyPlans -device cpu --val"
        plain(host, "run.run_training", "run_training_entry", options, **environment)
        validated = tmp_path / "results" / DATASET / "nnUNetTrainer__tinyPlans__3d_fullres" / "fold_0" / "validation"
        before = json.loads((host.results(self.trainer) / "validation" / "summary.json").read_text())
        assert json.loads((validated / "summary.json").read_text())["mean"] == before["mean"]

    def test_records_the_models_origin_and_contains_none_of_our_settings(self, host, trained, tmp_path):
        self.export(host, tmp_path / "model")
        record = json.loads((tmp_path / "model" / "exported_by_nnunet-dg.json").read_text())
        assert record["trainer"] == self.trainer
        original = host.results(self.trainer) / "checkpoint_final.pth"
        digest = hashlib.sha256(original.read_bytes()).hexdigest()
        assert record["checkpoints"]["fold_0/checkpoint_final.pth"]["sha256_of_the_original"] == digest
        method, name, value = self.settings
        assert record["settings"][method][name] == value
        checkpoint = torch.load(tmp_path / "model" / "fold_0" / "checkpoint_final.pth", weights_only=False)
        plans = json.loads((tmp_path / "model" / "plans.json").read_text())
        assert "nnunet_dg" not in plans
        assert "nnunet_dg" not in checkpoint["init_args"]["plans"]
        assert checkpoint["optimizer_state"].keys() == {"state", "param_groups"}
        assert not any(name.startswith("loss_") for name in checkpoint["logging"])


class ExportRefusals:
    """Refusals of export. They are the same for all trainers, so only one trainer's test inherits them."""

    def test_refuses_a_model_whose_logits_differ_in_plain_nnunet(self, host, trained, tmp_path):
        source = host.results(self.trainer).parent
        other = source.with_name(source.name.replace(self.trainer, "nnUNetTrainerOtherForward"))
        shutil.copytree(source, other)
        path = other / "fold_0" / "checkpoint_final.pth"
        checkpoint = torch.load(path, weights_only=False)
        torch.save(checkpoint | {"trainer_name": "nnUNetTrainerOtherForward"}, path)
        printed = self.export(host, tmp_path / "model", "-tr nnUNetTrainerOtherForward", status=1)
        assert "and nnUNetTrainerOtherForward give different logits" in printed
        assert not (tmp_path / "model").exists()

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ("-tr Tiny_nnUNetTrainerDropGen_MIND", "DropGen changes it, so inference needs.*nnUNetv2_export_mod"),
            ("-f 3", r"lacks fold_3/checkpoint_final.pth. It has .*fold_0/checkpoint_final.pth"),
            ("-tr nnUNetTrainerDoesNotExist", "trainer nnUNetTrainerDoesNotExist"),
            ("-f x", "a fold must be a number or all; got 'x'"),
            ("-o .", "exists already"),
        ],
    )
    def test_refuses_with_the_reason(self, host, trained, tmp_path, change, message):
        printed = self.export(host, tmp_path / "model", change, status=None)
        assert re.search(message, printed.replace("\n", " ")), printed
        assert "Traceback" not in printed
        assert not (tmp_path / "model").exists()
