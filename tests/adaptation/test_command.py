"""The command ``nnunet-dg predict`` with tiny models, on real files."""

import hashlib
import json
import shutil

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from helpers import set_nnunets_folders
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from tiny_model import DATASET, DATASET_JSON, change_checkpoint, planar, plans, write_cases, write_trained

from nnunet_dg.adaptation.boosting import boosted
from nnunet_dg.cli import main

HEAD = "decoder.seg_layers.0.weight"
NAMES = {"--validation-domain": "A", "--target-domain": "B"}
REGIONS = DATASET_JSON | {"labels": {"background": 0, "box": [1, 2], "core": 2}, "regions_class_order": [1, 2]}
IGNORE = DATASET_JSON | {"labels": DATASET_JSON["labels"] | {"ignore": 3}}


def scattered(folder, folds=(0,)):
    """Make the random network's predictions depend on the image: its last layer separates the labels."""

    def change(checkpoint):
        head = checkpoint["network_weights"][HEAD]
        head.mul_(20).add_(torch.randn(head.shape, generator=torch.Generator().manual_seed(0)))

    for fold in folds:
        change_checkpoint(folder, change, fold)
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Two models with two folds, images of two cases to predict, and images and truths of two others."""
    folder = tmp_path_factory.mktemp("adapt")
    cases = write_cases(folder / "all", ("a", "b", "c", "d"))
    for name, kept in (("target", "ab"), ("validation", "cd")):
        for part, source in zip(("images", "truths"), cases, strict=True):
            (folder / name / part).mkdir(parents=True)
            for path in source.iterdir():
                if path.name[0] in kept:
                    shutil.copy(path, folder / name / part / path.name)
    for name in ("unstable", "stable"):
        scattered(write_trained(folder / name, folds=(0, 1)), (0, 1)).rename(folder / f"{name}_model")
        shutil.rmtree(folder / name)
    change_checkpoint(folder / "stable_model", lambda c: c["network_weights"][HEAD].neg_())
    return folder


def run(tiny, output, method, *options, model="unstable_model", folds=(0,), two=None, named=NAMES):
    """Run the command in this process; returns its exit status."""
    where = ["-i", tiny / "target" / "images", "-o", output, "-m", tiny / model, "-f", *folds, "-device", "cpu"]
    if method != "tent" if two is None else two:
        labeled = tiny / "validation"
        where += ["--stable", tiny / "stable_model", "--validation-images", labeled / "images"]
        where += ["--validation-truths", labeled / "truths", *(word for pair in named.items() for word in pair)]
    return main([str(word) for word in ("predict", "--adapt", method, *where, "--disable_tta", *options)])


def read(folder):
    return {path.name: sitk.GetArrayFromImage(sitk.ReadImage(path)) for path in sorted(folder.glob("*.nii.gz"))}


def record(folder):
    return json.loads((folder / "adaptation.json").read_text())


def hashes(folder):
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.rglob("*")) if path.is_file()}


def plain(folder, images, folds=(0,), step=0.5, probabilities=False):
    """Predictions of nnU-Net's own predictor; with probabilities, a pair for each image."""
    predictor = nnUNetPredictor(step, use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(folder), folds)
    result = {}
    for path in sorted(images.iterdir()):
        image, properties = predictor.plans_manager.image_reader_writer_class().read_images([str(path)])
        result[path.name.replace("_0000", "")] = predictor.predict_single_npy_array(
            image, properties, save_or_return_probabilities=probabilities
        )
    return result


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def test_tent_without_steps_predicts_as_nnunet_does_with_an_ensemble(tiny, tmp_path):
    assert run(tiny, tmp_path, "tent", "--steps", 0, folds=(0, 1)) == 0
    assert same(read(tmp_path), plain(tiny / "unstable_model", tiny / "target" / "images", (0, 1)))


def test_the_step_of_the_sliding_window_is_nnunets(tiny, tmp_path):
    assert run(tiny, tmp_path, "tent", "--steps", 0, "-step_size", 0.25) == 0
    small, usual = (plain(tiny / "unstable_model", tiny / "target" / "images", step=step) for step in (0.25, 0.5))
    assert same(read(tmp_path), small)
    assert not same(small, usual)


def logits(folder, images):
    """Log-probabilities of nnU-Net's own predictor, which are its logits up to a number per voxel."""
    found = plain(folder, images, probabilities=True)
    return {name: torch.from_numpy(pair[1]).double().log() for name, pair in found.items()}


def test_alpha_is_the_share_of_the_unstable_model(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("nnunet_dg.adaptation.predict.best", lambda scores: 0.3)
    assert run(tiny, tmp_path, "alpha") == 0
    stable, unstable = (logits(tiny / f"{role}_model", tiny / "target" / "images") for role in ("stable", "unstable"))
    for name, predicted in read(tmp_path).items():
        mixed = (0.7 * stable[name] + 0.3 * unstable[name]).argmax(0).numpy()
        assert (predicted == mixed).mean() > 0.999  # up to ties in half precision
        assert (predicted == (0.3 * stable[name] + 0.7 * unstable[name]).argmax(0).numpy()).mean() < 0.99


def test_sfb_without_steps_joins_the_calibrated_stable_and_the_unstable_model(tiny, tmp_path):
    assert run(tiny, tmp_path, "sfb", "--rounds", 1, "--steps", 0, "--save_probabilities") == 0
    found = record(tmp_path)["chosen"]["temperature"]
    stable, unstable = (logits(tiny / f"{role}_model", tiny / "target" / "images") for role in ("stable", "unstable"))
    for name in stable:
        joint, _ = boosted(stable[name], unstable[name], stable[name] / found, found)
        written = np.load(tmp_path / name.replace(".nii.gz", ".npz"))["probabilities"]
        near = np.abs(written - joint.float().softmax(0).numpy()) < 5e-3
        assert near.mean() > 0.999  # probabilities that are 0 have no logits


def test_the_temperature_calibrates_the_stable_model_with_equal_weight_for_each_label(tiny, tmp_path, monkeypatch):
    """On all voxels that have a label: in some slices, it is the ignore label."""
    monkeypatch.setattr("nnunet_dg.adaptation.validation.PER_LABEL", 10**6)
    for part in ("target", "validation"):
        shutil.copytree(tiny / part, tmp_path / part)
    for role in ("unstable", "stable"):
        model = scattered(write_trained(tmp_path / role, dataset_json=IGNORE)).rename(tmp_path / f"{role}_model")
        change_checkpoint(model, lambda c, s=(role == "stable"): c["network_weights"][HEAD].mul_(0.3 if s else 1))
    labels = plain(tmp_path / "stable_model", tmp_path / "validation" / "images")
    change_truths(tmp_path / "validation" / "truths", lambda name, _: mostly(labels[name]))
    change_truths(tmp_path / "validation" / "truths", first_slices_ignored)
    assert run(tmp_path, tmp_path / "out", "sfb", "--rounds", 1, "--steps", 0) == 0
    found = record(tmp_path / "out")["chosen"]["temperature"]
    predicted, truths = (
        logits(tmp_path / "stable_model", tmp_path / "validation" / "images"), read(tmp_path / "validation" / "truths")
    )  # fmt: skip
    rows = torch.cat([x.flatten(1).T for x in predicted.values()])
    target = torch.from_numpy(np.concatenate([truths[name].ravel() for name in predicted])).long()
    rows, target = rows[target != 3], target[target != 3]

    def loss(temperature):
        losses = torch.nn.functional.cross_entropy(rows / temperature, target, reduction="none")
        return sum(losses[target == label].mean() for label in (0, 1, 2)).item()

    assert 0.06 < found < 19
    assert loss(found) <= min(loss(found * 1.02), loss(found / 1.02))


@pytest.mark.parametrize("method", ["tent", "sfb"])
def test_a_seed_gives_the_same_predictions_and_models_on_disk_never_change(tiny, tmp_path, method, capsys):
    before = hashes(tiny)
    options = ("--steps", 2, "--rate", 0.5 if method == "tent" else 0.01, "--save_probabilities")
    for name, seed in (("first", 0), ("second", 0), ("other", 1)):
        assert run(tiny, tmp_path / name, method, *options, "--seed", seed) == 0
    assert hashes(tiny) == before
    probabilities = [np.load(tmp_path / name / "a.npz")["probabilities"] for name in ("first", "second", "other")]
    assert np.array_equal(probabilities[0], probabilities[1])
    assert not np.array_equal(probabilities[0], probabilities[2])
    assert same(read(tmp_path / "first"), read(tmp_path / "second"))
    assert not same(read(tmp_path / "first"), plain(tiny / "unstable_model", tiny / "target" / "images"))
    assert record(tmp_path / "first")["cases"] == record(tmp_path / "second")["cases"]
    assert f"Written: 2 predictions and {tmp_path / 'other' / 'adaptation.json'}" in capsys.readouterr().out


def test_the_record_says_what_was_adapted_and_how(tiny, tmp_path):
    assert run(tiny, tmp_path, "sfb", "--rounds", 2, "--steps", 1, "--rate", 0.01) == 0
    written = record(tmp_path)
    assert written["method"] == "sfb"
    assert written["settings"] == {"rounds": 2, "steps": 1, "rate": 0.01}
    assert written["models"].keys() == {"unstable", "stable"}
    for role, model in written["models"].items():
        checkpoint = tiny / f"{role}_model" / "fold_0" / "checkpoint_final.pth"
        assert model["sha256"] == {"fold_0/checkpoint_final.pth": hashlib.sha256(checkpoint.read_bytes()).hexdigest()}
    validation = written["validation"]
    assert (validation["domains"], validation["target_domains"], validation["cases"]) == (["A"], ["B"], ["c", "d"])
    assert 0.05 <= written["chosen"]["temperature"] <= 20
    assert written["prediction"]["seed"] == 0
    assert "encoder.stages.0.0.convs.0.conv.weight" in written["adapted"]["tensors"]
    assert written["cases"].keys() == {"a", "b"}
    for notes in written["cases"].values():
        assert len(notes["divergence_of_crops"]) == 2
    for name in ("dataset.json", "plans.json"):
        assert json.loads((tmp_path / name).read_text()) == json.loads((tiny / "unstable_model" / name).read_text())


def test_alpha_is_the_best_on_the_validation_set(tiny, tmp_path, capsys):
    """A stable model that predicts the truth of no case, so that alpha is 1 or what is as good."""
    assert run(tiny, tmp_path, "alpha", folds=(0, 1)) == 0
    chosen = record(tmp_path)["chosen"]
    scores = {float(alpha): dice for alpha, dice in chosen["validation_dice"].items()}
    assert len(scores) == 11
    assert chosen["alpha"] == min(alpha for alpha, dice in scores.items() if dice == max(scores.values()))
    assert f"alpha, chosen on the validation set: {chosen['alpha']:g}" in capsys.readouterr().out
    truths = read(tiny / "validation" / "truths")
    for role, alpha in (("stable", 0), ("unstable", 1)):
        dice = []
        for name, prediction in plain(tiny / f"{role}_model", tiny / "validation" / "images", (0, 1)).items():
            for label in (1, 2):
                masks = prediction == label, truths[name] == label
                dice.append(2 * (masks[0] & masks[1]).sum() / (masks[0].sum() + masks[1].sum()))
        assert scores[alpha] == pytest.approx(np.mean(dice))


def test_numbers_are_not_chosen_on_the_target_domain(tiny, tmp_path, capsys):
    for method in ("sfb", "alpha"):
        for named, message in (
            ({"--validation-domain": "A", "--target-domain": "A"}, "share the domain 'A'"),
            ({"--target-domain": "A"}, "domain of the validation cases is not known"),
            ({"--validation-domain": "A"}, "Name it: --target-domain"),
        ):  # fmt: skip
            assert run(tiny, tmp_path / "out", method, named=named) == 1
            assert message in capsys.readouterr().err
    everything = {"--validation-images": tiny / "all" / "images", "--validation-truths": tiny / "all" / "truths"}
    assert run(tiny, tmp_path / "out", "alpha", named=NAMES | everything) == 1
    assert "The validation case a is the image a that is to be predicted" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    same_domain = {"--validation-domain": "A", "--target-domain": "A"} | everything
    assert run(tiny, tmp_path / "out", "alpha", "--allow-target-domain", named=same_domain) == 0
    assert record(tmp_path / "out")["validation"]["target_allowed"]


def test_domains_json_names_the_domains(tiny, tmp_path, monkeypatch, capsys):
    set_nnunets_folders(monkeypatch, tmp_path)
    raw = tmp_path / "nnUNet_raw" / DATASET
    raw.mkdir(parents=True)
    for domains, status in (
        ({"a": "X", "b": "Y", "c": "Z", "d": "Z"}, 0),
        ({"a": "X", "b": "Y", "c": "X", "d": "Z"}, 1),
    ):
        (raw / "domains.json").write_text(json.dumps(domains))
        assert run(tiny, tmp_path / "out", "alpha", named={}) == status
    assert "share the domain 'X'" in capsys.readouterr().err
    (raw / "domains.json").write_text(json.dumps({"a": "X", "b": "X", "c": "Z", "d": "Z"}))
    for named, message in (
        ({"--target-domain": "Y"}, "--target-domain is 'Y', but domains.json says that a is from 'X'. Correct one"),
        ({"--validation-domain": "X"}, "--validation-domain is 'X', but domains.json says that c is from 'Z'."),
    ):
        assert run(tiny, tmp_path / "refused", "alpha", named=named) == 1
        assert message in capsys.readouterr().err
    (raw / "domains.json").write_text(json.dumps({"c": "Site 1", "d": "Site 1"}))
    assert run(tiny, tmp_path / "refused", "alpha", named={"--target-domain": "site-1"}) == 1
    assert "--target-domain names 'site-1'; in domains.json the domain is called 'Site 1'." in capsys.readouterr().err
    assert run(tiny, tmp_path / "new", "alpha", named={"--target-domain": "Site 2"}) == 0
    assert record(tmp_path / "out")["validation"]["target_domains"] == ["X", "Y"]


def change_truths(truths, change):
    for path in truths.iterdir():
        truth = sitk.ReadImage(path)
        changed = sitk.GetImageFromArray(change(path.name, sitk.GetArrayFromImage(truth)))
        changed.CopyInformation(truth)
        sitk.WriteImage(changed, path)


def first_slices_ignored(name, array):
    array[:4] = 3
    return array


def mostly(array):
    """The labels, of which another part of each is replaced by the next one."""
    changed = np.random.default_rng(0).random(array.shape) < np.array([0.5, 0.05, 0.3])[array]
    return np.where(changed, (array + 1) % 3, array).astype(np.uint8)


@pytest.mark.parametrize("method", ["tent", "sfb", "alpha"])
@pytest.mark.parametrize("kind", ["regions", "ignore", "2d"])
def test_regions_ignore_label_and_slices(tmp_path, tiny, method, kind):
    labels = {"regions": REGIONS, "ignore": IGNORE}.get(kind, DATASET_JSON)
    folder = tmp_path / "models"
    for part in ("target", "validation"):
        shutil.copytree(tiny / part, folder / part)
    for role in ("unstable", "stable"):
        content = planar(plans()) if kind == "2d" else plans()
        scattered(write_trained(folder / role, content=content, dataset_json=labels)).rename(folder / f"{role}_model")
    if kind == "ignore":
        change_truths(folder / "validation" / "truths", first_slices_ignored)
    steps = () if method == "alpha" else ("--steps", 1)
    assert run(folder, tmp_path / "out", method, *steps) == 0
    predicted = read(tmp_path / "out")
    assert predicted.keys() == {"a.nii.gz", "b.nii.gz"}
    assert all(array.shape == (20, 24, 20) and set(np.unique(array)) <= {0, 1, 2} for array in predicted.values())


def test_an_exported_model_adapts(tiny, tmp_path, monkeypatch):
    set_nnunets_folders(monkeypatch, tmp_path)
    scattered(write_trained(tmp_path / "nnUNet_results", "nnUNetTrainerSgCG"))
    model = ["-d", DATASET, "-c", "3d_fullres", "-tr", "nnUNetTrainerSgCG", "-f", "0"]
    (tmp_path / "nnUNet_raw" / DATASET).mkdir(parents=True)
    assert main(["export", *model, "-o", str(tmp_path / "exported")]) == 0
    common = ["predict", "--adapt", "tent", "-i", str(tiny / "target" / "images"), "-device", "cpu", "--steps", "1"]
    exported = ["-m", str(tmp_path / "exported"), "-f", "0"]
    for name, source in (("exported", exported), ("original", model)):
        assert main([*common, *source, "--rate", "0.5", "-o", str(tmp_path / f"by_{name}")]) == 0
    assert same(read(tmp_path / "by_exported"), read(tmp_path / "by_original"))
    assert record(tmp_path / "by_exported")["models"]["adapted"]["trainer"] == "nnUNetTrainer"


def test_a_prediction_resumes_with_the_same_options_only(tiny, tmp_path, capsys):
    options = ("--steps", 1, "--rate", 0.5)
    assert run(tiny, tmp_path / "whole", "tent", *options) == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "part")
    (tmp_path / "part" / "b.nii.gz").unlink()
    kept = (tmp_path / "part" / "a.nii.gz").stat().st_mtime_ns
    assert run(tiny, tmp_path / "part", "tent", *options, "--continue_prediction") == 0
    assert (tmp_path / "part" / "a.nii.gz").stat().st_mtime_ns == kept
    assert same(read(tmp_path / "part"), read(tmp_path / "whole"))
    part, whole = record(tmp_path / "part"), record(tmp_path / "whole")
    times = [written.pop("seconds") for written in (part, whole)]  # measured, so that b's differ
    assert part == whole
    assert times[0]["a"] == times[1]["a"]
    assert times[0].keys() == times[1].keys() == {"a", "b"}
    assert all(0 < seconds < 600 for seconds in times[0].values())
    assert run(tiny, tmp_path / "part", "tent", "--steps", 2, "--continue_prediction") == 1
    assert "is about predictions with other settings" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("tent", ["--rounds", "2"], "--adapt tent does not use --rounds"),
        ("tent", ["--stable", "x"], "--adapt tent does not use --stable"),
        ("alpha", ["--steps", "2"], "--adapt alpha does not use --steps"),
        ("sfb", ["--statistics", "source"], "--adapt sfb does not use --statistics"),
        ("tent", ["--steps", "-1"], "--steps must be a whole number"),
        ("tent", ["--rate", "nan"], "--rate must be a number"),
        ("tent", ["--rate", "900", "--steps", "50"], "Use a smaller --rate or fewer --steps"),
        ("tent", ["--statistics", "source"], "--statistics 'source' needs batch norm"),
        ("tent", ["-step_size", "0"], "-step_size must be in (0, 1]"),
        ("tent", ["-d", "701"], "-m names the model already, and so does -d"),
        ("tent", ["-f", "3"], "its folds: 0, 1"),
        ("tent", ["-i", "nowhere"], "There is no folder nowhere"),
        ("sfb", ["-f", "0", "1"], "has 2 folds. Choose one of the -f"),
    ],
)  # fmt: skip
def test_what_is_not_accepted_is_one_line(tiny, tmp_path, capsys, method, options, message):
    assert run(tiny, tmp_path, method, *options) == 1
    lines = [line for line in capsys.readouterr().err.replace("\r", "\n").splitlines() if line.strip()]
    assert lines[-1].startswith("nnunet-dg: ")
    assert message in lines[-1]


def test_models_of_other_data_and_second_stages_are_refused(tiny, tmp_path, capsys):
    other = tmp_path / "stable"
    shutil.copytree(tiny / "stable_model", other)
    content = json.loads((other / "plans.json").read_text())
    content["configurations"]["3d_fullres"]["spacing"] = [2.0, 1.0, 1.0]
    (other / "plans.json").write_text(json.dumps(content))
    assert run(tiny, tmp_path / "out", "alpha", "--stable", other) == 1
    assert "but spacing is [2.0, 1.0, 1.0] in" in capsys.readouterr().err
    assert run(tiny, tmp_path / "out", "alpha", "-m", tiny / "target") == 1
    assert "is not a trained model" in capsys.readouterr().err
    content["configurations"]["3d_fullres"] |= {"previous_stage": "3d_lowres"}
    (other / "plans.json").write_text(json.dumps(content))
    assert run(tiny, tmp_path / "out", "tent", "-m", other) == 1
    assert not (tmp_path / "out").exists()
