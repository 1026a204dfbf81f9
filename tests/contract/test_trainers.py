"""One suite per trainer, by nnU-Net's own commands: train, be killed, resume, validate, predict, without network."""

import hashlib
import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunet_host import DATASET
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from PIL import Image

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
    settings = ("dropgen", "extractor", "mind")  # one of those it must write down

    @pytest.fixture(scope="class")
    def trained(self, host):
        """Killed after the first of three epochs, then continued to the end; what was printed."""
        shutil.rmtree(host.results(self.trainer), ignore_errors=True)  # of another test's training
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
        method, name, value = self.settings
        assert plans["nnunet_dg"][method][name] == value

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


WITHOUT_THIS_PACKAGE = """
import os, sys
os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"
sys.modules["nnunet_dg"] = None  # any import of it fails
from nnunetv2.{module} import {function} as command
command()
"""


def plain(host, module, function, options, **environment):
    """A command of nnU-Net's where nnunet-dg is not installed."""
    code = WITHOUT_THIS_PACKAGE.format(module=module, function=function)
    return host.run(f"{shlex.quote(sys.executable)} -c {shlex.quote(code)} {options}", **environment)


class ExportContract:
    """What a trainer has to do besides whose network is nnU-Net's own: be of use without this package."""

    trainer: str
    options = "-f 0 -device cpu -npp 1 -nps 1 --disable_tta"

    def export(self, host, out, change="", status=0):
        model = f"-d 701 -c 3d_fullres -tr {self.trainer} -p tinyPlans -f 0"
        return host.run(f"nnunet-dg export {model} -o {out} {change}", status)

    @pytest.fixture(scope="class")
    def ours(self, host, trained, tmp_path_factory):
        """Images, and what our trainer predicts for them."""
        out = tmp_path_factory.mktemp("ours")
        images = host.folder / "nnUNet_raw" / DATASET / "imagesTr"
        model = f"-d 701 -c 3d_fullres -p tinyPlans -tr {self.trainer}"
        host.run(f"nnUNetv2_predict -i {images} -o {out} {model} {self.options}")
        return images, out

    def assert_same(self, out, other):
        files = sorted(path.name for path in out.glob("*.nii.gz"))
        assert len(files) == 5
        for name in files:
            assert np.array_equal(*(sitk.GetArrayFromImage(sitk.ReadImage(f / name)) for f in (out, other))), name

    def test_a_model_folder_predicts_the_same_without_this_package(self, host, ours, tmp_path):
        images, expected = ours
        self.export(host, tmp_path / "model")
        options = f"-i {images} -o {tmp_path / 'out'} -m {tmp_path / 'model'} {self.options}"
        plain(host, "inference.predict_from_raw_data", "predict_entry_point_modelfolder", options)
        self.assert_same(tmp_path / "out", expected)

    def test_a_zip_is_installed_and_predicts_and_validates_without_this_package(self, host, ours, tmp_path):
        images, expected = ours
        self.export(host, tmp_path / "model.zip")
        there = {"nnUNet_results": str(tmp_path / "results")}
        (tmp_path / "results").mkdir()
        plain(host, "model_sharing.entry_points", "install_from_zip_entry_point", tmp_path / "model.zip", **there)
        model = "-d 701 -c 3d_fullres -p tinyPlans -tr nnUNetTrainer"
        options = f"-i {images} -o {tmp_path / 'out'} {model} {self.options}"
        plain(host, "inference.predict_from_raw_data", "predict_entry_point", options, **there)
        self.assert_same(tmp_path / "out", expected)
        options = "701 3d_fullres 0 -p tinyPlans -device cpu --val"
        plain(host, "run.run_training", "run_training_entry", options, **there)
        validated = tmp_path / "results" / DATASET / "nnUNetTrainer__tinyPlans__3d_fullres" / "fold_0" / "validation"
        before = json.loads((host.results(self.trainer) / "validation" / "summary.json").read_text())
        assert json.loads((validated / "summary.json").read_text())["mean"] == before["mean"]

    def test_says_where_the_model_came_from_and_holds_nothing_of_ours(self, host, trained, tmp_path):
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

    def test_refuses_a_model_whose_logits_are_others_in_plain_nnunet(self, host, trained, tmp_path):
        source = host.results(self.trainer).parent
        other = source.with_name(source.name.replace(self.trainer, "nnUNetTrainerOtherForward"))
        shutil.copytree(source, other)
        path = other / "fold_0" / "checkpoint_final.pth"
        checkpoint = torch.load(path, weights_only=False)
        torch.save(checkpoint | {"trainer_name": "nnUNetTrainerOtherForward"}, path)
        printed = self.export(host, tmp_path / "model", "-tr nnUNetTrainerOtherForward", status=1)
        assert "gives other logits than nnUNetTrainerOtherForward" in printed
        assert not (tmp_path / "model").exists()

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ("-tr Tiny_nnUNetTrainerDropGen_MIND", "runs a frozen feature extractor at inference.*nnUNetv2_export_mod"),
            ("-f 3", r"lacks fold_3/checkpoint_final.pth. There: .*fold_0/checkpoint_final.pth"),
            ("-tr nnUNetTrainerDoesNotExist", "trainer nnUNetTrainerDoesNotExist"),
            ("-f x", "a fold is a number or all; got 'x'"),
            ("-o .", "exists already"),
        ],
    )
    def test_refuses_with_the_reason(self, host, trained, tmp_path, change, message):
        printed = self.export(host, tmp_path / "model", change, status=None)
        assert re.search(message, printed.replace("\n", " ")), printed
        assert "Traceback" not in printed
        assert not (tmp_path / "model").exists()


class AuxiliaryContract:
    """What a trainer has to do besides that has more than a network while it trains, and the network alone afterwards.

    A subclass names the loss terms with the weights that they have from the second epoch on.
    """

    terms: tuple[tuple[str, float], ...]

    def test_the_network_is_nnunets_own(self, host, trained):
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


class TestMIND(TrainerContract):
    trainer = "Tiny_nnUNetTrainerDropGen_MIND"


class TestAnatomix(TrainerContract):
    trainer = "Tiny_nnUNetTrainerDropGen"
    uses_weights = True
    settings = ("dropgen", "extractor", "anatomix")

    def test_says_which_weights_it_took(self, host, trained):
        assert "Extractor anatomix: weights from" in trained[0]
        assert "installed as unpublished" in trained[0]
        assert "Extractor anatomix: weights from the checkpoint" in trained[2]


class TestPaper(TrainerContract):
    trainer = "Tiny_nnUNetTrainerDropGen_Paper"
    uses_weights = True
    settings = ("dropgen", "image_scaling", "minmax")

    def test_learning_rate_falls_along_a_cosine_per_step(self, host, trained):
        rates = self.checkpoint(host)["logging"]["lrs"]
        # three epochs of two steps: 2e-4 * (1 + cos(pi * step / 6)) / 2 at steps 0, 2, 4
        assert rates == pytest.approx([2e-4, 1.5e-4, 0.5e-4])
        assert self.checkpoint(host)["optimizer_state"]["param_groups"][0]["weight_decay"] == 1e-4


class TestSgCG(TrainerContract, AuxiliaryContract, ExportContract):
    trainer = "Tiny_nnUNetTrainerSgCG"
    settings = ("sgcg", "temperature", 0.1)
    terms = (
        ("segmentation", 1), ("segmentation_mixed", 1), ("consistency", 0.5), ("restoration", 0.1), ("contrast", 0.1),
    )  # fmt: skip

    def test_the_first_epoch_makes_statistics_alone(self, host, trained):
        logging = self.checkpoint(host)["logging"]
        first = sum(weight * logging[f"loss_{term}"][0] for term, weight in self.terms if term != "contrast")
        assert logging["train_losses"][0] == pytest.approx(first, 1e-4)

    def test_what_only_the_training_needs_goes_on_where_it_was(self, host, trained):
        _, saved, _ = trained
        before, after = (c["optimizer_state"]["nnunet_dg_auxiliary"]["modules"] for c in (saved, self.checkpoint(host)))
        seen = before["contrast"]["statistics.count"]
        torch.testing.assert_close(after["contrast"]["statistics.count"].sum(), 3 * seen.sum())
        assert all(not torch.equal(value, after["restoration"][key]) for key, value in before["restoration"].items()
                   if not key.endswith("bias"))  # fmt: skip


class TestTinyMIG(TrainerContract, AuxiliaryContract, ExportContract):
    trainer = "Tiny_nnUNetTrainerTinyMIG"
    settings = ("tinymig", "statistics", "ufdm")
    terms = (
        ("segmentation_teacher", 1), ("segmentation_styled", 1), ("segmentation", 0.5), ("alignment", 0.5),
        ("consistency", 0.5),
    )  # fmt: skip

    def test_the_teacher_is_loaded_from_its_file_and_in_no_checkpoint(self, host, trained):
        first, saved, second = trained
        for printed in (first, second):
            assert (
                f"Teacher anatomix: weights from {host.folder / 'weights' / 'anatomix.pth'} (installed as unp"
                in printed
            )
        before, after = (c["optimizer_state"]["nnunet_dg_auxiliary"]["modules"] for c in (saved, self.checkpoint(host)))
        assert torch.equal(before["teaching"]["teacher.fingerprint"], after["teaching"]["teacher.fingerprint"])
        assert sum(value.numel() for value in after["teaching"].values()) < 1_000_000  # anatomix has 5.9 million

    def test_adapters_reprogramming_decoder_and_filters_learn(self, host, trained):
        _, saved, _ = trained
        before, after = (c["optimizer_state"]["nnunet_dg_auxiliary"]["modules"] for c in (saved, self.checkpoint(host)))
        for module, parts in (
            ("teaching", ("teacher.adapters", "reprogramming", "decoder")),
            ("alignment", ("enhance",)),
        ):
            for part in parts:
                names = [name for name in after[module] if name.startswith(part)]
                assert names
                still = [name for name in names if torch.equal(before[module][name], after[module][name])]
                # a bias before an instance norm does nothing, nor does one before a norm's own
                assert not [name for name in still if not name.endswith("bias")], (module, part)

    def test_without_the_teachers_weights_training_stops_before_it_starts(self, host, tmp_path):
        command = f"nnUNetv2_train 701 3d_fullres 1 -p tinyPlans -tr {self.trainer} -device cpu"
        printed = host.run(command, status=1, NNUNET_DG_HOME=str(tmp_path / "empty"))
        assert "The published weights of 'anatomix' could not be fetched" in printed
        assert "Epoch 0" not in printed

    @pytest.mark.parametrize(
        ("settings", "configuration", "message"),
        [
            (
                {"teacher": "dino"},
                "3d_fullres",
                "teacher must be anatomix, nnunet, or the name of a ViT in timm; got 'dino'",
            ),
            ({"teacher": "vit_tiny_patch16_224"}, "3d_fullres", "'vit_tiny_patch16_224' is 2-D, the configuration 3-D"),
            (
                {"loss_weights": [1, 1]},
                "3d_fullres",
                "loss_weights must be 5 positive numbers, of segmentation_teacher",
            ),
            ({}, "2d", "The published weights of 'samvit_base_patch16.sa1b' could not be fetched"),
        ],
    )
    def test_what_cannot_be_is_said_before_training(self, host, plans, settings, configuration, message):
        name = plans({"tinymig": settings})
        printed = host.run(f"nnUNetv2_train 701 {configuration} 1 -p {name} -tr {self.trainer} -device cpu", status=1)
        assert message in printed
        assert "Epoch 0" not in printed


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
        (
            {"dropgen": {"extractor": "dino"}},
            "extractor must be one of anatomix, anatomix-dev, mind, nnunet; got 'dino'",
        ),
        ({"dropgen": {"p": 1.0}}, "p must be a probability in [0, 1)"),
        ({"dropgem": {}}, "plans[\"nnunet_dg\"] knows dropgen, sgcg, tinymig; got 'dropgem'"),
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
    printed = host.run(f"{train} --c", status=1)
    assert "This checkpoint was trained with other settings" in printed
    assert "extractor was 'mind' and is 'anatomix'" in printed


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
