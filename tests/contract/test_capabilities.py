"""The capabilities of nnU-Net with each trainer, tested by its own commands: docs/reference/capabilities.md.

These tests take minutes and run with -m matrix.
"""

import json
import shutil
from importlib.metadata import entry_points

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunet_host import DATASET, UNVALIDATED, Host, one_case, shrink_plans

pytestmark = pytest.mark.matrix
LABELS = {
    "regions": (711, {"background": 0, "whole": [1, 2], "core": 2}, [1, 2]),
    "ignore label": (712, {"background": 0, "box": 1, "core": 2, "ignore": 3}, None),
    "regions and ignore label": (713, {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}, [1, 2]),
}
SAME_RANDOM_STATE = {"TINY_SEEDED": "1"}


@pytest.fixture(scope="session")
def label_kinds(host):
    """The host's dataset with other kinds of labels, derived as in nnU-Net's own integration tests."""
    rng = np.random.default_rng(0)
    for number, labels, order in LABELS.values():
        name = f"Dataset{number}_Labels"
        raw = host.folder / "nnUNet_raw" / name
        shutil.copytree(host.folder / "nnUNet_raw" / DATASET, raw)
        description = json.loads((raw / "dataset.json").read_text()) | {"labels": labels}
        (raw / "dataset.json").write_text(json.dumps(description | ({"regions_class_order": order} if order else {})))
        for path in (raw / "labelsTr").iterdir() if "ignore" in labels else ():
            truth = sitk.GetArrayFromImage(sitk.ReadImage(path))
            sparse = np.full_like(truth, labels["ignore"])
            for axis, size in enumerate(truth.shape):  # annotated slices along every axis
                for index in rng.choice(size, max(1, size // 5), replace=False):
                    slices = (slice(None),) * axis + (index,)
                    sparse[slices] = truth[slices]
            sitk.WriteImage(sitk.GetImageFromArray(sparse), path)
        host.run(f"nnUNetv2_plan_and_preprocess -d {number} -c 3d_fullres -np 1 -npfp 1")
        shrink_plans(host.folder / "nnUNet_preprocessed" / name)


@pytest.fixture(scope="session")
def three_domains(host):
    """The number of a copy of the host's dataset whose training cases are from three domains."""
    name = "Dataset714_Domains"
    raw, preprocessed = (host.folder / folder / name for folder in ("nnUNet_raw", "nnUNet_preprocessed"))
    for folder in (raw, preprocessed):
        shutil.copytree(folder.with_name(DATASET), folder, symlinks=True)
    plans = json.loads((preprocessed / "tinyPlans.json").read_text()) | {"dataset_name": name}
    (preprocessed / "tinyPlans.json").write_text(json.dumps(plans))
    (raw / "domains.json").write_text(json.dumps({f"case_{i}": domain for i, domain in enumerate("aabcb")}))
    split = {"train": [f"case_{i}" for i in range(1, 5)], "val": ["case_0"]}
    (preprocessed / "splits_final.json").write_text(json.dumps([split]))
    return 714


@pytest.fixture(scope="session")
def _lowres(host):
    host.run("nnUNetv2_preprocess -d 701 -plans_name tinyPlans -c 3d_lowres -np 1")


@pytest.fixture(scope="session")
def one_image(host):
    return one_case(host, host.folder / "one_image")


@pytest.fixture(scope="session")
def plain(host, one_image):
    """The name of nnU-Net's own trainer, which is trained and validated, and a folder with its prediction."""
    trainer = "Tiny_nnUNetTrainer"
    host.train(trainer, "--npz", nnUNet_n_proc_DA="0")
    out = host.folder / "predicted_by_plain"
    host.predict(trainer, one_image, out, "--save_probabilities")
    return trainer, out


def segmentation_in(folder):
    return sitk.GetArrayFromImage(sitk.ReadImage(folder / "case_0.nii.gz"))


class Capabilities:
    """The capabilities of one trainer, which a subclass names."""

    trainer: str
    refuses_2d = False
    plans_2d = "tinyPlans"
    trains_without_weights = True  # with a pretrained checkpoint

    @pytest.fixture(autouse=True)
    def _recorded_for_the_table(self, request, record_property):
        record_property("trainer", self.trainer.removeprefix("Tiny_"))

    def train(self, host, options="", **how):
        return host.train(self.trainer, options, nnUNet_n_proc_DA="0", **how)

    def predict(self, host, images, out, options="", **how):
        host.predict(self.trainer, images, out, options, **how)
        return segmentation_in(out)

    @pytest.fixture(scope="class")
    def model(self, host):
        """The results folder of an uninterrupted training from a known random state."""
        shutil.rmtree(host.results(self.trainer), ignore_errors=True)  # another test may have trained it
        self.train(host, "--npz", **SAME_RANDOM_STATE)
        return host.results(self.trainer)

    @pytest.fixture(scope="class")
    def predicted(self, host, model, one_image, tmp_path_factory):
        """A folder with the segmentation and the probabilities of nnU-Net's command, predicted by its workers."""
        out = tmp_path_factory.mktemp("predicted")
        self.predict(host, one_image, out, "-npp 1 -nps 1 --save_probabilities")
        return out

    @pytest.mark.capability("3d_fullres")
    def test_trains_and_validates(self, model):
        assert np.isfinite(json.loads((model / "validation" / "summary.json").read_text())["foreground_mean"]["Dice"])

    @pytest.mark.capability("2d")
    def test_two_dimensions(self, host, record_property):
        if not self.refuses_2d:
            self.train(host, configuration="2d", plans=self.plans_2d)
            results = host.results(self.trainer, configuration="2d", plans=self.plans_2d)
            assert (results / "validation" / "summary.json").is_file()
            return
        printed = self.train(host, configuration="2d", status=1)
        refusal = next(line for line in printed.splitlines() if "NotImplementedError:" in line)
        record_property("refusal", refusal.replace("Tiny_", ""))
        assert "Train with nnUNetTrainerDropGen_MIND" in printed
        assert "Epoch 0" not in printed

    @pytest.mark.capability("3d_lowres to 3d_cascade_fullres")
    @pytest.mark.usefixtures("_lowres")
    def test_cascade(self, host, one_image, tmp_path):
        self.train(host, fold="all", configuration="3d_lowres")
        self.train(host, configuration="3d_cascade_fullres")
        stage = self.predict(host, one_image, tmp_path / "lowres", configuration="3d_lowres", fold="all")
        # with workers, since nnU-Net 2.7.0 ignores the previous stage without them
        previous = f"-prev_stage_predictions {tmp_path / 'lowres'} -npp 1 -nps 1"
        final = self.predict(host, one_image, tmp_path / "final", previous, configuration="3d_cascade_fullres")
        assert stage.shape == final.shape == (20, 24, 20)
        checkpoints = [
            torch.load(host.results(self.trainer, fold, configuration) / "checkpoint_final.pth", weights_only=False)
            for fold, configuration in (("all", "3d_lowres"), ("0", "3d_cascade_fullres"))
        ]
        first = "encoder.stages.0.0.convs.0.conv.weight"
        lowres, cascade = (
            next(w for key, w in checkpoint["network_weights"].items() if key.endswith(first)).shape[1]
            for checkpoint in checkpoints
        )
        assert cascade == lowres + 2  # two one-hot labels, which have no features

    @pytest.mark.parametrize(
        "kind", [pytest.param(kind, marks=pytest.mark.capability(kind)) for kind in LABELS], ids=lambda k: k.split()[-1]
    )
    def test_label_kinds(self, host, label_kinds, one_image, tmp_path, kind):
        number, _, order = LABELS[kind]
        self.train(host, dataset=number)
        results = host.results(self.trainer, dataset=f"Dataset{number}_Labels")
        summary = json.loads((results / "validation" / "summary.json").read_text())
        assert set(summary["mean"]) == ({"(1, 2)", "2"} if order else {"1", "2"})
        segmentation = self.predict(host, one_image, tmp_path, dataset=number)
        assert set(np.unique(segmentation)) <= {0, 1, 2}

    @pytest.mark.capability("--c")
    def test_a_resumed_training_equals_the_uninterrupted_one(self, host, model):
        """All content except `_best_ema` is compared, which nnU-Net updates after it writes checkpoint_latest.

        Rounding errors differ between processes, and each step makes them larger; seeded trainings have a tenth of
        nnU-Net's learning rate, with which they stay below a hundredth of the distance that weights and momentum have
        moved since the training was resumed. A tenth is allowed; a training that resumes without its momentum differs
        by more.
        """
        uninterrupted = torch.load(model / "checkpoint_final.pth", weights_only=False)
        resumed = model.with_name("fold_0_resumed")
        model.rename(model.with_name("fold_0_whole"))
        try:
            self.train(host, status=-9, TINY_STOP_AFTER="1", **SAME_RANDOM_STATE)
            killed = torch.load(model / "checkpoint_latest.pth", weights_only=False)
            self.train(host, "--c", **SAME_RANDOM_STATE, **UNVALIDATED)
            other = torch.load(model / "checkpoint_final.pth", weights_only=False)
            model.rename(resumed)
        finally:
            model.with_name("fold_0_whole").rename(model)
        for part in ("weights", "momentum", "auxiliary"):
            a, b, start = (self.learned(checkpoint)[part] for checkpoint in (uninterrupted, other, killed))
            assert a.keys() == b.keys() == start.keys()
            assert self.distance(a, b) <= 0.1 * self.distance(a, start), part
        assert uninterrupted["optimizer_state"]["param_groups"] == other["optimizer_state"]["param_groups"]
        assert uninterrupted["grad_scaler_state"] == other["grad_scaler_state"]
        assert uninterrupted["init_args"]["plans"] == other["init_args"]["plans"]
        assert uninterrupted["logging"].keys() == other["logging"].keys()
        for name, values in uninterrupted["logging"].items():
            if "timestamps" not in name:
                np.testing.assert_allclose(other["logging"][name], values, rtol=0.01, atol=0.01, err_msg=name)

    @staticmethod
    def learned(checkpoint):
        """All tensors that a training changes, ``{part: {name: tensor}}``."""
        optimizer = checkpoint["optimizer_state"]
        auxiliary = optimizer.get("nnunet_dg_auxiliary", {}).get("modules", {})
        momentum = {(i, k): v for i, state in optimizer["state"].items() for k, v in state.items()}
        return {
            "weights": checkpoint["network_weights"],
            "momentum": {name: value for name, value in momentum.items() if isinstance(value, torch.Tensor)},
            "auxiliary": {
                (name, k): v
                for name, state in auxiliary.items()
                for k, v in state.items()
                if isinstance(v, torch.Tensor)  # not samples of earlier steps
            },
        }

    @staticmethod
    def distance(a, b):
        return sum(float((a[name].double() - b[name].double()).square().sum()) for name in a) ** 0.5

    @pytest.mark.capability("--val")
    def test_validates_again(self, host, model):
        summary = model / "validation" / "summary.json"
        before = summary.read_text()
        summary.unlink()
        self.train(host, "--val")
        assert json.loads(summary.read_text())["mean"] == json.loads(before)["mean"]

    @pytest.mark.capability("--val_best")
    def test_validates_with_the_best_checkpoint(self, host, model):
        (model / "validation" / "summary.json").unlink()
        self.train(host, "--val --val_best --npz")
        assert (model / "validation" / "summary.json").is_file()

    @pytest.mark.capability("--npz")
    def test_saves_probabilities(self, model):
        probabilities = [np.load(path)["probabilities"] for path in (model / "validation").glob("*.npz")]
        assert probabilities
        for p in probabilities:
            np.testing.assert_allclose(p.sum(0), 1, atol=1e-2)

    @pytest.mark.capability("-pretrained_weights")
    @pytest.mark.capability("--disable_checkpointing")
    def test_starts_from_another_checkpoint_and_writes_none(self, host, model, tmp_path):
        """The checkpoint contains the weights of the extractor, but not those of a teacher."""
        source = model / "checkpoint_final.pth"
        options = f"-pretrained_weights {source} --disable_checkpointing"
        home = {"NNUNET_DG_HOME": str(tmp_path / "empty")} if self.trains_without_weights else {}
        printed = self.train(host, options, fold="1", **home, **UNVALIDATED)
        assert "Loading pretrained weights from file" in printed
        assert not (tmp_path / "empty").exists()
        assert not list(host.results(self.trainer, "1").glob("*.pth"))

    @pytest.mark.capability("nnUNet_compile")
    @pytest.mark.capability("fold all")
    def test_compiled_and_uncompiled_trainings_of_fold_all_agree(self, host, model):
        final = host.results(self.trainer, "all") / "checkpoint_final.pth"
        weights = []
        for compiled in (UNVALIDATED, {"TINY_COMPILED": "1"}):
            printed = self.train(host, fold="all", **SAME_RANDOM_STATE, **compiled)
            assert ("Using torch.compile" in printed) == ("TINY_COMPILED" in compiled)
            weights.append(torch.load(final, weights_only=False)["network_weights"])
        on_other_cases = torch.load(model / "checkpoint_final.pth", weights_only=False)["network_weights"]
        assert weights[0].keys() == weights[1].keys()
        assert self.distance(*weights) <= 0.1 * self.distance(weights[0], on_other_cases)  # rounding errors, see above
        cases = json.loads((host.results(self.trainer, "all") / "validation" / "summary.json").read_text())
        assert len(cases["metric_per_case"]) == 5

    @pytest.mark.capability("nnUNetv2_find_best_configuration")
    def test_find_best_configuration(self, host, model, plain):
        other, _ = plain
        host.run(
            f"nnUNetv2_find_best_configuration 701 -tr {self.trainer} {other} -p tinyPlans -c 3d_fullres -f 0 -np 1"
        )
        found = json.loads((model.parents[1] / "inference_information.json").read_text())
        assert any(self.trainer in name and other in name for name in found["all_results"])

    @pytest.mark.capability("nnUNetv2_ensemble")
    def test_ensembles_with_a_plain_model(self, host, predicted, plain, tmp_path):
        _, other = plain
        host.run(f"nnUNetv2_ensemble -i {predicted} {other} -o {tmp_path} -np 1 --save_npz")
        a, b, both = (np.load(out / "case_0.npz")["probabilities"] for out in (predicted, other, tmp_path))
        np.testing.assert_allclose(both, (a.astype(np.float32) + b) / 2, atol=1e-3)

    @pytest.mark.capability("export to zip and install")
    def test_a_zip_is_installed_and_predicts_without_weights_and_internet(self, host, predicted, one_image, tmp_path):
        zipped = tmp_path / "model.zip"
        host.run(f"nnUNetv2_export_model_to_zip -d 701 -o {zipped} -c 3d_fullres -f 0 -tr {self.trainer} -p tinyPlans")
        elsewhere = Host(tmp_path / "elsewhere", warm=host.warm)
        elsewhere.environment["PYTHONPATH"] = host.environment["PYTHONPATH"]
        for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            (elsewhere.folder / name).mkdir(parents=True)
        elsewhere.run(f"nnUNetv2_install_pretrained_model_from_zip {zipped}")
        there = self.predict(elsewhere, one_image, tmp_path / "there")
        assert np.array_equal(there, segmentation_in(predicted))
        assert not (elsewhere.folder / "weights").exists()

    @pytest.mark.capability("nnUNetv2_predict_from_modelfolder")
    def test_predicts_from_a_model_folder(self, host, model, predicted, one_image, tmp_path):
        host.run(
            f"nnUNetv2_predict_from_modelfolder -i {one_image} -o {tmp_path} -m {model.parent} -f 0 "
            f"-device cpu -npp 1 -nps 1 --disable_tta"
        )
        assert np.array_equal(segmentation_in(tmp_path), segmentation_in(predicted))

    @pytest.mark.capability("nnUNetPredictor")
    def test_python_api_gives_the_commands_probabilities(self, host, model, predicted, one_image, tmp_path):
        image = one_image / "case_0_0000.nii.gz"
        host.script("predict_by_api.py", model.parent, image, tmp_path / "api")
        with np.load(tmp_path / "api.npz") as api, np.load(predicted / "case_0.npz") as command:
            np.testing.assert_allclose(api["probabilities"], command["probabilities"], atol=1e-3)

    @pytest.mark.capability("nnUNetPlannerDropGen")
    def test_trains_with_our_planner(self, host):
        plans, results = self.planned(host, "nnUNetPlannerDropGen", "nnUNetDropGenPlans")
        assert plans["experiment_planner_used"] == "nnUNetPlannerDropGen"
        assert (results / "validation" / "summary.json").is_file()

    @pytest.mark.capability("nnUNetPlannerDropGenResEncM")
    def test_trains_with_our_residual_encoder_planner(self, host):
        plans, results = self.planned(host, "nnUNetPlannerDropGenResEncM", "nnUNetDropGenResEncUNetMPlans")
        assert plans["experiment_planner_used"] == "nnUNetPlannerDropGenResEncM"
        assert (results / "validation" / "summary.json").is_file()

    def planned(self, host, planner, plans):
        """Plan, shrink the plans and train. Returns the recorded plans and the folder of the fold."""
        host.run(f"nnUNetv2_plan_experiment -d 701 -pl {planner}")
        shrink_plans(host.folder / "nnUNet_preprocessed" / DATASET, plans=plans, name=plans)
        self.train(host, plans=plans)
        results = host.results(self.trainer, plans=plans)
        return json.loads((results.parent / "plans.json").read_text()), results


class TestDropGen(Capabilities):
    trainer = "Tiny_nnUNetTrainerDropGen"
    refuses_2d = True


class TestMIND(Capabilities):
    trainer = "Tiny_nnUNetTrainerDropGen_MIND"


class TestPaper(Capabilities):
    trainer = "Tiny_nnUNetTrainerDropGen_Paper"
    refuses_2d = True


class TestSgCG(Capabilities):
    trainer = "Tiny_nnUNetTrainerSgCG"


class TestDropGenSgCG(Capabilities):
    trainer = "Tiny_nnUNetTrainerDropGenSgCG"
    refuses_2d = True


class TestTinyMIG(Capabilities):
    trainer = "Tiny_nnUNetTrainerTinyMIG"
    plans_2d = "tinyViTPlans"
    trains_without_weights = False

    @pytest.fixture(autouse=True)
    def _a_teacher_for_two_dimensions(self, host):
        write_plans_with_a_vit(host, self.plans_2d, "tinymig")


def write_plans_with_a_vit(host, name, method):
    """Plans whose teacher is a small ViT with random weights, since SAM's weights would have to be downloaded."""
    preprocessed = host.folder / "nnUNet_preprocessed" / DATASET
    plans = json.loads((preprocessed / "tinyPlans.json").read_text()) | {"plans_name": name}
    plans["nnunet_dg"] = {method: {"teacher": "random:vit_tiny_patch16_224"}}
    (preprocessed / f"{name}.json").write_text(json.dumps(plans))


class TestGIN(Capabilities):
    """For all methods that change images."""

    trainer = "Tiny_nnUNetTrainerGIN"


class TestMixUp(Capabilities):
    """For all methods that change labels."""

    trainer = "Tiny_nnUNetTrainerMixUp"


class TestMixStyle(Capabilities):
    """For all methods that change feature statistics."""

    trainer = "Tiny_nnUNetTrainerMixStyle"


class TestRSC(Capabilities):
    """For all methods that use gradients and masks."""

    trainer = "Tiny_nnUNetTrainerRSC"


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_a_trained_nnunet_is_an_extractor_and_predicting_does_not_need_its_folder(
    host, one_image, tmp_path, configuration
):
    host.train("Tiny_nnUNetTrainer", fold="all", configuration=configuration, **UNVALIDATED)
    folder = host.results("Tiny_nnUNetTrainer", "all", configuration).parent
    teacher = tmp_path / "published model"
    shutil.copytree(folder, teacher)
    preprocessed = host.folder / "nnUNet_preprocessed" / DATASET
    plans = json.loads((preprocessed / "tinyPlans.json").read_text()) | {"plans_name": "nnunetPlans"}
    plans["nnunet_dg"] = {"dropgen": {"extractor": "nnunet", "weights": str(teacher)}}
    (preprocessed / "nnunetPlans.json").write_text(json.dumps(plans))
    trainer, how = "Tiny_nnUNetTrainerDropGen", {"configuration": configuration, "plans": "nnunetPlans"}
    printed = host.train(trainer, **how, **UNVALIDATED)
    assert f"Extractor nnunet: weights from {teacher}" in printed
    shutil.rmtree(teacher)
    host.train(trainer, "--val", **how)
    host.predict(trainer, one_image, tmp_path / "out", **how)
    assert (tmp_path / "out" / "case_0.nii.gz").is_file()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus(host):
    host.run("nnUNetv2_train 701 3d_fullres 1 -p tinyPlans -tr Tiny_nnUNetTrainerDropGen -num_gpus 2")
    checkpoint = torch.load(host.results("Tiny_nnUNetTrainerDropGen", "1") / "checkpoint_final.pth", weights_only=False)
    assert np.isfinite(checkpoint["logging"]["train_losses"]).all()
    assert not any(key.startswith("module.") for key in checkpoint["network_weights"])


FAMILIES = {
    "nnUNetTrainerDropGen_p025": "nnUNetTrainerDropGen",
    "nnUNetTrainerDropGen_p075": "nnUNetTrainerDropGen",
    "nnUNetTrainerDropGen_MIND_20epochs": "nnUNetTrainerDropGen_MIND",
    "nnUNetTrainerDropGen_Synthetic": "nnUNetTrainerDropGen_MIND",
    "nnUNetTrainerDropGen_Paper_FewShot": "nnUNetTrainerDropGen_Paper",
    "nnUNetTrainerDropGen_Paper_NoMirroring": "nnUNetTrainerDropGen_Paper",
    "nnUNetTrainerDropGen_Structured": "nnUNetTrainerDropGen",
    "nnUNetTrainerDropGen_FeaturesOnly": "nnUNetTrainerDropGen",
    "nnUNetTrainerDropGen_SqueezeExcite": "nnUNetTrainerDropGen",
    "nnUNetTrainerERM_Paper": "nnUNetTrainerDropGen_Paper",
    "nnUNetTrainerERM_Paper_FewShot": "nnUNetTrainerDropGen_Paper",
    "nnUNetTrainerTinyMIG_DINOv2": "nnUNetTrainerTinyMIG",
    "nnUNetTrainerTinyMIG_Paper": "nnUNetTrainerTinyMIG",
    "nnUNetTrainerTinyMIG_Paper_100epochs": "nnUNetTrainerTinyMIG",
    "nnUNetTrainerSgCG_Paper": "nnUNetTrainerSgCG",
    "nnUNetTrainerSgCG_Paper_200epochs": "nnUNetTrainerSgCG",
    "nnUNetTrainerRAM": "nnUNetTrainerSgCG",
}
OF_SLOT = {  # trainers whose columns stand for others of the same slot
    "images": "nnUNetTrainerGIN",
    "labels": "nnUNetTrainerMixUp",
    "feature statistics": "nnUNetTrainerMixStyle",
    "gradients and masks": "nnUNetTrainerRSC",
    "network": "nnUNetTrainerDropGen",
    "auxiliary task": "nnUNetTrainerSgCG",
}
SLOT_MATES = (
    "nnUNetTrainerGIN_IPA", "nnUNetTrainerRandConv", "nnUNetTrainerCutOut", "nnUNetTrainerSLAug", "nnUNetTrainerBigAug",
    "nnUNetTrainerCrossNorm", "nnUNetTrainerDSU", "nnUNetTrainerTriD", "nnUNetTrainerEFDM", "nnUNetTrainerMaxStyle",
    "nnUNetTrainerChannelDropout", "nnUNetTrainerDSBN", "nnUNetTrainerAnatomix_FinetuneAll",
    "nnUNetTrainerAnatomix_FinetuneDecoder", "nnUNetTrainerTeacher",
    "nnUNetTrainerFedDG", "nnUNetTrainerJiGen", "nnUNetTrainerSAML", "nnUNetTrainerDoFE", "nnUNetTrainerC2SDG",
)  # fmt: skip
COMBINATIONS = {"nnUNetTrainerDropGenTinyMIG": ("nnUNetTrainerTinyMIG", "nnUNetTrainerDropGen")}
CHANGED = {
    "configure_optimizers", "configure_rotation_dummyDA_mirroring_and_inital_patch_size", "paper_epochs",
    "on_train_start", "on_train_epoch_start",  # refuses a longer training; logs both learning rates
}  # fmt: skip


@pytest.mark.parametrize("variant", FAMILIES)
def test_differs_from_its_family_only_in_settings_optimizer_and_mirroring(variant, record_property):
    declared = {e.name: e.load() for e in entry_points(group="nnunetv2.trainers")}
    record_property("trainer", variant)
    record_property("same_as", FAMILIES[variant])
    trainer, family = declared[variant], declared[FAMILIES[variant]]
    assert [type(method) for method in trainer.methods] == [type(method) for method in family.methods]
    others = [base for base in trainer.__mro__ if base not in family.__mro__]
    own = {name for base in others for name in vars(base)} - {"methods"}
    assert all(name.startswith("__") for name in own - CHANGED), own


@pytest.mark.parametrize("combination", COMBINATIONS)
def test_combines_two_trainers_without_additions_and_trains(host, one_image, tmp_path, combination, record_property):
    """Both trainers have their own columns, as does nnUNetTrainerDropGenSgCG, which combines in the same way."""
    declared = {e.name: e.load() for e in entry_points(group="nnunetv2.trainers")}
    first, second = COMBINATIONS[combination]
    record_property("trainer", combination)
    record_property("same_as", f"{first}` and `{second}")
    methods = [*declared[second].methods, *declared[first].methods]
    assert list(declared[combination].methods) == methods
    assert all(name.startswith("__") for name in set(vars(declared[combination])) - {"methods"})
    host.train(f"Tiny_{combination}")
    host.predict(f"Tiny_{combination}", one_image, tmp_path, NNUNET_DG_HOME=str(tmp_path / "empty"))
    assert segmentation_in(tmp_path).shape == (20, 24, 20)


@pytest.mark.parametrize("trainer", SLOT_MATES)
def test_shares_the_slot_of_another_trainer_and_trains_resumes_and_predicts(
    host, one_image, three_domains, tmp_path, trainer, record_property
):
    (entry,) = (e for e in entry_points(group="nnunetv2.trainers") if e.name == trainer)
    (method,) = entry.load().methods
    record_property("trainer", trainer)
    record_property("same_as", OF_SLOT[method.slot])
    tiny = f"Tiny_{trainer}"
    how = {"dataset": three_domains}
    host.train(tiny, status=-9, TINY_STOP_AFTER="1", **how)
    host.train(tiny, "--c", **how)
    results = host.results(tiny, dataset="Dataset714_Domains")
    losses = torch.load(results / "checkpoint_final.pth", weights_only=False)["logging"]["train_losses"]
    assert len(losses) == 3
    assert np.isfinite(losses).all()
    assert (results / "validation" / "summary.json").is_file()
    host.predict(tiny, one_image, tmp_path, NNUNET_DG_HOME=str(tmp_path / "empty"), **how)
    assert segmentation_in(tmp_path).shape == (20, 24, 20)
    plans = "tinyPlans"
    if method.key == "teacher":
        plans = "tinyTeacherPlans"
        write_plans_with_a_vit(host, plans, method.key)
        how = {}
    in_2d = host.train(tiny, configuration="2d", plans=plans, status=None, **UNVALIDATED, **how)
    assert ("Training done." in in_2d) != ("is 3-D only" in in_2d)


def test_every_registered_trainer_is_in_the_table():
    tested = {c.trainer.removeprefix("Tiny_") for c in Capabilities.__subclasses__()}
    ours = [e.name for e in entry_points(group="nnunetv2.trainers") if e.dist.name == "nnunet-dg"]
    without_methods = "nnUNetTrainerERM"  # tests/benchmark/test_run.py trains it
    assert sorted([*tested, *FAMILIES, *COMBINATIONS, *SLOT_MATES, without_methods]) == sorted(ours)
