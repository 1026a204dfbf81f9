"""Export writes a complete model or nothing, and names damaged files."""

import json
import os
import shutil
import zipfile

import pytest
import torch
from tiny_model import CONFIGURATION, DATASET, change_checkpoint, write_trained

from nnunet_dg.cli import main

TRAINER = "nnUNetTrainerSgCG"


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr("nnunetv2.paths.nnUNet_results", str(tmp_path / "results"))
    monkeypatch.setattr("nnunetv2.utilities.file_path_utilities.nnUNet_results", str(tmp_path / "results"))
    return write_trained(tmp_path / "results", TRAINER)


def export(output, *options, dataset=DATASET):
    model = ["-d", dataset, "-c", CONFIGURATION, "-tr", TRAINER, "-f", "0"]
    return main(["export", *model, "-o", str(output), *options])


def left(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


@pytest.mark.parametrize("name", ["model", "model.v1.2", "model.zip", "model.ZIP"])
def test_a_complete_model_is_written_and_no_other_file(results, tmp_path, name):
    assert export(tmp_path / "out" / name) == 0
    assert left(tmp_path / "out") == [name]
    model = tmp_path / "out" / name
    if name.lower().endswith(".zip"):
        with zipfile.ZipFile(model) as archive:
            archive.extractall(tmp_path / "unzipped")
        model = tmp_path / "unzipped" / DATASET / f"nnUNetTrainer__nnUNetPlans__{CONFIGURATION}"
    checkpoint = torch.load(model / "fold_0" / "checkpoint_final.pth", weights_only=False)
    assert checkpoint["trainer_name"] == "nnUNetTrainer"
    assert json.loads((model / "plans.json").read_text())["dataset_name"] == DATASET


@pytest.mark.parametrize("command", ["export", "predict"])
def test_a_model_is_named_by_its_dataset_only_where_nnunet_results_is_set(command, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("nnunetv2.paths.nnUNet_results", None)
    images = [] if command == "export" else ["-i", str(tmp_path), "--adapt", "tent"]
    assert (
        main([command, *images, "-d", DATASET, "-c", CONFIGURATION, "-tr", TRAINER, "-o", str(tmp_path / "out")]) == 1
    )
    assert "nnUNet_results is not set. Set it to the folder" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["m.tar.gz", "m.tgz", "m.tar", "m.gz", "m.7z", "M.RAR", "m.pth"])
def test_names_of_other_archives_are_refused(results, tmp_path, name, capsys):
    assert export(tmp_path / "out" / name) == 1
    assert "The output must be a folder, or a file that ends in .zip; got" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["model", "model.zip"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")], ids=repr)
def test_a_failure_in_the_last_step_leaves_no_file(results, tmp_path, name, error, monkeypatch, capsys):
    def fail(*_, **__):
        raise error

    for place in ("pathlib.Path.rename", "pathlib.Path.replace", "zipfile.ZipFile.write"):
        monkeypatch.setattr(place, fail)
    assert export(tmp_path / "out" / name) == (130 if isinstance(error, KeyboardInterrupt) else 1)
    assert left(tmp_path / "out") == []
    assert "Traceback" not in capsys.readouterr().err


def test_a_full_disk_is_one_line(results, tmp_path, monkeypatch, capsys):
    """PyTorch reports it as an error of another type."""
    if not os.path.exists("/dev/full"):
        pytest.skip("needs a device that is full")
    path_open = os.open
    from nnunet_dg.export import _save

    (tmp_path / "full").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device"):
        _save({"weights": torch.zeros(1_000_000)}, tmp_path / "full")
    assert path_open is os.open


def test_groups_of_a_recipe_become_the_one_of_nnunets_optimizer(results, tmp_path):
    count = 0

    def of_a_recipe(checkpoint):
        nonlocal count
        count = len(checkpoint["network_weights"])
        groups = [torch.nn.Parameter(torch.zeros(1)) for _ in range(count + 1)]  # the last one of an auxiliary module
        optimizer = torch.optim.SGD(
            [{"params": groups[:2], "rate": 0.5}, {"params": groups[2:-1], "rate": 1.0}], lr=0.1
        )
        optimizer.add_param_group({"params": groups[-1:]})
        checkpoint["optimizer_state"] = optimizer.state_dict()

    change_checkpoint(results, of_a_recipe)
    assert export(tmp_path / "model") == 0
    checkpoint = torch.load(tmp_path / "model" / "fold_0" / "checkpoint_final.pth", weights_only=False)
    (group,) = checkpoint["optimizer_state"]["param_groups"]
    assert group["params"] == list(range(count))
    assert "rate" not in group


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.pop("optimizer_state"),
        lambda c: c["optimizer_state"].update(param_groups=[]),
        lambda c: c.pop("logging"),
        lambda c: c.update(logging=[]),
        lambda c: c["init_args"].pop("plans"),
        lambda c: c.update(trainer_name="nnUNetTrainer"),
        lambda c: [weight.fill_(float("nan")) for weight in c["network_weights"].values()],
    ],
)
def test_damaged_checkpoints_are_named(results, tmp_path, change, capsys):
    path = change_checkpoint(results, change)
    assert export(tmp_path / "out" / "m.zip") == 1
    printed = capsys.readouterr().err
    assert printed.startswith(f"nnunet-dg: {path}")
    assert printed.count("\n") == 1
    assert left(tmp_path / "out") == []


@pytest.mark.parametrize("name", ["plans.json", "dataset.json"])
def test_damaged_json_is_named(results, tmp_path, name, capsys):
    (results / name).write_text("{")
    assert export(tmp_path / "out" / "m.zip") == 1
    assert capsys.readouterr().err.startswith(f"nnunet-dg: {results / name}: not valid JSON")


@pytest.mark.parametrize("inherited", [False, True])
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("normalization_schemes", ["AnyModalityNormalization"], "the normalization AnyModalityNormalization"),
        ("preprocessor_name", "TheirPreprocessor", "the preprocessor TheirPreprocessor"),
        ("resampling_fn_data", "their_function", "the resampling function their_function"),
        ("resampling_fn_probabilities", "their_function", "the resampling function their_function"),
    ],
)
def test_preprocessing_that_plain_nnunet_lacks_is_refused(results, tmp_path, name, value, message, inherited, capsys):
    plans = json.loads((results / "plans.json").read_text())
    plans["configurations"][CONFIGURATION][name] = value
    if inherited:
        plans["configurations"]["parent"] = plans["configurations"][CONFIGURATION]
        plans["configurations"][CONFIGURATION] = {"inherits_from": "parent"}
    (results / "plans.json").write_text(json.dumps(plans))
    change_checkpoint(results, lambda checkpoint: checkpoint["init_args"].update(plans=plans))
    assert export(tmp_path / "out" / "model") == 1
    printed = capsys.readouterr().err
    assert f"{message} to predict, which plain nnU-Net does not have" in printed
    assert "nnUNetv2_export_model_to_zip" in printed
    assert not (tmp_path / "out").exists()


def test_a_configuration_that_is_not_in_the_plans_is_named(results, tmp_path, capsys):
    plans = json.loads((results / "plans.json").read_text())
    plans["configurations"] = {"2d": plans["configurations"][CONFIGURATION]}
    (results / "plans.json").write_text(json.dumps(plans))
    assert export(tmp_path / "out" / "model") == 1
    printed = capsys.readouterr().err
    assert f"{results / 'plans.json'}: nnU-Net cannot read configuration {CONFIGURATION}" in printed
    assert printed.count("\n") == 1


def test_a_model_that_was_never_trained_is_named_with_a_similar_one(results, tmp_path, capsys):
    assert export(tmp_path / "out", "-c", "3d_fulres") == 1
    printed = capsys.readouterr().err
    assert f"There is no folder {results.parent / f'{TRAINER}__nnUNetPlans__3d_fulres'}." in printed
    assert f"Did you mean '{results.name}'?" in printed
    assert "Choose another -d, -c, -tr or -p, or train this model." in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("-f", "0", "0"), "Fold 0 is given twice"),
        (("-d", "x"), "nnU-Net does not know the dataset 'x'"),
        (("-tr", "nnUNetTrainerNone"), "does not find a trainer nnUNetTrainerNone"),
        (("-f", "3"), "Choose other -f or another -chk, or train what is missing."),
        (("-chk", "../fold_0/checkpoint_final.pth"), "-chk must be the name of a file"),
    ],
)
def test_options_that_are_not_accepted_are_named(results, tmp_path, options, message, capsys):
    assert export(tmp_path / "out", *options) == 1
    printed = capsys.readouterr().err
    assert message in printed
    assert "Traceback" not in printed
    shutil.rmtree(tmp_path / "results")
