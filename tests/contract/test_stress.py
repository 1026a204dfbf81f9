"""A trained model, measured by the commands that users type."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from nnunet_dg.cli import main
from nnunet_dg.nnunet.stress import with_noise
from nnunet_dg.nnunet.trained_model import ModelError, TrainedModel

DATASET = "Dataset701_Tiny"
TRAINER = "Tiny_nnUNetTrainerDropGen_MIND"


@pytest.fixture(scope="module")
def model(host):
    host.run(f"nnUNetv2_train 701 3d_fullres 0 -p tinyPlans -tr {TRAINER} -device cpu", nnUNet_n_proc_DA="0")
    return host.results(TRAINER).parent


@pytest.fixture
def here(host, model, monkeypatch):
    """Runs ``nnunet-dg`` in this process, on the training cases; gives its exit status."""
    monkeypatch.syspath_prepend(host.folder / "packages")
    raw = host.folder / "nnUNet_raw" / DATASET
    cases = ["-i", raw / "imagesTr", "-t", raw / "labelsTr", "-device", "cpu", "--disable_tta", "--max-cases", 1]
    return lambda *arguments: main([str(a) for a in (*arguments, *cases)])


def measurements(path):
    return [json.loads(line) for line in path.read_text().splitlines()[1:]]


def test_an_interrupted_stress_goes_on_after_its_last_measurement(here, model, tmp_path, capsys):
    command = ("stress", f"Ours={model}", "-o", tmp_path, "--draws", 1, "--kinds", "inversion", "weight noise")
    assert here(*command) == 0
    whole = measurements(tmp_path / "Ours.jsonl")
    assert len(whole) == 1 + 4 + 4  # the identity once, and four strengths of each kind
    assert "inversion" in capsys.readouterr().out
    table = pd.read_csv(tmp_path / "stress.csv")
    unchanged = table[table["strength"] == 0]
    assert set(unchanged["kind"]) == {"inversion", "weight noise"}
    assert unchanged.groupby("label")["dice"].nunique().max() <= 1
    assert set(table["label"]) == {"box", "core"}
    assert (tmp_path / "stress.png").stat().st_size > 5000

    lines = (tmp_path / "Ours.jsonl").read_text().splitlines(keepends=True)
    marked = json.loads(lines[1])
    marked["scores"]["box"]["dice"] = 0.123  # what is there is not measured again
    (tmp_path / "Ours.jsonl").write_text("".join([lines[0], json.dumps(marked) + "\n", *lines[2:6], lines[6][:20]]))
    assert here(*command) == 0
    again = measurements(tmp_path / "Ours.jsonl")
    assert again[0]["scores"]["box"]["dice"] == 0.123
    assert [entry["measurement"] for entry in again] == [entry["measurement"] for entry in whole]
    assert json.dumps([e["scores"] for e in again[1:]]) == json.dumps([e["scores"] for e in whole[1:]])

    assert here(*command, "--seed", 1) == 1
    assert "has measurements with other seed" in capsys.readouterr().err


def test_what_the_identity_measures_is_what_nnunet_predicts(host, model, tmp_path):
    """By the command as users type it: on the validation cases, with mirroring."""
    host.run(f"nnunet-dg stress {model} -o {tmp_path} --kinds inversion -device cpu")
    dice = pd.read_csv(tmp_path / "stress.csv").query("strength == 0").set_index("label")["dice"]
    summary = json.loads((model / "fold_0" / "validation" / "summary.json").read_text())["metric_per_case"][0]
    nnunet = [summary["metrics"][label]["Dice"] for label in ("1", "2")]
    assert dice[["box", "core"]].tolist() == pytest.approx(nnunet, nan_ok=True)


def test_reliance_is_measured_with_the_image_or_the_features_gone(here, model, tmp_path, capsys):
    assert here("stability", "reliance", model, "-o", tmp_path) == 0
    table = pd.read_csv(tmp_path / "reliance.csv")
    assert list(dict.fromkeys(table["zeroed"])) == ["nothing", "image", "features"]
    assert "Dice (%)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("stress", "MODEL", "-chk", "best.pth"), "is no trained model with best.pth"),
        (("stress", "MODEL", "-f", "3"), "folds there: 0"),
        (("stress", "MODEL", "--kinds", "gama"), "got 'gama'"),
    ],
)
def test_models_and_kinds_that_are_not_there_are_named(here, model, tmp_path, capsys, arguments, message):
    assert here(*(model if a == "MODEL" else a for a in arguments), "-o", tmp_path) == 1
    assert message in capsys.readouterr().err


def test_cases_that_are_not_there_are_named(here, model, tmp_path):
    trained = TrainedModel(model, ["0"], "checkpoint_final.pth", "cpu")
    with pytest.raises(ModelError, match="go together"):
        trained.cases(images=tmp_path)
    with pytest.raises(ModelError, match="No case with an image in"):
        trained.cases(tmp_path, tmp_path)
    with pytest.raises(ModelError, match=r"No validation cases of fold 0 .* Give -i and -t"):
        trained.cases()  # this process has no nnUNet_preprocessed


def test_noise_on_weights_is_relative_seeded_and_leaves_others_alone():
    weights = {"a": torch.full((100, 100), 3.0), "b": torch.randn(50) * 1e-3, "extractor": torch.ones(5)}
    noisy = with_noise(weights, {"a", "b"}, 0.2, 7)
    assert torch.equal(noisy["extractor"], weights["extractor"])
    assert float((noisy["a"] - 3).std()) == pytest.approx(0.6, rel=0.05)
    assert float((noisy["b"] - weights["b"]).std()) == pytest.approx(0.2e-3, rel=0.4)
    assert torch.equal(noisy["a"], with_noise(weights, {"a", "b"}, 0.2, 7)["a"])
    assert not torch.equal(noisy["a"], with_noise(weights, {"a", "b"}, 0.2, 8)["a"])
    stronger = with_noise(weights, {"a", "b"}, 0.4, 7)["a"] - 3
    assert np.allclose(stronger, 2 * (noisy["a"] - 3), atol=1e-5)
