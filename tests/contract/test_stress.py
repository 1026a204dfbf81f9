"""Measuring a trained model with the commands that users run."""

import json
import shutil

import pandas as pd
import pytest
import SimpleITK as sitk
import torch
from nnunet_host import DATASET, UNVALIDATED

from nnunet_dg.cli import main
from nnunet_dg.robustness.stress import WEIGHT_NOISE, measure
from nnunet_dg.robustness.stress_record import Measurement
from nnunet_dg.robustness.trained_model import ModelError, TrainedModel

TRAINER = "Tiny_nnUNetTrainerDropGen_MIND"


@pytest.fixture(scope="module")
def model(host, tmp_path_factory):
    """A model whose last layer is set to predict all labels; the short training might predict only background."""
    host.train(TRAINER, nnUNet_n_proc_DA="0", **UNVALIDATED)
    trained, folder = host.results(TRAINER).parent, tmp_path_factory.mktemp("model")
    (folder / "fold_0").mkdir()
    for name in ("plans.json", "dataset.json"):
        shutil.copy(trained / name, folder / name)
    checkpoint = torch.load(trained / "fold_0" / "checkpoint_final.pth", weights_only=False)
    for name, weight in checkpoint["network_weights"].items():
        if "seg_layers" in name and name.endswith("weight"):
            signs = torch.ones(weight.shape[1:])
            signs[::2] = -1
            weight.copy_(torch.stack([0 * signs, signs, -signs]))
        elif "seg_layers" in name:
            weight.copy_(torch.tensor([0.1, 0, 0]))
    torch.save(checkpoint, folder / "fold_0" / "checkpoint_final.pth")
    return folder


@pytest.fixture
def here(host, model, monkeypatch):
    """A function that runs ``nnunet-dg`` in this process, on the training cases, and returns its exit status."""
    monkeypatch.syspath_prepend(host.folder / "packages")
    raw = host.folder / "nnUNet_raw" / DATASET
    cases = ["-i", raw / "imagesTr", "-t", raw / "labelsTr", "-device", "cpu", "--disable_tta", "--max-cases", 1]
    return lambda *arguments: main([str(a) for a in (*arguments, *cases)])


def measurements(path):
    return [json.loads(line) for line in path.read_text().splitlines()[1:]]


def test_an_interrupted_stress_resumes_after_its_last_measurement(here, model, tmp_path, capsys):
    command = ("stress", f"Ours={model}", "-o", tmp_path, "--draws", 1, "--kinds", "inversion", "weight noise")
    assert here(*command) == 0
    uninterrupted = measurements(tmp_path / "Ours.jsonl")
    assert len(uninterrupted) == 1 + 4 + 4  # the identity once, and four strengths per kind
    assert "inversion" in capsys.readouterr().out
    table = pd.read_csv(tmp_path / "stress.csv")
    unchanged = table[table["strength"] == 0]
    assert set(unchanged["kind"]) == {"inversion", "weight noise"}
    assert set(table["label"]) == {"box", "core"}
    assert (tmp_path / "stress.png").stat().st_size > 5000

    lines = (tmp_path / "Ours.jsonl").read_text().splitlines(keepends=True)
    marked = json.loads(lines[1])
    marked["scores"]["box"]["dice"] = 0.123  # existing measurements are not repeated
    (tmp_path / "Ours.jsonl").write_text("".join([lines[0], json.dumps(marked) + "\n", *lines[2:6], lines[6][:20]]))
    assert here(*command) == 0
    resumed = measurements(tmp_path / "Ours.jsonl")
    assert resumed[0]["scores"]["box"]["dice"] == 0.123
    assert [entry["measurement"] for entry in resumed] == [entry["measurement"] for entry in uninterrupted]
    assert json.dumps([e["scores"] for e in resumed[1:]]) == json.dumps([e["scores"] for e in uninterrupted[1:]])

    assert here(*command, "--seed", 1) == 1
    assert "has measurements with other seed" in capsys.readouterr().err


def test_measurements_agree_with_nnunets_predictions(host, model, tmp_path):
    """On the validation cases, with mirroring; the inverted image is computed by hand."""
    host.run(f"nnunet-dg stress Ours={model} -o {tmp_path} --kinds inversion --max-cases 1 -device cpu")
    entries = measurements(tmp_path / "Ours.jsonl")
    measured = {entry["measurement"]["strength"]: entry["scores"] for entry in entries}
    (tmp_path / "in").mkdir()
    case = entries[0]["measurement"]["case"]
    original = sitk.ReadImage(host.folder / "nnUNet_raw" / DATASET / "imagesTr" / f"{case}_0000.nii.gz")
    array = sitk.GetArrayFromImage(original)
    for strength, changed in ((0, array), (1, array.max() + array.min() - array)):
        image = sitk.GetImageFromArray(changed)
        image.CopyInformation(original)
        sitk.WriteImage(image, tmp_path / "in" / f"{strength}_0000.nii.gz")
    folders = f"-m {model} -i {tmp_path / 'in'} -o {tmp_path / 'out'} -f 0"
    host.run(f"nnUNetv2_predict_from_modelfolder {folders} -device cpu -npp 1 -nps 1")
    for strength in (0, 1):
        predicted = sitk.GetArrayFromImage(sitk.ReadImage(tmp_path / "out" / f"{strength}.nii.gz"))
        voxels = [measured[strength][label]["predicted_voxels"] for label in ("box", "core")]
        assert voxels == [(predicted == 1).sum(), (predicted == 2).sum()]
        assert all(voxels)
    assert measured[1.0] != measured[0.0]


def test_weight_noise_changes_predictions_and_is_undone(here, host, model):
    trained = TrainedModel(model, None, "checkpoint_final.pth", "cpu", mirroring=False)
    raw = host.folder / "nnUNet_raw" / DATASET
    (case, *_) = trained.cases(raw / "imagesTr", raw / "labelsTr")
    original = trained.predictor.list_of_parameters
    noisy = measure(trained, case, Measurement(WEIGHT_NOISE, 0.4, case.name, ""), 0)
    assert trained.predictor.list_of_parameters is original
    plain = measure(trained, case, Measurement("none", 0, case.name, ""), 0)
    assert noisy["box"]["predicted_voxels"] != plain["box"]["predicted_voxels"]


def test_reliance_is_measured_with_the_image_or_the_features_zeroed(here, model, tmp_path, capsys):
    assert here("stability", "reliance", model, "-o", tmp_path) == 0
    table = pd.read_csv(tmp_path / "reliance.csv")
    voxels = table[table["label"] == "box"].set_index("zeroed")["predicted_voxels"]
    assert list(voxels.index) == ["nothing", "image", "features"]
    assert voxels.nunique() == 3
    assert "Dice (%)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("stress", "MODEL", "-chk", "best.pth"), "is not a trained model with best.pth"),
        (("stress", "MODEL", "-f", "3"), "its folds: 0"),
        (("stress", "MODEL", "--kinds", "gama"), "got 'gama'"),
        (("stress", "A=MODEL", "A=MODEL"), "Models need different names"),
    ],
)
def test_unknown_models_and_kinds_are_named(here, model, tmp_path, capsys, arguments, message):
    assert here(*(a.replace("MODEL", str(model)) for a in arguments), "-o", tmp_path) == 1
    assert message in capsys.readouterr().err


def test_missing_cases_are_named(host, here, model, tmp_path):
    trained = TrainedModel(model, ["0"], "checkpoint_final.pth", "cpu")
    with pytest.raises(ModelError, match="belong together"):
        trained.cases(images=tmp_path)
    with pytest.raises(ModelError, match="0 cases with a truth in"):
        trained.cases(tmp_path, tmp_path)
    with pytest.raises(ModelError, match=r"no validation cases for fold 0: .*give `images` and `truths`"):
        trained.cases()  # nnUNet_preprocessed is not set in this process
    raw = host.folder / "nnUNet_raw" / DATASET
    (tmp_path / "images").mkdir()
    for image in sorted((raw / "imagesTr").iterdir())[1:]:
        (tmp_path / "images" / image.name).symlink_to(image)
    with pytest.raises(ModelError, match="1 cases lack images: case_0 has 0 of 1"):
        trained.cases(tmp_path / "images", raw / "labelsTr")


def test_one_of_several_folds_must_be_chosen(here, model, tmp_path):
    for fold in (0, 1):
        (tmp_path / f"fold_{fold}").mkdir()
        (tmp_path / f"fold_{fold}" / "checkpoint_final.pth").symlink_to(model / "fold_0" / "checkpoint_final.pth")
    for name in ("plans.json", "dataset.json"):
        (tmp_path / name).symlink_to(model / name)
    with pytest.raises(ModelError, match=r"has fold 0, 1\. Choose one or more \(an ensemble\) as `folds`"):
        TrainedModel(tmp_path, None, "checkpoint_final.pth", "cpu")
    with pytest.raises(ModelError, match="no validation cases for fold 0, 1: only a single numbered fold"):
        TrainedModel(tmp_path, ["0", "1"], "checkpoint_final.pth", "cpu").cases()
