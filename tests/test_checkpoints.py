"""Model folders from other people: no code in them is run, and damaged or foreign files are named."""

import json
import os
import shutil

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from tiny_model import CONFIGURATION, DATASET_JSON, change_checkpoint, write_cases, write_trained

from nnunet_dg.checkpoints import check_folds, check_trainer, safe_checkpoint
from nnunet_dg.cli import main
from nnunet_dg.errors import DataError, HostError, SettingsError, UserError
from nnunet_dg.host import trainer_class
from nnunet_dg.robustness.trained_model import ModelError, TrainedModel


@pytest.fixture
def folder(tmp_path):
    return write_trained(tmp_path / "results")


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    return write_cases(tmp_path_factory.mktemp("cases"))


def load(folder, folds=None, checkpoint="checkpoint_final.pth"):
    return TrainedModel(folder, folds, checkpoint, "cpu", mirroring=False)


def nan(checkpoint):
    next(iter(checkpoint["network_weights"].values())).fill_(float("nan"))


def renamed(checkpoint):
    weights = checkpoint["network_weights"]
    weights["encoder.other"] = weights.pop(next(iter(weights)))


class Code:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


@pytest.mark.parametrize("command", ["stress", "reliance", "export"])
def test_code_in_a_checkpoint_does_not_run(command, folder, cases, tmp_path, capsys, monkeypatch):
    path = change_checkpoint(folder, lambda c: c.update(extra=Code(tmp_path / "ran")))
    shutil.rmtree(tmp_path / "ran", ignore_errors=True)
    images, truths = cases
    where = ["-i", images, "-t", truths, "-device", "cpu", "-o", tmp_path / "out"]
    monkeypatch.setattr("nnunetv2.paths.nnUNet_results", str(tmp_path / "results"))
    monkeypatch.setattr("nnunetv2.utilities.file_path_utilities.nnUNet_results", str(tmp_path / "results"))
    arguments = {
        "stress": ["stress", folder, *where],
        "reliance": ["stability", "reliance", folder, *where],
        "export": ["export", "-d", folder.parent.name, "-c", CONFIGURATION, "-tr", "nnUNetTrainer", "-f", "0", "-o",
                   tmp_path / "out"],
    }[command]  # fmt: skip
    assert main([str(a) for a in arguments]) == 1
    printed = capsys.readouterr().err
    assert str(path) in printed
    assert "asks to run code" in printed
    assert "Traceback" not in printed
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_as_nnunet_writes_it_is_read(folder):
    """nnU-Net saves NumPy numbers and a device in it."""
    checkpoint = safe_checkpoint(folder / "fold_0" / "checkpoint_final.pth")
    assert checkpoint["trainer_name"] == "nnUNetTrainer"
    assert checkpoint["logging"]["dice"] == [0.5]
    assert checkpoint["init_args"]["device"] == torch.device("cpu")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (nan, "holds NaN or infinite values"),
        (renamed, "does not match the network in its plans.json"),
        (lambda c: c["network_weights"].clear(), "network_weights"),
        (lambda c: c["network_weights"].update(x="text"), "the weight x is not a tensor"),
        (lambda c: c.update(trainer_name="nnUNetTrainer_5epochs"), "is a checkpoint of nnUNetTrainer_5epochs"),
        (lambda c: c.update(trainer_name=17), "trainer_name"),
        (lambda c: c.pop("trainer_name"), "trainer_name"),
        (lambda c: c["init_args"].update(configuration="2d"), "expected here: nnUNetTrainer, 3d_fullres"),
        (lambda c: c.update(init_args=[]), "init_args"),
    ],
)
def test_damaged_checkpoints_are_named(folder, change, message):
    path = change_checkpoint(folder, change)
    with pytest.raises(UserError, match=message) as refused:
        load(folder)
    assert str(path) in str(refused.value)


def test_every_fold_of_an_ensemble_is_checked(tmp_path):
    folder = write_trained(tmp_path / "results", folds=(0, 1))
    assert load(folder, ["0", "1"]).folds == ["0", "1"]
    path = change_checkpoint(folder, renamed, fold=1)
    with pytest.raises(ModelError, match=r"2 tensors differ"):
        load(folder, ["0", "1"])
    assert path.is_file()


@pytest.mark.parametrize("content", ["{", "[]", "null", '{"dataset_name": "x"}', "\0\0", '{"a": 1, "a": 2}'])
@pytest.mark.parametrize("name", ["plans.json", "dataset.json"])
def test_damaged_json_of_a_model_is_named(folder, name, content):
    (folder / name).write_text(content)
    with pytest.raises(DataError) as refused:
        load(folder)
    assert str(folder / name) in str(refused.value)


def test_plans_that_lack_what_prediction_needs_are_named(folder):
    plans = json.loads((folder / "plans.json").read_text())
    for key in ("architecture", "patch_size", "normalization_schemes"):
        changed = json.loads(json.dumps(plans))
        del changed["configurations"][CONFIGURATION][key]
        (folder / "plans.json").write_text(json.dumps(changed))
        with pytest.raises(DataError, match=r"plans\.json"):
            load(folder)


@pytest.mark.parametrize(
    ("folds", "message"),
    [(["0", "0"], "Fold 0 is given twice"), (["0", "00"], "given twice"), (["x"], "a number or all; got 'x'"),
     (["-1"], "a number or all"), ([], "at least one")],
)  # fmt: skip
def test_folds_are_numbers_each_once(folder, folds, message):
    with pytest.raises(SettingsError, match=message):
        load(folder, folds)
    assert check_folds([0, "3", "all"]) == ["0", "3", "all"]


def test_the_command_line_refuses_a_fold_twice(folder, cases, tmp_path, capsys):
    images, truths = cases
    arguments = ["stress", folder, "-f", 0, 0, "-i", images, "-t", truths, "-device", "cpu", "-o", tmp_path / "o"]
    assert main([str(a) for a in arguments]) == 1
    assert "Fold 0 is given twice" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("name", ["", "..", "../fold_0/checkpoint_final.pth", "/etc/passwd", "a\\b", "*"])
def test_a_checkpoint_is_a_file_in_its_fold(folder, name):
    with pytest.raises(UserError, match="checkpoint"):
        load(folder, None, name)


def test_folders_without_nnunets_naming_may_hold_any_trainer(tmp_path, folder):
    for name in ("exported", "my__model__of_2024"):
        shutil.copytree(folder, tmp_path / name)
        assert load(tmp_path / name).predictor.trainer_name == "nnUNetTrainer"
    given = {tmp_path / "a": {"trainer_name": "A", "init_args": {"configuration": "c"}}}
    assert check_trainer(tmp_path, {"configurations": {"c": {}}}, given) == "A"
    given[tmp_path / "b"] = {"trainer_name": "B", "init_args": {"configuration": "c"}}
    with pytest.raises(DataError, match="b is a checkpoint of B, c; expected here: A, c"):
        check_trainer(tmp_path, {"configurations": {"c": {}}}, given)


@pytest.mark.parametrize("name", ["nnUNetTrainerDoesNotExist", "autocast"])
def test_a_trainer_that_does_not_exist_is_named(name):
    with pytest.raises(HostError, match=f"does not find a trainer {name}"):
        trainer_class(name)


def write(path, array):
    sitk.WriteImage(sitk.GetImageFromArray(array), path)


def test_a_case_is_checked_against_the_plans_and_the_dataset(folder, tmp_path):
    images, truths = write_cases(tmp_path / "cases", ["a"])
    plans = json.loads((folder / "plans.json").read_text())
    (folder / "plans.json").write_text(json.dumps(plans | {"image_reader_writer": "NibabelIO"}))  # ITK's reads NaN as 0
    model = load(folder)
    (case,) = model.cases(images, truths)
    model.read(case)
    truth, image = (sitk.GetArrayFromImage(sitk.ReadImage(p)) for p in (case.truth, case.images[0]))
    for array, message in (
        (truth * 3, "voxels of value 3, 6. .*dataset.json declares 0, 1, 2"),
        (truth[:-1], "has shape"),
        (np.where(truth > 0, np.nan, 0).astype(np.float32), "NaN"),
        (truth.astype(np.float32) / 2, "voxels of value 0.5"),
    ):
        write(case.truth, array)
        with pytest.raises(DataError, match=message):
            model.read(case)
    write(case.truth, truth)
    write(case.images[0], np.where(truth > 0, np.inf, image).astype(np.float32))
    with pytest.raises(ModelError, match=r"a_0000\.nii\.gz contains NaN or infinite values"):
        model.read(case)
    case.images[0].write_bytes(b"no image")
    with pytest.raises(DataError, match=r"a_0000\.nii\.gz"):
        model.read(case)
    write(case.images[0], image)
    write(images / "a_0001.nii.gz", image)
    with pytest.raises(ModelError, match=r"2 channels; .* was trained on 1"):
        model.read(model.cases(images, truths)[0])


def test_hidden_files_are_not_cases(folder, tmp_path):
    images, truths = write_cases(tmp_path / "cases", ["a"])
    for path in (images / "._a_0000.nii.gz", truths / "._a.nii.gz"):
        path.write_bytes(b"\0\5\26\7")
    assert [case.name for case in load(folder).cases(images, truths)] == ["a"]
    with pytest.raises(ModelError, match=r"There is no folder .*nowhere"):
        load(folder).cases(images, tmp_path / "nowhere")


@pytest.fixture
def validated(folder, tmp_path, monkeypatch):
    """The model, and nnU-Net's folders with the cases a and b, of which fold 0 validates a."""
    raw, preprocessed = (tmp_path / part / folder.parent.name for part in ("raw", "preprocessed"))
    images, truths = write_cases(tmp_path / "cases", ["a", "b"])
    raw.mkdir(parents=True)
    images.rename(raw / "imagesTr")
    (raw / "dataset.json").write_text(json.dumps(DATASET_JSON))
    preprocessed.mkdir(parents=True)
    truths.rename(preprocessed / "gt_segmentations")
    (preprocessed / "splits_final.json").write_text(json.dumps([{"train": ["b"], "val": ["a"]}]))
    monkeypatch.setattr("nnunet_dg.robustness.trained_model.nnUNet_raw", str(raw.parent))
    monkeypatch.setattr("nnunet_dg.robustness.trained_model.nnUNet_preprocessed", str(preprocessed.parent))
    return load(folder), raw, preprocessed


def test_validation_cases_are_found_where_the_dataset_lists_them(validated, tmp_path):
    model, raw, _ = validated
    (case,) = model.cases()
    assert (case.name, [path.name for path in case.images]) == ("a", ["a_0000.nii.gz"])
    (tmp_path / "archive").mkdir()
    (raw / "imagesTr" / "a_0000.nii.gz").rename(tmp_path / "archive" / "scan 7.nii.gz")
    listed = {name: {"images": [f"../../archive/{image}.nii.gz"], "label": "x"} for name, image in
              (("a", "scan 7"), ("b", "scan 8"))}  # fmt: skip
    (raw / "dataset.json").write_text(json.dumps(DATASET_JSON | {"dataset": listed}))
    (case,) = model.cases()
    assert [path.samefile(tmp_path / "archive" / "scan 7.nii.gz") for path in case.images] == [True]
    model.read(case)
    (raw / "dataset.json").write_text(json.dumps(DATASET_JSON | {"dataset": {"a": ["scan 7"]}}))
    with pytest.raises(DataError, match=r"dataset\.json: dataset\.a"):
        model.cases()


def test_a_case_that_was_removed_from_the_dataset_is_named(validated):
    """nnU-Net keeps its truth in gt_segmentations."""
    model, raw, preprocessed = validated
    (raw / "imagesTr" / "b_0000.nii.gz").unlink()
    assert [case.name for case in model.cases()] == ["a"]
    (preprocessed / "splits_final.json").write_text(json.dumps([{"train": ["a"], "val": ["b"]}]))
    with pytest.raises(ModelError, match=r"splits_final\.json names 'b', which has no images in"):
        model.cases()


@pytest.mark.parametrize("splits", ["{", "[]", "null", '[{"train": []}]', '[{"train": ["b"], "val": ["a", "a"]}]'])
def test_damaged_splits_are_named(validated, splits):
    model, _, preprocessed = validated
    (preprocessed / "splits_final.json").write_text(splits)
    with pytest.raises(DataError, match=r"splits_final\.json"):
        model.cases()
