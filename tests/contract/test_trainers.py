"""One suite per trainer, by nnU-Net's own commands: train, be killed, resume, validate, predict, without network."""

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from nnunet_dg.extractors import build_extractor

LOGITS = """
import sys, torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False, use_mirroring=False)
predictor.initialize_from_trained_model_folder(sys.argv[1] if len(sys.argv) > 1 else {folder!r}, (0,))
network = predictor.network
network.load_state_dict(predictor.list_of_parameters[0])
network.eval()
x = torch.rand((1, 1, *predictor.configuration_manager.patch_size), generator=torch.Generator().manual_seed(0))
with torch.no_grad():
    a, b = network(x), network(x)
assert torch.equal(a, b), "two eval passes differ"
assert torch.isfinite(a).all()
print("PARAMETERS", sum(p.numel() for p in network.parameters()))
"""


class TrainerContract:
    """What every trainer has to do. A subclass names it."""

    trainer: str
    uses_weights = False

    @pytest.fixture(scope="class")
    def trained(self, host):
        """Killed after the first of three epochs, then continued to the end; what was printed."""
        command = f"nnUNetv2_train 701 3d_fullres 0 -p tinyPlans -tr {self.trainer} -device cpu"
        first = host.run(command, status=-9, TINY_STOP_AFTER="1")
        saved = torch.load(host.results(self.trainer) / "checkpoint_latest.pth", weights_only=False)
        second = host.run(f"{command} --c")
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

    def test_all_learned_parameters_moved(self, host, trained):
        _, saved, _ = trained
        final = self.checkpoint(host)["network_weights"]
        network = [key for key in final if not key.startswith("extractor.")]
        unmoved = [key for key in network if torch.equal(final[key], saved["network_weights"][key])]
        # nnU-Net weighs the lowest output of deep supervision with zero; a bias before an instance norm does nothing
        assert not [key for key in unmoved if "seg_layers" not in key and not key.endswith("conv.bias")]

    def test_settings_are_written_where_inference_reads_them(self, host, trained):
        plans = json.loads((host.results(self.trainer).parent / "plans.json").read_text())
        assert plans["nnunet_dg"] == self.checkpoint(host)["init_args"]["plans"]["nnunet_dg"]
        assert plans["nnunet_dg"]["dropgen"]["extractor"] == ("anatomix" if self.uses_weights else "mind")

    def test_extractor_is_bit_identical_after_training(self, host, trained):
        final = self.checkpoint(host)["network_weights"]
        held = {k.removeprefix("extractor."): v for k, v in final.items() if k.startswith("extractor.")}
        if not self.uses_weights:
            assert held == {}
            return
        loaded = build_extractor("anatomix", weights=host.folder / "random.pth").state_dict()
        assert held.keys() == loaded.keys()
        assert all(torch.equal(held[key], loaded[key]) for key in loaded)

    def test_validates_again(self, host, trained):
        summary = host.results(self.trainer) / "validation" / "summary.json"
        before = json.loads(summary.read_text())
        summary.unlink()
        host.run(f"nnUNetv2_train 701 3d_fullres 0 -p tinyPlans -tr {self.trainer} -device cpu --val")
        assert json.loads(summary.read_text())["mean"] == before["mean"]

    def test_predicts_without_weights_or_network_and_the_same_twice(self, host, trained, tmp_path):
        images = host.folder / "nnUNet_raw" / "Dataset701_Tiny" / "imagesTr"
        one = tmp_path / "in"
        one.mkdir()
        (one / "case_0_0000.nii.gz").symlink_to(images / "case_0_0000.nii.gz")
        for out in ("a", "b"):
            host.run(
                f"nnUNetv2_predict -i {one} -o {tmp_path / out} -d 701 -c 3d_fullres -f 0 -p tinyPlans "
                f"-tr {self.trainer} -device cpu -npp 1 -nps 1 --save_probabilities",
                NNUNET_DG_HOME=str(tmp_path / "empty"),
            )
        a, b = (np.load(tmp_path / out / "case_0.npz")["probabilities"] for out in ("a", "b"))
        assert np.array_equal(a, b)
        assert np.isfinite(a).all()
        assert sitk.ReadImage(tmp_path / "a" / "case_0.nii.gz").GetSize() == (20, 24, 20)
        assert not (tmp_path / "empty").exists()

    def test_api_is_deterministic_in_a_fresh_process(self, host, trained, tmp_path):
        folder = str(host.results(self.trainer).parent)
        assert "PARAMETERS" in host.python(LOGITS.format(folder=folder), NNUNET_DG_HOME=str(tmp_path / "empty"))


class TestMIND(TrainerContract):
    trainer = "Tiny_nnUNetTrainerDropGen_MIND"


class TestAnatomix(TrainerContract):
    trainer = "Tiny_nnUNetTrainerDropGen"
    uses_weights = True

    def test_says_which_weights_it_took(self, host, trained):
        assert "Extractor anatomix: weights from" in trained[0]
        assert "installed as unpublished" in trained[0]
        assert "Extractor anatomix: weights from the checkpoint" in trained[2]


class TestPaper(TrainerContract):
    trainer = "Tiny_nnUNetTrainerDropGen_Paper"
    uses_weights = True

    def test_learning_rate_falls_along_a_cosine_per_step(self, host, trained):
        rates = self.checkpoint(host)["logging"]["lrs"]
        # three epochs of two steps: 2e-4 * (1 + cos(pi * step / 6)) / 2 at steps 0, 2, 4
        assert rates == pytest.approx([2e-4, 1.5e-4, 0.5e-4])
        assert self.checkpoint(host)["optimizer_state"]["param_groups"][0]["weight_decay"] == 1e-4


class TestTwoDimensions:
    command = "nnUNetv2_train 701 2d 0 -p tinyPlans -device cpu -tr "

    def test_mind_trains(self, host):
        host.run(self.command + "Tiny_nnUNetTrainerDropGen_MIND")
        results = host.results("Tiny_nnUNetTrainerDropGen_MIND", configuration="2d")
        assert (results / "validation" / "summary.json").is_file()

    def test_anatomix_is_refused_before_training_with_what_to_use_instead(self, host):
        printed = host.run(self.command + "Tiny_nnUNetTrainerDropGen", status=1)
        for part in (
            "NotImplementedError",
            "Tiny_nnUNetTrainerDropGen",
            "'anatomix' is 3-D only",
            "nnUNetTrainerDropGen_MIND",
        ):
            assert part in printed
        assert "Epoch 0" not in printed


@pytest.fixture
def plans(host):
    """Write ``plans["nnunet_dg"]`` into a copy of the plans; the name of the copy."""
    folder = host.folder / "nnUNet_preprocessed" / "Dataset701_Tiny"
    written: list[Path] = []

    def write(settings):
        content = json.loads((folder / "tinyPlans.json").read_text()) | {
            "plans_name": "otherPlans",
            "nnunet_dg": settings,
        }
        written.append(folder / "otherPlans.json")
        written[-1].write_text(json.dumps(content))
        return "otherPlans"

    yield write
    for path in written:
        path.unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"dropgen": {"dropout": 0.5}},
            'Unknown setting in plans["nnunet_dg"]["dropgen"]: \'dropout\'. Accepted are extractor,',
        ),
        ({"dropgen": {"extractor": "dino"}}, "extractor must be one of anatomix, anatomix-dev, mind; got 'dino'"),
        ({"dropgen": {"p": 1.0}}, "p must be a probability in [0, 1)"),
        ({"dropgem": {}}, "plans[\"nnunet_dg\"] knows dropgen; got 'dropgem'"),
    ],
)
def test_bad_settings_in_the_plans_are_refused_by_name(host, plans, settings, message):
    printed = host.run(
        f"nnUNetv2_train 701 3d_fullres 0 -p {plans(settings)} -tr Tiny_nnUNetTrainerDropGen -device cpu", status=1
    )
    assert f"ValueError: {message}" in printed or message in printed.splitlines()[-1]


def test_settings_in_the_plans_come_before_the_trainers_own(host, plans):
    name = plans({"dropgen": {"extractor": "mind", "p": 0.25}})
    host.run(f"nnUNetv2_train 701 3d_fullres all -p {name} -tr Tiny_nnUNetTrainerDropGen -device cpu")
    results = host.folder / "nnUNet_results" / "Dataset701_Tiny" / f"Tiny_nnUNetTrainerDropGen__{name}__3d_fullres"
    written = json.loads((results / "plans.json").read_text())["nnunet_dg"]["dropgen"]
    assert (written["extractor"], written["p"], written["layer"]) == ("mind", 0.25, "penultimate")


def test_missing_weights_stop_the_training_before_it_starts(host, tmp_path):
    printed = host.run(
        "nnUNetv2_train 701 3d_fullres 1 -p tinyPlans -tr Tiny_nnUNetTrainerDropGen -device cpu", status=1,
        NNUNET_DG_HOME=str(tmp_path / "empty"),
    )  # fmt: skip
    assert "The published weights of 'anatomix' could not be fetched" in printed
    assert str(tmp_path / "empty" / "anatomix.pth") in printed
    assert "nnUNetTrainerDropGen_MIND" in printed
    assert "Epoch 0" not in printed


def test_resuming_with_another_extractor_is_refused(host, plans):
    """Train with MIND, then ask for anatomix in the same folder by changing the plans."""
    train = "nnUNetv2_train 701 3d_fullres 2 -p otherPlans -tr Tiny_nnUNetTrainerDropGen -device cpu"
    plans({"dropgen": {"extractor": "mind"}})
    host.run(train, status=-9, TINY_STOP_AFTER="1")
    plans({"dropgen": {"extractor": "anatomix"}})
    assert "trained with another extractor" in host.run(f"{train} --c", status=1)


def test_pretrained_weights_of_another_dropgen_model_bring_their_extractor(host, tmp_path):
    source = host.results(TestAnatomix.trainer) / "checkpoint_final.pth"
    if not source.exists():
        host.run(f"nnUNetv2_train 701 3d_fullres 0 -p tinyPlans -tr {TestAnatomix.trainer} -device cpu")
    printed = host.run(
        f"nnUNetv2_train 701 3d_fullres 3 -p tinyPlans -tr {TestAnatomix.trainer} -device cpu "
        f"-pretrained_weights {source}",
        NNUNET_DG_HOME=str(tmp_path / "empty"),
    )
    assert "Epoch 2" in printed
    assert not (tmp_path / "empty").exists()
