import json
import shutil

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_dg.cli import main
from nnunet_dg.evaluation.scores import IN_DOMAIN, UNSEEN
from nnunet_dg.nnunet import results
from nnunet_dg.nnunet import view as views
from nnunet_dg.nnunet.results import ResultsError, Source, read_sources

DOMAINS = {"a1": "A", "a2": "A", "b1": "B", "b2": "B"}
SETTINGS = {"missing": "error", "tolerance_mm": 1.0, "ignore_affine": False}
NO_HASHES = {"sha256": {}, "sha256_of_truths": {}}
SPLITS = [{"train": ["a1", "a2"], "val": ["b1", "b2"]}, {"train": ["a1", "b1"], "val": ["a2", "b2"]}]


def summary(cases, dice):
    metrics = {"1": {"Dice": dice}, "(1, 2)": {"Dice": 1.0}}
    files = [{"reference_file": f"/gt/{c}.nii.gz", "prediction_file": f"/p/{c}.nii.gz"} for c in cases]
    return {"metric_per_case": [{"metrics": metrics} | f for f in files]}


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """A preprocessed dataset of two domains, and a trainer's two validated folds."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed"):
        monkeypatch.setattr(results, name, str(tmp_path / name))
    monkeypatch.setattr(views, "nnUNet_raw", str(tmp_path / "nnUNet_raw"))
    preprocessed = tmp_path / "nnUNet_preprocessed" / "Dataset001_X"
    preprocessed.mkdir(parents=True)
    (preprocessed / "domains.json").write_text(json.dumps(DOMAINS))
    (preprocessed / "splits_final.json").write_text(json.dumps(SPLITS))
    folder = tmp_path / "nnUNet_results" / "Dataset001_X" / "nnUNetTrainer__nnUNetPlans__3d_fullres"
    for fold, dice in ((0, 0.2), (1, 0.8)):
        (folder / f"fold_{fold}" / "validation").mkdir(parents=True)
        content = json.dumps(summary(SPLITS[fold]["val"], dice))
        (folder / f"fold_{fold}" / "validation" / "summary.json").write_text(content)
    labels = {"background": 0, "any": [1, 2], "core": 1}
    (folder / "dataset.json").write_text(json.dumps({"labels": labels, "file_ending": ".nii.gz"}))
    (folder / "plans.json").write_text(json.dumps({"dataset_name": "Dataset001_X"}))
    return folder


def test_a_training_that_was_moved_is_read_with_its_own_predictions(trained, tmp_path):
    (trained / "fold_0" / "validation" / "b1.nii.gz").touch()
    moved = trained.rename(tmp_path / "first_run")
    scores = read(f"Mine={moved}")
    assert set(scores["setting"]) == {IN_DOMAIN, UNSEEN}
    files = scores.set_index("case")["prediction_file"]
    assert set(files["b1"]) == {str(moved / "fold_0" / "validation" / "b1.nii.gz")}
    assert set(files["a2"]) == {"/p/a2.nii.gz"}  # where it was


def evaluated(folder, cases, settings=SETTINGS):
    folder.mkdir()
    rows = [{"case": case, "label": "x", "dice": 0.5, "prediction_file": "", "reference_file": ""} for case in cases]
    (folder / "evaluation.json").write_text(json.dumps({"settings": settings, "cases": rows} | NO_HASHES))
    return folder


def read(*texts, **options):
    return read_sources([Source.parse(str(text)) for text in texts], **options)


def test_what_is_unseen_follows_from_domains_and_splits(trained):
    scores = read(trained)
    found = {(row.fold, row.case): (row.domain, row.setting) for row in scores.itertuples()}
    assert found == {
        ("0", "b1"): ("B", UNSEEN), ("0", "b2"): ("B", UNSEEN), ("1", "a2"): ("A", IN_DOMAIN),
        ("1", "b2"): ("B", IN_DOMAIN),
    }  # fmt: skip
    assert set(scores["trainer"]) == {"nnUNetTrainer"}
    dice = scores.set_index(["fold", "case", "label"])["dice"]
    assert dice[("0", "b1", "core")] == 0.2
    assert dice[("1", "a2", "any")] == 1.0
    assert scores["hd95_mm"].isna().all()


def test_an_evaluation_of_a_validation_is_read_in_place_of_the_summary(trained):
    row = {
        "case": "b1",
        "label": "core",
        "dice": 0.5,
        "hd95_mm": 3.0,
        "prediction_file": "",
        "reference_file": "/gt/b1.nii.gz",
    }
    content = NO_HASHES | {"settings": SETTINGS, "cases": [row, row | {"case": "b2"}]}
    (trained / "fold_0" / "validation" / "evaluation.json").write_text(json.dumps(content))
    scores = read(trained)
    assert scores[scores["fold"] == "0"]["hd95_mm"].tolist() == [3, 3]


def test_a_dataset_without_domains_is_one_domain(trained, tmp_path):
    (tmp_path / "nnUNet_preprocessed" / "Dataset001_X" / "domains.json").unlink()
    assert set(read(trained)["setting"]) == {IN_DOMAIN}


def test_the_raw_datasets_domains_count(trained, tmp_path):
    raw = tmp_path / "nnUNet_raw" / "Dataset001_X"
    raw.mkdir(parents=True)
    (raw / "domains.json").write_text(json.dumps(dict.fromkeys(DOMAINS, "everywhere")))
    assert set(read(trained)["domain"]) == {"everywhere"}


def test_nothing_is_guessed_without_the_preprocessed_dataset(trained, monkeypatch):
    monkeypatch.setattr(results, "nnUNet_preprocessed", None)
    with pytest.raises(ResultsError, match="Set nnUNet_preprocessed as for the training"):
        read(trained)


def test_fold_all_is_left_out(trained, capsys):
    shutil.copytree(trained / "fold_0", trained / "fold_all")
    assert set(read(trained)["fold"]) == {"0", "1"}
    assert "fold all is left out" in capsys.readouterr().out


def test_regions_are_named_as_nnunet_writes_them(trained):
    labels = {"background": 0, "any": [1, 2], "tumour": [3], "core": 1}
    (trained / "dataset.json").write_text(json.dumps({"labels": labels, "file_ending": ".nii.gz"}))
    path = trained / "fold_0" / "validation" / "summary.json"
    path.write_text(path.read_text().replace('"(1, 2)"', '"(3,)"'))
    assert set(read(trained).query("fold == '0'")["label"]) == {"core", "tumour"}


def test_an_evaluation_of_files_that_have_changed_is_refused(trained):
    folder = trained / "fold_0" / "validation"
    content = {"settings": SETTINGS, "cases": [], "sha256_of_truths": {"/gone": "1"}}
    content["sha256"] = {"/moved/from/summary.json": "2"}  # found by its name
    (folder / "evaluation.json").write_text(json.dumps(content))
    with pytest.raises(ResultsError, match=r"summary\.json is not the file that .*evaluation\.json is of"):
        read(trained)


def test_evaluations_of_other_tolerances_are_not_put_into_one_table(tmp_path):
    for name, tolerance in (("a", 1.0), ("b", 3.0)):
        evaluated(tmp_path / name, ["a1"], settings=SETTINGS | {"tolerance_mm": tolerance})
    with pytest.raises(ResultsError, match="Evaluate both in one way"):
        read(tmp_path / "a", tmp_path / "b", domains=DOMAINS, trained_on=["A"])


def test_splits_that_are_not_the_trainings_are_refused(trained, tmp_path):
    splits = tmp_path / "nnUNet_preprocessed" / "Dataset001_X" / "splits_final.json"
    splits.write_text(json.dumps(SPLITS[::-1]))
    with pytest.raises(ResultsError, match=r"Fold 0 was not validated on the cases that .*splits_final.json names"):
        read(trained)


def test_one_name_given_twice_is_a_repeated_training(trained):
    scores = read(f"Mine={trained}", f"Mine={trained}")
    assert set(zip(scores["trainer"], scores["run"], strict=True)) == {("Mine", 1), ("Mine", 2)}
    with pytest.raises(ResultsError, match=r"Several results are of nnUNetTrainer\. Say which they are: NAME=PATH"):
        read(trained, trained)


def test_evaluated_folders_have_domains_by_case_and_by_training(tmp_path, capsys):
    folder = evaluated(tmp_path / "x", ["a1", "b1"])
    scores = read(f"Ours={folder}", domains=DOMAINS, trained_on=["A"])
    assert scores.set_index("case")["setting"].to_dict() == {"a1": IN_DOMAIN, "b1": UNSEEN}
    assert set(scores["tolerance_mm"]) == {1.0}
    for options, message in (
        ({"domains": DOMAINS}, "--trained-on DOMAIN"),
        ({"trained_on": ["A"]}, "--domains FILE"),
        ({"domains": {"a1": "A"}, "trained_on": ["A"]}, "--domains names no domain of case 'b1'"),
    ):
        with pytest.raises(ResultsError, match=message):
            read(folder, **options)
    alone = read(evaluated(tmp_path / "y", ["b1"]), domains={"b1": "B"}, trained_on=["A"])
    assert set(alone["setting"]) == {UNSEEN}
    assert "no case is of domain 'A'" in capsys.readouterr().out
    with pytest.raises(ResultsError, match="holds neither evaluation.json nor summary.json"):  # noqa: RUF043
        read(tmp_path, domains=DOMAINS, trained_on=["A"])


def test_a_fold_given_for_itself_is_refused(trained):
    with pytest.raises(ResultsError, match="is one fold's validation. Give the results folder"):  # noqa: RUF043
        read(trained / "fold_0" / "validation", domains=DOMAINS, trained_on=["A"])


def test_parts_of_one_name_are_one_run_unless_they_overlap(trained, tmp_path):
    inside, other = evaluated(tmp_path / "x", ["a1"]), evaluated(tmp_path / "y", ["a1", "b2"])
    scores = read(f"M={trained}", f"M={inside}", f"M={other}", domains=DOMAINS, trained_on=["A"])
    runs = scores.groupby(["fold", "case"])["run"].unique().map(list).to_dict()
    assert runs == {("0", "b1"): [1], ("0", "b2"): [1], ("1", "a2"): [1], ("1", "b2"): [1],
                    ("test", "a1"): [1, 2], ("test", "b2"): [2]}  # fmt: skip


def test_the_command_writes_a_report_and_names_what_is_wrong(trained, tmp_path, capsys):
    assert main(["report", str(trained), "-o", str(tmp_path / "report")]) == 0
    assert "60.0 ± 0.0 (2)" in capsys.readouterr().out  # unseen: (0.2 + 1) / 2
    assert (tmp_path / "report" / "report.html").is_file()
    assert main(["report", str(trained), "-o", str(tmp_path / "report"), "--baseline", "Other"]) == 1
    assert "--baseline must be one of nnUNetTrainer; got 'Other'" in capsys.readouterr().err
    assert main(["report", str(trained), "-o", str(tmp_path / "report"), "--metric", "nsd"]) == 1
    assert "nnunet-dg evaluate measures it" in capsys.readouterr().err
    assert main(["report", str(tmp_path / "nowhere"), "-o", str(tmp_path / "report")]) == 1
    assert "There is no folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    "truths", ["nnUNet_raw/Dataset001_X/labelsTr", "nnUNet_preprocessed/Dataset001_X/gt_segmentations"]
)
def test_images_of_the_worst_cases_are_found_where_nnunet_has_them(trained, tmp_path, truths):
    arrays = {
        truths: np.eye(4)[None],
        "nnUNet_raw/Dataset001_X/imagesTr": 7 * np.ones((1, 4, 4)),
        "p": np.zeros((1, 4, 4)),
    }
    for folder, array in arrays.items():
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        name = "a1_0000.nii.gz" if "images" in folder else "a1.nii.gz"
        sitk.WriteImage(sitk.GetImageFromArray(array), tmp_path / folder / name)
    row = {
        "case": "a1",
        "reference_file": str(tmp_path / truths / "a1.nii.gz"),
        "prediction_file": str(tmp_path / "p" / "a1.nii.gz"),
    }
    view = views.view(row)
    assert (view.image == 7).all()
    assert view.labels == {1: "label 1"}
    assert view.image.shape == (1, 1, 4, 4)
    assert view.truth.sum() == 4
    assert view.prediction.sum() == 0
    assert views.view(row | {"prediction_file": ""}) is None
