import json
import math
import shutil

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk

from nnunet_dg.cli import main
from nnunet_dg.nnunet import evaluate as library
from nnunet_dg.nnunet.pairs import EvaluationError

LABELS = {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}


def write(path, array, spacing=(0.5, 1.0, 2.0), origin=(0.0, 0.0, 0.0)):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array.astype(np.uint8))
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    sitk.WriteImage(image, path)


@pytest.fixture
def folders(tmp_path):
    """Three cases: right, half right, and empty in both."""
    truth = np.zeros((6, 8, 8), np.uint8)
    truth[1:5, 2:6, 2:6] = 1
    truth[2:4, 3:5, 3:5] = 2
    half = truth.copy()
    half[3:] = 0
    for case, (t, p) in {"a": (truth, truth), "b": (truth, half), "c": (0 * truth, 0 * truth)}.items():
        write(tmp_path / "labelsTs" / f"{case}.nii.gz", t)
        write(tmp_path / "predicted" / f"{case}.nii.gz", p)
    content = {"labels": LABELS, "regions_class_order": [1, 2], "channel_names": {"0": "MRI"}, "file_ending": ".nii.gz"}
    (tmp_path / "predicted" / "dataset.json").write_text(json.dumps(content))
    return tmp_path / "labelsTs", tmp_path / "predicted"


def evaluate(folders, *options, processes=1):
    return main(["evaluate", *map(str, folders), "-np", str(processes), *options])


def test_cases_and_labels_are_written_with_files_and_means(folders, capsys):
    assert evaluate(folders, processes=2) == 0
    table = pd.read_csv(folders[1] / "evaluation.csv").set_index(["case", "label"])
    assert sorted(table.index) == [(case, label) for case in "abc" for label in ("core", "whole")]
    assert table.loc[("a", "whole"), "dice"] == 1
    assert table.loc[("b", "whole"), "dice"] == pytest.approx(2 * 32 / (64 + 32))  # two of four slices
    assert table.loc[("b", "core"), "dice"] == pytest.approx(2 * 4 / (8 + 4))
    assert table.loc["c"]["dice"].isna().all()  # nothing to find
    assert table.loc[("b", "whole"), "hd95_mm"] == pytest.approx(4)  # two slices of 2 mm, the third axis in SimpleITK
    content = json.loads((folders[1] / "evaluation.json").read_text())
    assert content["mean"]["whole"]["dice"] == pytest.approx((1 + 2 / 3) / 2)
    assert content["foreground_mean"]["dice"] == pytest.approx((1 + 2 / 3) / 2)
    assert content["settings"] == {"missing": "error", "tolerance_mm": 1.0, "ignore_affine": False}
    assert [row["dice"] for row in content["cases"] if row["case"] == "c"] == [None, None]
    assert content["cases"][0]["reference_file"] == str(folders[0] / "a.nii.gz")
    assert set(content["sha256_of_truths"]) == {str(folders[0] / f"{case}.nii.gz") for case in "abc"}
    assert set(content["sha256"]) == {str(folders[1] / f"{case}.nii.gz") for case in "abc"}
    printed = capsys.readouterr().out
    assert "83.3" in printed
    assert str(folders[1] / "evaluation.csv") in printed


def test_the_tolerance_is_in_millimetres(folders):
    """The rim that is missing is 4 mm high; the prediction's cut face lies within the truth, 2.4 mm from its sides."""
    for tolerance, expected in (("0.1", False), ("4", True)):
        assert evaluate(folders, "--tolerance", tolerance) == 0
        nsd = pd.read_csv(folders[1] / "evaluation.csv").set_index(["case", "label"]).loc[("b", "whole"), "nsd"]
        assert (nsd == 1) == expected


def test_the_ignore_label_does_not_count(folders):
    truth = sitk.GetArrayFromImage(sitk.ReadImage(folders[0] / "b.nii.gz"))
    truth[3:] = 3
    write(folders[0] / "b.nii.gz", truth)
    assert evaluate(folders) == 0
    table = pd.read_csv(folders[1] / "evaluation.csv").set_index(["case", "label"])
    assert table.loc["b"]["dice"].tolist() == [1, 1]


def test_a_missing_prediction_is_an_error_or_counts_as_empty_or_not(folders, capsys):
    (folders[1] / "b.nii.gz").unlink()
    assert evaluate(folders) == 1
    assert "'b' is in" in capsys.readouterr().err
    assert not (folders[1] / "evaluation.csv").exists()
    assert evaluate(folders, "--missing", "zero") == 0
    row = pd.read_csv(folders[1] / "evaluation.csv").set_index(["case", "label"]).loc[("b", "whole")]
    assert (row["dice"], row["nsd"]) == (0, 0)
    assert row["hd95_mm"] == pytest.approx(math.hypot(12, 8, 4))
    assert evaluate(folders, "--missing", "skip") == 0
    assert set(pd.read_csv(folders[1] / "evaluation.csv")["case"]) == {"a", "c"}


def test_of_a_folds_validation_the_cases_that_nnunet_validated_are_expected(folders, capsys):
    """Truths of all cases; nnU-Net's summary says which the fold has."""
    (folders[1] / "b.nii.gz").unlink()
    cases = [{"reference_file": f"elsewhere/{case}.nii.gz"} for case in "ac"]
    (folders[1] / "summary.json").write_text(json.dumps({"metric_per_case": cases}))
    assert evaluate(folders) == 0
    assert set(pd.read_csv(folders[1] / "evaluation.csv")["case"]) == {"a", "c"}
    (folders[1] / "c.nii.gz").unlink()
    assert evaluate(folders) == 1
    assert "'c' is in" in capsys.readouterr().err


def test_a_prediction_without_a_truth_is_an_error(folders, capsys):
    shutil.copy(folders[1] / "a.nii.gz", folders[1] / "z.nii.gz")
    assert evaluate(folders) == 1
    assert f"'z' is in {folders[1]} without a truth in {folders[0]}" in capsys.readouterr().err


def test_another_shape_is_named_with_both_files(folders, capsys):
    write(folders[1] / "b.nii.gz", np.zeros((6, 8, 7)))
    assert evaluate(folders, processes=2) == 1  # the message comes out of a worker
    message = capsys.readouterr().err
    assert f"{folders[1] / 'b.nii.gz'} does not fit {folders[0] / 'b.nii.gz'}" in message
    assert "(6, 8, 7)" in message


@pytest.mark.parametrize(
    ("what", "geometry"), [("origin", {"origin": (0.0, 5.0, 0.0)}), ("spacing", {"spacing": (0.5, 1.0, 2.5)})]
)
def test_another_geometry_is_an_error_unless_it_is_to_be_ignored(folders, capsys, what, geometry):
    truth = sitk.GetArrayFromImage(sitk.ReadImage(folders[0] / "a.nii.gz"))
    write(folders[1] / "a.nii.gz", truth, **geometry)
    assert evaluate(folders) == 1
    assert f"its {what} is (" in capsys.readouterr().err
    assert evaluate(folders, "--ignore-affine") == 0
    assert pd.read_csv(folders[1] / "evaluation.csv").set_index(["case", "label"]).loc[("a", "whole"), "dice"] == 1


def test_a_dataset_json_is_needed_and_found_in_the_results_folder(folders, capsys, tmp_path):
    validation = tmp_path / "results" / "fold_0" / "validation"
    shutil.copytree(folders[1], validation)
    shutil.move(validation / "dataset.json", tmp_path / "results" / "dataset.json")
    assert evaluate((folders[0], validation), "-o", str(tmp_path / "elsewhere")) == 0
    assert (tmp_path / "elsewhere" / "evaluation.csv").is_file()
    assert not (validation / "evaluation.csv").exists()
    (tmp_path / "results" / "dataset.json").unlink()
    assert evaluate((folders[0], validation)) == 1
    assert "Name it with -djfile" in capsys.readouterr().err


def test_an_unknown_policy_is_no_silent_default(folders):
    with pytest.raises(EvaluationError, match="missing must be one of error, zero, skip; got 'zeros'"):
        library.evaluate(*folders, missing="zeros", processes=1)


def test_bad_settings_are_named(folders, capsys):
    assert evaluate(folders, "--tolerance", "-1") == 1
    assert "--tolerance is in mm, 0 or more; got -1" in capsys.readouterr().err
    (folders[1] / "dataset.json").write_text('{"labels": {}}')
    assert evaluate(folders) == 1
    assert "dataset.json has no 'file_ending'" in capsys.readouterr().err
    (folders[1] / "dataset.json").write_text("{")
    assert evaluate(folders) == 1
    assert "dataset.json cannot be read" in capsys.readouterr().err


def test_an_unreadable_file_and_an_empty_folder_are_named(folders, capsys, tmp_path):
    (folders[1] / "a.nii.gz").write_bytes(b"no image")
    assert evaluate(folders) == 1
    assert "a.nii.gz" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert evaluate((folders[0], tmp_path / "empty"), "-djfile", str(folders[1] / "dataset.json")) == 1
    assert "No prediction" in capsys.readouterr().err


def test_a_folder_that_is_not_there_is_named(folders, capsys, tmp_path):
    assert evaluate((folders[0], tmp_path / "nowhere")) == 1
    assert f"There is no folder {tmp_path / 'nowhere'}" in capsys.readouterr().err
