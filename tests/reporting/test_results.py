import json
import math
import os
import re
import shutil

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_dg.cli import main
from nnunet_dg.datasets import cases as case_files
from nnunet_dg.errors import DataError, SettingsError
from nnunet_dg.reporting import results
from nnunet_dg.reporting import view as views
from nnunet_dg.reporting.results import ResultsError, read_sources
from nnunet_dg.reporting.scores import IN_DOMAIN, UNSEEN, VALIDATION
from nnunet_dg.reporting.sources import Source

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
    """A preprocessed dataset with two domains, and two validated folds of a trainer."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed"):
        monkeypatch.setattr(results, name, str(tmp_path / name))
    monkeypatch.setattr(case_files, "nnUNet_raw", str(tmp_path / "nnUNet_raw"))
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
    dataset = {"labels": labels, "regions_class_order": [2, 1], "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(dataset))
    (folder / "plans.json").write_text(json.dumps({"dataset_name": "Dataset001_X"}))
    return folder


def test_a_training_that_was_moved_is_read_with_its_own_predictions(trained, tmp_path):
    (trained / "fold_0" / "validation" / "b1.nii.gz").touch()
    moved = trained.rename(tmp_path / "first_run")
    scores = read(f"Mine={moved}")
    assert set(scores["setting"]) == {IN_DOMAIN, UNSEEN}
    files = scores.set_index("case")["prediction_file"]
    assert set(files["b1"]) == {str(moved / "fold_0" / "validation" / "b1.nii.gz")}
    assert set(files["a2"]) == {"/p/a2.nii.gz"}  # the original path


def evaluated(folder, cases, settings=SETTINGS):
    folder.mkdir()
    rows = [{"case": case, "label": "x", "dice": 0.5, "prediction_file": "", "reference_file": ""} for case in cases]
    (folder / "evaluation.json").write_text(json.dumps({"settings": settings, "cases": rows} | NO_HASHES))
    return folder


def read(*texts, **options):
    return read_sources([Source.parse(str(text)) for text in texts], **options)


def test_unseen_cases_follow_from_domains_and_splits(trained):
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


def test_cases_of_the_validation_domain_are_neither_in_domain_nor_unseen(trained, tmp_path, capsys):
    folder = evaluated(tmp_path / "predictions", ["a1", "b1"])
    scores = read(folder, domains=DOMAINS, trained_on=["B"], validation_domain="A").set_index("case")["setting"]
    assert scores.to_dict() == {"a1": VALIDATION, "b1": IN_DOMAIN}
    assert set(read(trained, validation_domain="B")["setting"]) == {VALIDATION}
    assert "fold 1 is left out. The model was trained on the validation domain 'B'" in capsys.readouterr().err
    with pytest.raises(ResultsError, match=r"a domain of validated cases, 'A', 'B'; got 'b'\. Did you mean 'B'\?"):
        read(trained, validation_domain="b")


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


def test_cases_of_a_dataset_without_domains_are_in_domain(trained, tmp_path):
    (tmp_path / "nnUNet_preprocessed" / "Dataset001_X" / "domains.json").unlink()
    assert set(read(trained)["setting"]) == {IN_DOMAIN}


def test_domains_of_the_raw_dataset_take_precedence(trained, tmp_path):
    raw = tmp_path / "nnUNet_raw" / "Dataset001_X"
    raw.mkdir(parents=True)
    (raw / "domains.json").write_text(json.dumps(dict.fromkeys(DOMAINS, "everywhere")))
    assert set(read(trained)["domain"]) == {"everywhere"}


def test_the_preprocessed_dataset_is_required(trained, monkeypatch):
    monkeypatch.setattr(results, "nnUNet_preprocessed", None)
    with pytest.raises(ResultsError, match="Set nnUNet_preprocessed as for the training"):
        read(trained)


def test_a_renamed_fold_folder_is_ignored(trained, capsys):
    shutil.copytree(trained / "fold_0", trained / "fold_0_old")
    assert set(read(trained)["fold"]) == {"0", "1"}
    assert "old" not in capsys.readouterr().err


def test_other_folds_than_asked_for_are_not_read(trained, capsys):
    assert set(read(trained, folds=["1", "7"])["fold"]) == {"1"}
    assert "has no fold 7." in capsys.readouterr().err
    with pytest.raises(ResultsError, match=r"has the folds 0, 1, but none of 7\. Name one\."):
        read(trained, folds=["7"])


def test_fold_all_is_left_out(trained, capsys):
    shutil.copytree(trained / "fold_0", trained / "fold_all")
    assert set(read(trained)["fold"]) == {"0", "1"}
    assert "fold all is left out" in capsys.readouterr().err


def test_regions_are_recognized_in_nnunets_notation(trained):
    labels = {"background": 0, "any": [1, 2], "tumor": [3], "core": 1}
    dataset = {"labels": labels, "regions_class_order": [2, 3, 1], "file_ending": ".nii.gz"}
    (trained / "dataset.json").write_text(json.dumps(dataset))
    path = trained / "fold_0" / "validation" / "summary.json"
    path.write_text(path.read_text().replace('"(1, 2)"', '"(3,)"'))
    assert set(read(trained).query("fold == '0'")["label"]) == {"core", "tumor"}


def test_an_evaluation_whose_files_have_changed_is_refused(trained, capsys):
    folder = trained / "fold_0" / "validation"
    rows = [{"case": c, "label": "x", "dice": 0.5, "prediction_file": "", "reference_file": ""} for c in ("b1", "b2")]
    content = {"settings": SETTINGS, "cases": rows, "sha256_of_truths": {"/gone": "1"}}
    content["sha256"] = {"/moved/from/summary.json": "2"}  # found by its name
    (folder / "evaluation.json").write_text(json.dumps(content))
    assert set(read(trained)["fold"]) == {"1"}
    printed = capsys.readouterr().err
    assert re.search(r"fold 0 is left out\. .*summary\.json has changed since .*evaluation\.json was written", printed)
    assert "nnunet-dg evaluate TRUTHS" in printed


def test_evaluations_with_different_tolerances_are_refused(tmp_path):
    for name, tolerance in (("a", 1.0), ("b", 3.0)):
        evaluated(tmp_path / name, ["a1"], settings=SETTINGS | {"tolerance_mm": tolerance})
    with pytest.raises(ResultsError, match="Evaluate both with the same settings"):
        read(tmp_path / "a", tmp_path / "b", domains=DOMAINS, trained_on=["A"])


def test_splits_of_another_training_are_refused(trained, tmp_path):
    splits = tmp_path / "nnUNet_preprocessed" / "Dataset001_X" / "splits_final.json"
    splits.write_text(json.dumps(SPLITS[::-1]))
    with pytest.raises(ResultsError, match=r"Fold 0 was not validated on the cases in .*splits_final.json"):
        read(trained)


def test_one_name_given_twice_is_a_repeated_training(trained):
    scores = read(f"Mine={trained}", f"Mine={trained}")
    assert set(zip(scores["trainer"], scores["run"], strict=True)) == {("Mine", 1), ("Mine", 2)}
    with pytest.raises(ResultsError, match=r"Several results are from nnUNetTrainer\. Name them as NAME=PATH"):
        read(trained, trained)


def test_evaluated_folders_need_domains_of_their_cases_and_of_the_training(tmp_path, capsys):
    folder = evaluated(tmp_path / "x", ["a1", "b1"])
    scores = read(f"Ours={folder}", domains=DOMAINS, trained_on=["A"])
    assert scores.set_index("case")["setting"].to_dict() == {"a1": IN_DOMAIN, "b1": UNSEEN}
    assert set(scores["tolerance_mm"]) == {1.0}
    for options, message in (
        ({"domains": DOMAINS}, r"\(`trained_on`\)"),
        ({"trained_on": ["A"]}, r"\(`domains`\)"),
        ({"domains": {"a1": "A"}, "trained_on": ["A"]}, "`domains` has no domain for case 'b1'"),
        ({"domains": DOMAINS, "trained_on": ["a "]}, "`trained_on` names 'a '; the domain is called 'A'"),
    ):
        with pytest.raises(ResultsError, match=message):
            read(folder, **options)
    only_unseen = read(evaluated(tmp_path / "y", ["b1"]), domains={"b1": "B"}, trained_on=["A"])
    assert set(only_unseen["setting"]) == {UNSEEN}
    assert "no case is from the domain 'A'" in capsys.readouterr().err
    read(tmp_path / "y", domains={"b1": "Siemens"}, trained_on=["Simens"])
    printed = capsys.readouterr().err
    assert "no case is from the domain 'Simens', which the model was trained on. Did you mean" in printed
    with pytest.raises(ResultsError, match=r"contains neither evaluation\.json nor summary\.json"):
        read(tmp_path, domains=DOMAINS, trained_on=["A"])


def test_a_single_folds_validation_is_refused(trained):
    with pytest.raises(ResultsError, match="is one fold's validation. Give the results folder"):  # noqa: RUF043
        read(trained / "fold_0" / "validation", domains=DOMAINS, trained_on=["A"])


def test_sources_with_the_same_name_are_one_run_unless_they_overlap(trained, tmp_path):
    inside, other = evaluated(tmp_path / "x", ["a1"]), evaluated(tmp_path / "y", ["a1", "b2"])
    scores = read(f"M={trained}", f"M={inside}", f"M={other}", domains=DOMAINS, trained_on=["A"])
    runs = scores.groupby(["fold", "case"])["run"].unique().map(list).to_dict()
    assert runs == {("0", "b1"): [1], ("0", "b2"): [1], ("1", "a2"): [1], ("1", "b2"): [1],
                    ("test", "a1"): [1, 2], ("test", "b2"): [2]}  # fmt: skip


def test_the_command_writes_a_report_and_explains_errors(trained, tmp_path, capsys):
    assert main(["report", str(trained), "-o", str(tmp_path / "report")]) == 0
    assert "60.0 ± 0.0 (2)" in capsys.readouterr().out  # unseen: (0.2 + 1) / 2
    assert (tmp_path / "report" / "report.html").is_file()
    assert main(["report", str(trained), "-f", "0", "7", "-o", str(tmp_path / "one")]) == 0
    assert "has no fold 7." in capsys.readouterr().err
    assert main(["report", str(trained), "-o", str(tmp_path / "report"), "--baseline", "Other"]) == 1
    assert "--baseline must be one of 'nnUNetTrainer'; got 'Other'" in capsys.readouterr().err
    assert main(["report", str(trained), "-o", str(tmp_path / "report"), "--metric", "nsd"]) == 1
    assert "nnunet-dg evaluate measures it" in capsys.readouterr().err
    assert main(["report", str(tmp_path / "nowhere"), "-o", str(tmp_path / "report")]) == 1
    assert "There is no folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    "truths", ["nnUNet_raw/Dataset001_X/labelsTr", "nnUNet_preprocessed/Dataset001_X/gt_segmentations"]
)
def test_images_of_the_worst_cases_are_found_in_nnunets_folders(trained, tmp_path, truths):
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


def change(path, old, new):
    path.write_text(path.read_text().replace(old, new))


def short(text):
    return ascii(text)[:12]


def bad_fold(trained, capsys):
    """The message about fold 0, which is left out."""
    assert set(read(trained)["fold"]) == {"1"}
    printed = capsys.readouterr().err
    assert "fold 0 is left out" in printed
    return printed


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"Dice": 0.2', '"Dice": 17', "metric_per_case[0].metrics.1.Dice: Input should be a number from 0 to 1"),
        ('"Dice": 0.2', '"Dice": -0.5', "a number from 0 to 1"),
        ('"Dice": 0.2', '"Dice": Infinity', "a number from 0 to 1"),
        ('"Dice": 0.2', '"Dice": "0.2"', "a valid number"),
        ('"Dice": 0.2', '"IoU": 0.2', "Dice: Field required"),
        ('/gt/b2.nii.gz', '/gt/b1.nii.gz', "has the case 'b1' twice"),
        ('"1":', '"7":', "the label '7', which is not one of"),
        ('"metric_per_case": [', '"metric_per_case": [], "x": [', "at least 1 item"),
        ('}]}', '}', "not valid JSON, or cut off"),
        ('"Dice": 0.2', '"Dice": 0.2, "Dice": 0.3', "the key 'Dice' appears more than once"),
    ],
)  # fmt: skip
def test_a_fold_with_an_invalid_summary_is_left_out_and_named(trained, capsys, old, new, message):
    change(trained / "fold_0" / "validation" / "summary.json", old, new)
    printed = bad_fold(trained, capsys)
    assert message in printed
    assert "summary.json" in printed


def test_nan_and_null_are_accepted_as_metrics(trained):
    for value in ("NaN", "null"):
        path = trained / "fold_0" / "validation" / "summary.json"
        path.write_text(re.sub('"Dice": (0.2|NaN)', f'"Dice": {value}', path.read_text()))
        assert read(trained).query("fold == '0' and label == 'core'")["dice"].isna().all()


@pytest.mark.parametrize(
    "content", ["", "null", "[]", "{}", "\0\0", "[" * 100000, '{"cases": null}', "\ufeff{}"], ids=short
)
@pytest.mark.parametrize("name", ["summary.json", "evaluation.json"])
def test_a_fold_with_invalid_json_is_left_out_and_named(trained, capsys, name, content):
    (trained / "fold_0" / "validation" / name).write_text(content, encoding="utf-8")
    assert name in bad_fold(trained, capsys)


@pytest.mark.parametrize("content", ["", "null", "[]", "{}", "\0\0", "[" * 100000, '[{"train": ["a"]}]'], ids=short)
@pytest.mark.parametrize("name", ["plans.json", "dataset.json", "splits_final.json", "domains.json"])
def test_invalid_files_that_all_folds_depend_on_are_an_error(trained, tmp_path, name, content):
    inside = trained if name in ("plans.json", "dataset.json") else tmp_path / "nnUNet_preprocessed" / "Dataset001_X"
    (inside / name).write_text(content)
    with pytest.raises(DataError, match=re.escape(name)):
        read(trained)


def test_folds_without_a_validation_are_named_with_the_command(trained, capsys):
    validation = trained / "fold_0" / "validation"
    (validation / "summary.json").unlink()
    (validation / "b1.nii.gz").touch()
    command = "nnUNetv2_train 1 3d_fullres 0 -tr nnUNetTrainer -p nnUNetPlans"
    assert f"its validation is incomplete. {command} --val validates it" in bad_fold(trained, capsys)
    shutil.rmtree(validation)
    (trained / "fold_0" / "checkpoint_final.pth").touch()
    assert f"it was trained but not validated. {command} --val validates it" in bad_fold(trained, capsys)
    (trained / "fold_0" / "checkpoint_final.pth").rename(trained / "fold_0" / "checkpoint_latest.pth")
    assert f"Its training is not finished. {command} --c resumes it" in bad_fold(trained, capsys)
    shutil.rmtree(trained / "fold_1" / "validation")
    with pytest.raises(ResultsError, match=r"(?s)fold 0 is left out.*fold 1 is left out"):
        read(trained)


def test_an_evaluation_of_fewer_cases_is_reported_and_the_others_are_counted(trained, capsys):
    rows = [{"case": "b1", "label": "x", "dice": 0.5, "prediction_file": "", "reference_file": ""}]
    content = json.dumps({"settings": SETTINGS, "cases": rows} | NO_HASHES)
    (trained / "fold_0" / "validation" / "evaluation.json").write_text(content)
    for _ in range(2):
        assert read(trained).query("fold == '0'")["case"].tolist() == ["b1"]
        printed = capsys.readouterr().err
        assert "1 of 2 validation cases of fold 0 were not evaluated, the first is 'b2'" in printed
        (trained / "fold_0" / "validation" / "summary.json").unlink(missing_ok=True)  # killed while validating


def test_cases_on_which_adaptation_chose_a_number_are_left_out_with_one_remark(trained, capsys):
    for fold, kept in ((0, "b1"), (1, "a2")):
        rows = [{"case": kept, "label": "x", "dice": 0.5, "prediction_file": "", "reference_file": ""}]
        validation = trained / f"fold_{fold}" / "validation"
        (validation / "summary.json").unlink()
        (validation / "evaluation.json").write_text(json.dumps({"settings": SETTINGS, "cases": rows} | NO_HASHES))
        others = [case for case in SPLITS[fold]["val"] if case != kept]
        record = {"method": "alpha", "validation": {"cases": others}}
        (validation / "adaptation.json").write_text(json.dumps(record))
    assert sorted(read(trained)["case"]) == ["a2", "b1"]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("alpha chose a number on in-domain validation cases, which its rows leave out.")
    (trained / "fold_1" / "validation" / "adaptation.json").write_text(json.dumps(record | {"validation": None}))
    read(trained)
    assert re.search(
        r"validation cases of fold 1 were not evaluated, the first is '\w+'\.$", capsys.readouterr().err, re.M
    )


def test_a_fold_with_a_case_in_training_and_validation_is_refused(trained, tmp_path, capsys):
    splits = tmp_path / "nnUNet_preprocessed" / "Dataset001_X" / "splits_final.json"
    splits.write_text(json.dumps([{"train": ["a1", "b1"], "val": ["b1", "b2"]}, SPLITS[1]]))
    assert "leaks: case 'b1' is in training and in validation" in bad_fold(trained, capsys)


def test_a_training_case_without_a_domain_is_named(trained, tmp_path, capsys):
    """Otherwise its domain would count as unseen."""
    domains = tmp_path / "nnUNet_preprocessed" / "Dataset001_X" / "domains.json"
    domains.write_text(json.dumps({case: domain for case, domain in DOMAINS.items() if case != "a1"}))
    with pytest.raises(ResultsError, match="no domain for the training case 'a1'"):
        read(trained)


def test_a_broken_link_to_the_domains_is_an_error(trained, tmp_path):
    domains = tmp_path / "nnUNet_preprocessed" / "Dataset001_X" / "domains.json"
    domains.unlink()
    domains.symlink_to(tmp_path / "nowhere")
    with pytest.raises(DataError, match="nowhere, which does not exist"):
        read(trained)


def test_a_validation_on_windows_is_read(trained):
    for path in trained.glob("fold_*/validation/summary.json"):
        change(path, "/gt/", r"D:\\nnUNet\\")
        change(path, "/p/", r"\\\\server\\share\\")
    (trained / "fold_0" / "validation" / "b1.nii.gz").touch()
    scores = read(trained)
    assert set(scores["case"]) == {"a2", "b1", "b2"}
    prediction = scores.set_index("case")["prediction_file"]["b1"].iloc[0]
    assert prediction == str(trained / "fold_0" / "validation" / "b1.nii.gz")


def test_a_label_that_is_a_list_of_one_number_is_named(trained):
    labels = {"background": 0, "any": [1, 2], "core": [1]}
    dataset = {"labels": labels, "regions_class_order": [2, 1], "file_ending": ".nii.gz"}
    (trained / "dataset.json").write_text(json.dumps(dataset))
    assert set(read(trained)["label"]) == {"any", "core"}


def test_only_metrics_are_read_from_an_evaluation(tmp_path):
    folder = evaluated(tmp_path / "x", ["a1", "b1"])
    path = folder / "evaluation.json"
    content = json.loads(path.read_text())
    for row in content["cases"]:
        row |= {"trainer": "Mine", "domain": "A", "setting": IN_DOMAIN, "fold": "7", "run": 9, "tolerance_mm": 99}
    path.write_text(json.dumps(content))
    scores = read(f"Ours={folder}", domains=DOMAINS, trained_on=["A"]).set_index("case")
    assert scores.loc["b1", ["trainer", "domain", "setting", "fold", "run", "tolerance_mm"]].tolist() == [
        "Ours", "B", UNSEEN, "test", 1, 1.0,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("column", "value"), [("dice", 17), ("dice", "0.5"), ("nsd", -1), ("hd95_mm", -3), ("assd_mm", math.inf)]
)
def test_an_evaluation_with_impossible_metrics_is_refused(tmp_path, column, value):
    path = evaluated(tmp_path / "x", ["a1", "b1"]) / "evaluation.json"
    content = json.loads(path.read_text())
    content["cases"][1][column] = value
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=rf"evaluation\.json: cases\[1\]\.{column}"):
        read(tmp_path / "x", domains=DOMAINS, trained_on=["A"])


def test_a_record_cannot_make_the_report_read_other_files(tmp_path):
    """Reading a pipe without a writer would block forever."""
    folder = evaluated(tmp_path / "x", ["a1"])
    pipe, other, own = tmp_path / "a1.pipe", tmp_path / "secret", tmp_path / "labels" / "a1.nii.gz"
    os.mkfifo(pipe)
    os.mkfifo(folder / "a1.nii")
    other.write_text("secret")
    own.parent.mkdir()
    own.write_text("truth")
    content = json.loads((folder / "evaluation.json").read_text())
    content["sha256"] = dict.fromkeys(map(str, (pipe, other, folder / "a1.nii", "/dev/zero", "/dev/stdin")), "1")
    content["sha256_of_truths"] = dict.fromkeys(map(str, (pipe, other, "/dev/zero")), "1")
    for prediction in (pipe, other, "/dev/zero"):
        content["cases"][0] |= {"prediction_file": str(prediction), "reference_file": str(prediction)}
        (folder / "evaluation.json").write_text(json.dumps(content))
        assert len(read(folder, domains=DOMAINS, trained_on=["A"])) == 1
    content["cases"][0] |= {"prediction_file": "", "reference_file": str(own)}
    content["sha256_of_truths"] = {str(own): "1"}
    (folder / "evaluation.json").write_text(json.dumps(content))
    with pytest.raises(ResultsError, match=r"a1\.nii\.gz has changed since"):
        read(folder, domains=DOMAINS, trained_on=["A"])


@pytest.mark.parametrize(("column", "hashes"), [("reference_file", "sha256_of_truths"), ("prediction_file", "sha256")])
def test_files_in_several_folders_are_not_hashed(tmp_path, column, hashes):
    """`evaluate` compares one folder with one other. Otherwise a record could make any file on a disk be read."""
    folder = evaluated(tmp_path / "x", ["a1", "b1"])
    content = json.loads((folder / "evaluation.json").read_text())
    for row in content["cases"]:
        path = tmp_path / f"folder_{row['case']}" / f"{row['case']}.nii.gz"
        path.parent.mkdir()
        path.write_text("changed")
        row[column] = str(path)
        content[hashes][str(path)] = "1"
    (folder / "evaluation.json").write_text(json.dumps(content))
    assert len(read(folder, domains=DOMAINS, trained_on=["A"])) == 2


def test_predictions_in_another_folder_than_the_evaluation_are_compared(tmp_path):
    folder = evaluated(tmp_path / "x", ["a1"])
    prediction = tmp_path / "predicted" / "a1.nii.gz"
    prediction.parent.mkdir()
    prediction.write_text("changed")
    content = json.loads((folder / "evaluation.json").read_text()) | {"sha256": {str(prediction): "1"}}
    content["cases"][0]["prediction_file"] = str(prediction)
    (folder / "evaluation.json").write_text(json.dumps(content))
    with pytest.raises(ResultsError, match="has changed since"):
        read(folder, domains=DOMAINS, trained_on=["A"])


def test_folds_that_are_left_out_are_named_in_the_report(trained, tmp_path, capsys):
    shutil.rmtree(trained / "fold_1" / "validation")
    assert main(["report", str(trained), "-o", str(tmp_path / "report")]) == 0
    assert "fold 1 is left out" in (tmp_path / "report" / "report.md").read_text().replace("\\", "")
    assert "fold 1 is left out" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["=x", " =x", "name="])
def test_an_empty_name_or_path_is_refused(text):
    with pytest.raises(SettingsError, match="PATH or NAME=PATH"):
        Source.parse(text)


@pytest.fixture
def pictured(trained, tmp_path):
    """The raw dataset folder, and a row of scores whose files exist."""
    folders = {
        "image": "nnUNet_raw/Dataset001_X/imagesTr/a1_0000",
        "truth": "nnUNet_raw/Dataset001_X/labelsTr/a1",
        "p": "p/a1",
    }
    for name, stem in folders.items():
        path = tmp_path / f"{stem}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        sitk.WriteImage(sitk.GetImageFromArray(np.eye(4)[None] if name == "truth" else np.ones((1, 4, 4))), path)
    raw = tmp_path / "nnUNet_raw" / "Dataset001_X"
    return raw, {
        "case": "a1", "reference_file": str(raw / "labelsTr" / "a1.nii.gz"),
        "prediction_file": str(tmp_path / "p" / "a1.nii.gz"),
    }  # fmt: skip


def test_an_image_that_cannot_be_read_is_named(pictured):
    raw, row = pictured
    (raw / "imagesTr" / "a1_0000.nii.gz").write_bytes(b"cut off")
    with pytest.raises(DataError, match=r"a1_0000\.nii\.gz cannot be read"):
        views.view(row)
    sitk.WriteImage(sitk.GetImageFromArray(np.ones((1, 5, 4))), raw / "imagesTr" / "a1_0000.nii.gz")
    with pytest.raises(DataError, match=r"has shape \(1, 4, 4\), but .*has \(1, 5, 4\)"):
        views.view(row)


def test_images_are_found_where_dataset_json_lists_them(pictured, tmp_path):
    raw, row = pictured
    archive = tmp_path / "archive" / "scan 7.nii.gz"
    archive.parent.mkdir()
    shutil.move(raw / "imagesTr" / "a1_0000.nii.gz", archive)
    listed = {"a1": {"images": ["../../archive/scan 7.nii.gz"], "label": "labelsTr/a1.nii.gz"}}
    content = {"labels": {"background": 0, "x": 1}, "file_ending": ".nii.gz", "dataset": listed}
    (raw / "dataset.json").write_text(json.dumps(content))
    assert (views.view(row).image == 1).all()
    assert case_files.images_of(raw / "labelsTr" / "a2.nii.gz", "a2", ".nii.gz") == ()


def test_without_nnunet_raw_images_are_not_searched_in_the_current_folder(pictured, tmp_path, monkeypatch):
    monkeypatch.setattr(case_files, "nnUNet_raw", None)
    monkeypatch.chdir(tmp_path / "nnUNet_raw")
    truth = tmp_path / "nnUNet_preprocessed" / "Dataset001_X" / "gt_segmentations" / "a1.nii.gz"
    assert case_files.images_of(truth, "a1", ".nii.gz") == ()
