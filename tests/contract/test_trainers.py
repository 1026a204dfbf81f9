"""The contract of each trainer, tested by nnU-Net's own commands: train, kill, resume, validate and predict offline."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from export_contract import ExportContract, ExportRefusals
from nnunet_host import DATASET, UNVALIDATED
from trainer_contract import AuxiliaryContract, TrainerContract


class TestMIND(TrainerContract):
    trainer = "Tiny_nnUNetTrainerDropGen_MIND"
    environment = {"nnUNet_n_proc_DA": "2"}  # noqa: RUF012, with data loader processes, as in a real training

    def test_validates_again(self, host, trained):
        summary = host.results(self.trainer) / "validation" / "summary.json"
        before = json.loads(summary.read_text())
        summary.unlink()
        host.train(self.trainer, "--val")
        assert json.loads(summary.read_text())["mean"] == before["mean"]


class TestAnatomix(TrainerContract):
    trainer = "Tiny_nnUNetTrainerDropGen"
    uses_weights = True
    settings = ("dropgen", "extractor", "anatomix")

    def test_the_source_of_the_weights_is_logged(self, host, trained):
        assert "Extractor anatomix: weights from" in trained[0]
        assert "installed as unpublished" in trained[0]
        assert "Extractor anatomix: weights from the checkpoint" in trained[2]


class TestPaper(TrainerContract):
    trainer = "Tiny_nnUNetTrainerDropGen_Paper"
    uses_weights = True
    settings = ("dropgen", "image_scaling", "minmax")

    def test_the_learning_rate_decays_along_a_cosine_in_every_step(self, host, trained):
        rates = self.checkpoint(host)["logging"]["lrs"]
        # three epochs of two steps: 2e-4 * (1 + cos(pi * step / 6)) / 2 at steps 0, 2, 4
        assert rates == pytest.approx([2e-4, 1.5e-4, 0.5e-4])
        (group,) = self.checkpoint(host)["optimizer_state"]["param_groups"]
        assert group["lr"] == pytest.approx(0, abs=1e-12)  # after the sixth step
        assert group["weight_decay"] == 1e-4


class TestSgCG(TrainerContract, AuxiliaryContract, ExportContract, ExportRefusals):
    trainer = "Tiny_nnUNetTrainerSgCG"
    settings = ("sgcg", "temperature", 0.1)
    terms = (
        ("segmentation", 1), ("segmentation_mixed", 1), ("consistency", 0.5), ("restoration", 0.1), ("contrast", 0.1),
    )  # fmt: skip

    def test_the_first_epoch_only_collects_statistics(self, host, trained):
        logging = self.checkpoint(host)["logging"]
        first = sum(weight * logging[f"loss_{term}"][0] for term, weight in self.terms if term != "contrast")
        assert logging["train_losses"][0] == pytest.approx(first, 1e-4)

    def test_training_only_state_is_restored_when_the_training_resumes(self, host, trained):
        _, saved, _ = trained
        before, after = (c["optimizer_state"]["nnunet_dg_auxiliary"]["modules"] for c in (saved, self.checkpoint(host)))
        before, after = before["sgcg"], after["sgcg"]
        seen, now = (modules["contrast.statistics.count"][0].item() for modules in (before, after))
        # six steps instead of two; each chooses as many voxels of the background, and older ones have a lower weight
        assert now == pytest.approx(3 * seen, rel=0.01)
        learned = [key for key in before if key.startswith("restoration.") and not key.endswith("bias")]
        assert learned
        assert all(not torch.equal(before[key], after[key]) for key in learned)

    def test_batches_are_balanced_over_domains_in_nnunets_worker_processes(self, host, domains):
        printed = host.train(self.trainer, fold="1", **UNVALIDATED, nnUNet_n_proc_DA="2")
        assert "Batches are balanced over 2 domains" in printed
        assert "Contrast: statistics from epoch 0 on, loss from epoch 1 on" in printed
        logging = torch.load(host.results(self.trainer, "1") / "checkpoint_final.pth", weights_only=False)["logging"]
        weights = dict(self.terms) | {"restoration": 2 * 0.1}
        total = sum(weight * np.array(logging[f"loss_{term}"]) for term, weight in weights.items())
        assert logging["train_losses"] == pytest.approx(total, rel=1e-4)


class TestTinyMIG(TrainerContract, AuxiliaryContract, ExportContract):
    trainer = "Tiny_nnUNetTrainerTinyMIG"
    settings = ("tinymig", "statistics", "ufdm")
    terms = (
        ("segmentation_teacher", 1), ("segmentation_styled", 1), ("segmentation", 0.5), ("alignment", 0.5),
        ("consistency", 0.5),
    )  # fmt: skip

    def test_the_teacher_is_loaded_from_its_file_and_is_not_in_checkpoints(self, host, trained):
        first, saved, second = trained
        for printed in (first, second):
            assert (
                f"Teacher anatomix: weights from {host.folder / 'weights' / 'anatomix.pth'} (installed as unp"
                in printed
            )
        before, after = (c["optimizer_state"]["nnunet_dg_auxiliary"]["modules"] for c in (saved, self.checkpoint(host)))
        before, after = before["tinymig"], after["tinymig"]
        name = "teaching.teacher.fingerprint"
        assert torch.equal(before[name], after[name])
        tensors = [value for value in after.values() if isinstance(value, torch.Tensor)]  # not earlier samples
        assert sum(tensor.numel() for tensor in tensors) < 1_000_000  # anatomix has 5.9 million

    def test_adapters_reprogramming_decoder_and_filters_learn(self, host, trained):
        _, saved, _ = trained
        before, after = (c["optimizer_state"]["nnunet_dg_auxiliary"]["modules"] for c in (saved, self.checkpoint(host)))
        before, after = before["tinymig"], after["tinymig"]
        for part in ("teaching.teacher.adapters", "teaching.reprogramming", "teaching.decoder", "alignment.enhance"):
            names = [name for name in after if name.startswith(part)]
            assert names
            unchanged = [name for name in names if torch.equal(before[name], after[name])]
            # a bias before a norm layer has no effect
            assert not [name for name in unchanged if not name.endswith("bias")], part

    def test_without_the_teachers_weights_training_stops_before_it_starts(self, host, tmp_path):
        printed = host.train(self.trainer, fold="1", status=1, NNUNET_DG_HOME=str(tmp_path / "empty"))
        assert "The published weights of 'anatomix' could not be fetched" in printed
        assert "Epoch 0" not in printed

    @pytest.mark.parametrize(
        ("settings", "configuration", "message"),
        [
            (
                {"teacher": "dino"},
                "3d_fullres",
                "teacher must be anatomix, synthetic, nnunet, or the name of a ViT in timm; got 'dino'",
            ),
            (
                {"teacher": "vit_tiny_patch16_224"},
                "3d_fullres",
                "'vit_tiny_patch16_224' is 2-D, but the configuration",
            ),
            (
                {"loss_weights": [1, 1]},
                "3d_fullres",
                "loss_weights must be 5 positive numbers, for segmentation_teacher",
            ),
            ({}, "2d", "The published weights of 'samvit_base_patch16.sa1b' could not be fetched"),
        ],
    )
    def test_settings_that_do_not_fit_are_refused_before_training(self, host, plans, settings, configuration, message):
        name = plans({"tinymig": settings})
        printed = host.train(self.trainer, fold="1", configuration=configuration, plans=name, status=1)
        assert message in printed
        assert "Epoch 0" not in printed


@pytest.mark.matrix
class TestMixStyle(TrainerContract, AuxiliaryContract, ExportContract):
    trainer = "Tiny_nnUNetTrainerMixStyle"
    settings = ("mixstyle", "p", 0.5)
    terms = (("segmentation", 1),)


class TestGIN(TrainerContract, AuxiliaryContract):
    trainer = "Tiny_nnUNetTrainerGIN"
    settings = ("gin", "layers", 4)
    terms = (("segmentation", 1),)


@pytest.mark.matrix
class TestRSC(TrainerContract, AuxiliaryContract, ExportContract):
    trainer = "Tiny_nnUNetTrainerRSC"
    settings = ("rsc", "unit", "element")
    terms = (("segmentation", 1),)


class TestTwoDimensions:
    def test_mind_trains(self, host):
        host.train("Tiny_nnUNetTrainerDropGen_MIND", configuration="2d")
        results = host.results("Tiny_nnUNetTrainerDropGen_MIND", configuration="2d")
        assert (results / "validation" / "summary.json").is_file()

    def test_anatomix_is_refused_before_training_and_the_error_names_an_alternative(self, host):
        printed = host.train("Tiny_nnUNetTrainerDropGen", configuration="2d", status=1)
        for part in (
            "NotImplementedError",
            "Tiny_nnUNetTrainerDropGen",
            "'anatomix' is 3-D only",
            "nnUNetTrainerDropGen_MIND",
        ):
            assert part in printed
        assert "Epoch 0" not in printed


@pytest.fixture
def domains(host):
    """The cases of the dataset in two domains, for the duration of a test."""
    folders = [host.folder / name / DATASET for name in ("nnUNet_raw", "nnUNet_preprocessed")]
    domain_of_case = {f"case_{i}": "one" if i < 2 else "two" for i in range(5)}
    (folders[0] / "domains.json").write_text(json.dumps(domain_of_case))
    yield domain_of_case
    for folder in folders:
        (folder / "domains.json").unlink(missing_ok=True)


@pytest.fixture
def plans(host):
    """Function that writes ``plans["nnunet_dg"]`` into a copy of the plans and returns the name of the copy."""
    folder = host.folder / "nnUNet_preprocessed" / DATASET
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
    for results in (host.folder / "nnUNet_results" / DATASET).glob("*__otherPlans__*"):
        shutil.rmtree(results)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"dropgen": {"dropout": 0.5}},
            'Unknown setting in plans["nnunet_dg"]["dropgen"]: \'dropout\'. Accepted are extractor,',
        ),
        (
            {"dropgen": {"extractor": "dino"}},
            "extractor must be one of anatomix, anatomix-dev, mind, nnunet, synthetic; got 'dino'",
        ),
        ({"dropgen": {"p": 1.0}}, "p must be a probability in [0, 0.99]"),
        ({"dropgem": {}}, "Unknown section in plans[\"nnunet_dg\"]: 'dropgem'. Did you mean 'dropgen'?"),
    ],
)
def test_settings_that_are_not_accepted_are_refused_by_name(host, plans, settings, message):
    printed = host.train("Tiny_nnUNetTrainerDropGen", plans=plans(settings), status=1)
    assert f"ValueError: {message}" in printed or message in printed.splitlines()[-1]


def test_settings_in_the_plans_take_precedence_over_the_trainers_own(host, plans):
    """The plans are of a planner that assumed anatomix."""
    planned_for = {"3d": {"extractor": "anatomix"}}
    name = plans({"dropgen": {"extractor": "mind", "p": 0.25}, "planned_for": planned_for})
    printed = host.train("Tiny_nnUNetTrainerDropGen", fold="all", plans=name, **UNVALIDATED)
    assert "were chosen for extractor 'anatomix', but this training has 'mind'" in printed
    results = host.results("Tiny_nnUNetTrainerDropGen", "all", plans=name)
    written = json.loads((results.parent / "plans.json").read_text())["nnunet_dg"]["dropgen"]
    assert (written["extractor"], written["p"], written["layer"]) == ("mind", 0.25, "penultimate")


def test_missing_weights_stop_the_training_before_it_starts(host, tmp_path):
    without = {"NNUNET_DG_HOME": str(tmp_path / "empty")}
    printed = host.train("Tiny_nnUNetTrainerDropGen", fold="1", status=1, **without)
    assert "The published weights of 'anatomix' could not be fetched" in printed
    assert str(tmp_path / "empty" / "anatomix.pth") in printed
    assert "nnUNetTrainerDropGen_MIND" in printed
    assert "Epoch 0" not in printed


def test_resuming_or_training_another_fold_with_another_extractor_is_refused(host, plans):
    """Train with MIND, then change the plans to anatomix and train in the same folder."""
    trainer = "Tiny_nnUNetTrainerDropGen"
    host.train(trainer, fold="2", plans=plans({"dropgen": {"extractor": "mind"}}), status=-9, TINY_STOP_AFTER="1")
    printed = host.train(trainer, "--c", fold="2", plans=plans({"dropgen": {"extractor": "anatomix"}}), status=1)
    assert "This checkpoint was trained with other settings" in printed
    assert "extractor was 'mind' and is 'anatomix'" in printed
    another_fold = host.train(trainer, fold="3", plans="otherPlans", status=1)
    assert "fold_2 in " in another_fold
    assert "was trained with other settings: extractor was 'mind'" in another_fold
    assert "Epoch 0" not in another_fold


def test_pretrained_weights_of_a_dropgen_model_contain_the_extractor(host, tmp_path):
    source = host.results(TestAnatomix.trainer) / "checkpoint_final.pth"
    if not source.exists():
        host.train(TestAnatomix.trainer, **UNVALIDATED)
    without = {"NNUNET_DG_HOME": str(tmp_path / "empty")}
    printed = host.train(TestAnatomix.trainer, f"-pretrained_weights {source}", fold="3", **UNVALIDATED, **without)
    assert "Epoch 2" in printed
    assert not (tmp_path / "empty").exists()
