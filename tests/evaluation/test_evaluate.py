import json
import math
import os
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
import tifffile
from failing import fail

from nnunet_dg.cli import main
from nnunet_dg.evaluation import evaluate as library
from nnunet_dg.evaluation.pairs import EvaluationError

LABELS = {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}
DATASET = {"labels": LABELS, "regions_class_order": [1, 2], "channel_names": {"0": "MRI"}, "file_ending": ".nii.gz"}


def write(path, array, spacing=(0.5, 1.0, 2.0), origin=(0.0, 0.0, 0.0)):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array.astype(np.uint8))
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    sitk.WriteImage(image, path)


@pytest.fixture
def folders(tmp_path):
    """Three cases: a correct one, a half correct one, and one that is empty in both folders."""
    truth = np.zeros((6, 8, 8), np.uint8)
    truth[1:5, 2:6, 2:6] = 1
    truth[2:4, 3:5, 3:5] = 2
    half = truth.copy()
    half[3:] = 0
    for case, (t, p) in {"a": (truth, truth), "b": (truth, half), "c": (0 * truth, 0 * truth)}.items():
        write(tmp_path / "labelsTs" / f"{case}.nii.gz", t)
        write(tmp_path / "predicted" / f"{case}.nii.gz", p)
    (tmp_path / "predicted" / "dataset.json").write_text(json.dumps(DATASET))
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
    assert table.loc["c"]["dice"].isna().all()  # both masks are empty
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


def test_the_tolerance_is_in_millimeters(folders):
    """The missing part is 4 mm high; the prediction's cut face is inside the truth, 2.4 mm from its sides."""
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


def test_a_missing_prediction_is_an_error_or_empty_or_skipped(folders, capsys):
    (folders[1] / "b.nii.gz").unlink()
    assert evaluate(folders) == 1
    printed = capsys.readouterr().err
    assert "'b' is in" in printed
    assert "set --missing to zero" in printed
    assert not (folders[1] / "evaluation.csv").exists()
    assert evaluate(folders, "--missing", "zero") == 0
    row = pd.read_csv(folders[1] / "evaluation.csv").set_index(["case", "label"]).loc[("b", "whole")]
    assert (row["dice"], row["nsd"]) == (0, 0)
    assert row["hd95_mm"] == pytest.approx(math.hypot(12, 8, 4))
    assert evaluate(folders, "--missing", "skip") == 0
    assert set(pd.read_csv(folders[1] / "evaluation.csv")["case"]) == {"a", "c"}


def summary(prefix, cases):
    """The part of a validation's summary.json that this package reads."""
    files = [{"reference_file": f"{prefix}{c}.nii.gz", "prediction_file": f"{prefix}{c}.nii.gz"} for c in cases]
    return {"metric_per_case": [case | {"metrics": {"1": {"Dice": 0.5}}} for case in files]}


def test_in_a_folds_validation_the_cases_in_nnunets_summary_are_expected(folders, capsys):
    """The folder of truths has the cases of all folds."""
    (folders[1] / "b.nii.gz").unlink()
    for prefix in ("/elsewhere/", "C:\\data\\labelsTr\\", "C:/data\\", "\\\\server\\share\\", "results\\"):
        (folders[1] / "summary.json").write_text(json.dumps(summary(prefix, "ac")))
        assert evaluate(folders) == 0
        assert set(pd.read_csv(folders[1] / "evaluation.csv")["case"]) == {"a", "c"}
    (folders[1] / "c.nii.gz").unlink()
    assert evaluate(folders) == 1
    assert "'c' is in" in capsys.readouterr().err


def test_a_prediction_without_a_truth_is_an_error(folders, capsys):
    shutil.copy(folders[1] / "a.nii.gz", folders[1] / "z.nii.gz")
    assert evaluate(folders) == 1
    assert f"'z' is in {folders[1]} without a truth in {folders[0]}" in capsys.readouterr().err


def test_different_shapes_are_named_with_both_files(folders, capsys):
    write(folders[1] / "b.nii.gz", np.zeros((6, 8, 7)))
    assert evaluate(folders) == 1
    message = capsys.readouterr().err
    assert f"{folders[1] / 'b.nii.gz'} and {folders[0] / 'b.nii.gz'} have different shapes" in message
    assert "(6, 8, 7)" in message


@pytest.mark.parametrize(
    ("what", "geometry"), [("origin", {"origin": (0.0, 5.0, 0.0)}), ("spacing", {"spacing": (0.5, 1.0, 2.5)})]
)
def test_different_geometries_are_an_error_unless_ignored(folders, capsys, what, geometry):
    truth = sitk.GetArrayFromImage(sitk.ReadImage(folders[0] / "a.nii.gz"))
    write(folders[1] / "a.nii.gz", truth, **geometry)
    assert evaluate(folders) == 1
    printed = capsys.readouterr().err
    assert f"a.nii.gz have different positions in space: its {what} is (" in printed
    assert "voxel by voxel with --ignore-affine" in printed
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
    assert "Give it as -djfile" in capsys.readouterr().err


def test_an_unknown_policy_for_missing_predictions_is_refused(folders):
    with pytest.raises(EvaluationError, match="`missing` must be one of error, zero, skip; got 'zeros'"):
        library.evaluate(*folders, missing="zeros", processes=1)


@pytest.mark.parametrize("tolerance", ["-1", "inf", "nan", "-inf"])
def test_a_tolerance_must_be_a_number_of_millimeters(folders, capsys, tolerance):
    assert evaluate(folders, f"--tolerance={tolerance}") == 1
    assert f"--tolerance must be a number of mm, 0 or more; got {tolerance}" in capsys.readouterr().err


OTHER_SHAPES = [
    b"", b"[]", b"null", b"3", b'"x"', b"{}", b"{", b"[[[", b"\0" * 99, bytes(range(256)), b"[" * 10**5,
    b"\xff\xfe{\0}\0",
    '{"labels": {"\xfc": 1}}'.encode("latin-1"), b'{"a": 1, "a": 2}', b'{"labels": 1' + b"0" * 5000 + b"}",
]  # fmt: skip
DATASETS = [
    *OTHER_SHAPES, b'{"labels": {}}', *(json.dumps(DATASET | change).encode() for change in [
        {"labels": None}, {"labels": {}}, {"labels": [0, 1]}, {"labels": {"background": 0}}, {"labels": {"x": 1}},
        {"labels": {"0": "background", "1": "x"}},
        {"labels": {"background": 0, "x": [1, 2]}, "regions_class_order": None},
        {"labels": {"background": 0, "x": 10**50}}, {"labels": {"background": 0, "x": 1e400}},
        {"labels": {"background": 0, "x": {"y": 1}}}, {"labels": {"background": 0, "\ud800": 1}},
        {"file_ending": None}, {"file_ending": ""}, {"file_ending": "/"}, {"file_ending": "../x"}, {"file_ending": 3},
        {"regions_class_order": 3}, {"overwrite_image_reader_writer": [1]},
    ]),
]  # fmt: skip
SUMMARIES = [
    *OTHER_SHAPES, *(json.dumps({"metric_per_case": cases}).encode() for cases in [
        None, {}, [None], [{}], [[]], [{"reference_file": 1}], [{"reference_file": "a", "prediction_file": "b"}],
        [{"reference_file": "a", "prediction_file": "b", "metrics": {"1": None}}],
    ]),
]  # fmt: skip


@pytest.mark.parametrize("name", ["dataset.json", "summary.json"])
def test_errors_about_invalid_json_are_one_line_with_the_file(folders, capsys, name):
    for content in DATASETS if name == "dataset.json" else SUMMARIES:
        (folders[1] / name).write_bytes(content)
        assert evaluate(folders) == 1, content[:99]
        printed = capsys.readouterr().err
        assert printed.startswith("nnunet-dg: "), content[:99]
        assert str(folders[1] / name) in printed, content[:99]
        assert len(printed.splitlines()) == 1, content[:99]
        assert not (folders[1] / "evaluation.json").exists()


@pytest.mark.parametrize("name", ["dataset.json", "summary.json"])
def test_json_files_that_exist_but_cannot_be_read_are_an_error(folders, capsys, name):
    path = folders[1] / name
    for make in (path.mkdir, lambda: path.symlink_to("nowhere"), lambda: os.mkfifo(path)):
        path.unlink(missing_ok=True)
        make()
        assert evaluate(folders) == 1
        assert str(path) in capsys.readouterr().err
        if not path.is_symlink() and path.is_dir():
            path.rmdir()
    assert evaluate(folders, "-djfile", str(folders[0] / "nothing.json")) == 1
    assert f"There is no file {folders[0] / 'nothing.json'}" in capsys.readouterr().err


def test_an_unreadable_file_and_an_empty_folder_are_named(folders, capsys, tmp_path):
    (folders[1] / "a.nii.gz").write_bytes(b"no image")
    assert evaluate(folders) == 1
    assert "a.nii.gz" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert evaluate((folders[0], tmp_path / "empty"), "-djfile", str(folders[1] / "dataset.json")) == 1
    assert "No prediction" in capsys.readouterr().err


def test_a_missing_folder_is_named(folders, capsys, tmp_path):
    assert evaluate((folders[0], tmp_path / "nowhere")) == 1
    assert f"There is no folder {tmp_path / 'nowhere'}" in capsys.readouterr().err


@pytest.mark.parametrize("processes", [1, 2])
def test_all_failed_cases_are_named_one_per_line_and_nothing_is_written(folders, capsys, processes):
    whole = (folders[0] / "a.nii.gz").read_bytes()
    (folders[0] / "a.nii.gz").write_bytes(whole[:-20])
    write(folders[1] / "c.nii.gz", np.full((6, 8, 8), 255))
    assert evaluate(folders, processes=processes) == 1
    lines = [line for line in capsys.readouterr().err.replace("\r", "\n").splitlines() if line.strip()]
    heading = f"nnunet-dg: 2 of 3 cases cannot be evaluated with {folders[1] / 'dataset.json'}:"
    ours = lines[lines.index(heading) :]  # below the progress bar
    assert len(ours) == 3
    assert ours[1].startswith(f"{folders[0] / 'a.nii.gz'} is damaged or was cut off")
    assert ours[2].startswith(f"{folders[1] / 'c.nii.gz'} has 384 voxels of value 255")
    assert sorted(os.listdir(folders[1])) == ["a.nii.gz", "b.nii.gz", "c.nii.gz", "dataset.json"]


def test_an_earlier_evaluation_is_kept_if_a_later_one_fails(folders):
    assert evaluate(folders) == 0
    before = {name: (folders[1] / name).read_bytes() for name in ("evaluation.csv", "evaluation.json")}
    (folders[1] / "b.nii.gz").write_bytes(b"")
    assert evaluate(folders) == 1
    assert {name: (folders[1] / name).read_bytes() for name in before} == before


def test_hidden_files_are_not_cases(folders):
    for folder in folders:
        (folder / "._a.nii.gz").write_bytes(b"\0\5\26\7")
        (folder / ".z.nii.gz").touch()
    assert evaluate(folders, "--missing", "zero") == 0
    assert set(pd.read_csv(folders[1] / "evaluation.csv")["case"]) == set("abc")


def test_truths_are_not_evaluated_against_themselves(folders, capsys, tmp_path):
    (tmp_path / "link").symlink_to(folders[1])
    for truths in (folders[1], tmp_path / "link"):
        assert evaluate((truths, folders[1])) == 1
        assert "is given for both truths and predictions" in capsys.readouterr().err
    (folders[1] / "a.nii.gz").unlink()
    (folders[1] / "a.nii.gz").symlink_to(folders[0] / "a.nii.gz")
    assert evaluate(folders) == 1
    assert f"{folders[1] / 'a.nii.gz'} is a link to the truth" in capsys.readouterr().err


@pytest.mark.parametrize("other", ["a.nrrd", "a.nii", "a.NII.GZ"])
@pytest.mark.parametrize("folder", [0, 1])
def test_one_case_with_two_endings_is_refused(folders, capsys, folder, other):
    (folders[folder] / other).touch()
    assert evaluate(folders) == 1
    assert f"{folders[folder] / 'a.nii.gz'} and {folders[folder] / other} are the same case" in capsys.readouterr().err


def test_files_of_a_case_that_are_not_segmentations_are_ignored(folders):
    for name in ("a.npz", "a.pkl", "a.png", "a.json", "d.nrrd", "plans.json"):
        (folders[1] / name).touch()
    assert evaluate(folders) == 0


def test_a_pipe_and_a_name_that_is_not_utf8_are_named(folders, capsys):
    (folders[1] / "a.nii.gz").unlink()
    os.mkfifo(folders[1] / "a.nii.gz")
    for folder in folders:
        os.rename(folder / "b.nii.gz", os.fsencode(folder) + b"/b\xff\x1b[31m.nii.gz")
    assert evaluate(folders) == 1
    printed = capsys.readouterr().err
    assert f"{folders[1] / 'a.nii.gz'} is not a regular file, but a pipe" in printed
    assert r"b\udcff\x1b[31m.nii.gz' is not UTF-8. Rename it" in printed
    assert "\x1b" not in printed


def test_outputs_replace_links_and_leave_no_temporary_files(folders, tmp_path):
    (tmp_path / "precious").write_text("precious")
    for name in ("evaluation.csv", "evaluation.json"):
        (folders[1] / name).symlink_to(tmp_path / "precious")
    assert evaluate(folders) == 0
    assert (tmp_path / "precious").read_text() == "precious"
    assert len(pd.read_csv(folders[1] / "evaluation.csv")) == len(
        json.loads((folders[1] / "evaluation.json").read_text())["cases"]
    )
    assert not [name for name in os.listdir(folders[1]) if name.startswith(".")]


def test_an_output_that_cannot_be_written_is_named(folders, capsys, tmp_path):
    (tmp_path / "file").touch()
    assert evaluate(folders, "-o", str(tmp_path / "file")) == 1
    assert f"{tmp_path / 'file'} cannot be used as a folder" in capsys.readouterr().err
    (tmp_path / "out" / "evaluation.json").mkdir(parents=True)
    assert evaluate(folders, "-o", str(tmp_path / "out")) == 1
    assert f"The evaluation cannot be written to {tmp_path / 'out'}" in capsys.readouterr().err
    assert os.listdir(tmp_path / "out") == ["evaluation.json"]


def test_a_full_disk_keeps_the_earlier_evaluation(folders, capsys):
    """A limit on the size of files stands in for a full disk."""
    import resource
    import signal

    assert evaluate(folders) == 0
    before = {name: (folders[1] / name).read_bytes() for name in ("evaluation.csv", "evaluation.json")}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        for limit in (100, len(before["evaluation.csv"]) + 1):  # in the table, and in the JSON
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
            assert evaluate(folders) == 1
            assert "The evaluation cannot be written to" in capsys.readouterr().err
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert {name: (folders[1] / name).read_bytes() for name in before} == before
    assert not [name for name in os.listdir(folders[1]) if name.startswith(".")]


def test_special_characters_in_names_are_written_safely(folders, capsys):
    labels = {"background": 0, "[bold]:smile:\x1b[31m": 1, "=1+1": 2, "Zürich 北京": 3}
    (folders[1] / "dataset.json").write_text(json.dumps(DATASET | {"labels": labels, "regions_class_order": None}))
    for folder in folders:
        (folder / "a.nii.gz").rename(folder / "=cmd.nii.gz")
        (folder / "b.nii.gz").rename(folder / "$b {京}.nii.gz")
    assert evaluate(folders) == 0
    printed = capsys.readouterr().out
    assert r"[bold]:smile:\x1b[31m" in printed
    assert "\x1b" not in printed
    rows = json.loads((folders[1] / "evaluation.json").read_text(encoding="utf-8"))["cases"]
    assert {row["case"] for row in rows} == {"=cmd", "$b {京}", "c"}
    assert {row["label"] for row in rows} == set(labels) - {"background"}
    table = pd.read_csv(folders[1] / "evaluation.csv", encoding="utf-8")
    assert set(table["case"]) == {"'=cmd", "$b {京}", "c"}  # a spreadsheet would run the first one
    assert set(table["label"]) == {"[bold]:smile:\x1b[31m", "'=1+1", "Zürich 北京"}


def test_names_are_written_as_utf8_in_any_locale(folders):
    labels = {"background": 0, "Zürich": 1, "北京": 2, "ignore": 3}
    content = json.dumps(DATASET | {"labels": labels, "regions_class_order": None}, ensure_ascii=False)
    (folders[1] / "dataset.json").write_text(content, encoding="utf-8")
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-m", "nnunet_dg.cli", "evaluate", *folders, "-np", "1"]
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert rb"Z\xfcrich" in done.stdout
    rows = json.loads((folders[1] / "evaluation.json").read_bytes().decode("utf-8"))["cases"]
    assert {row["label"] for row in rows} == {"Zürich", "北京"}


@pytest.fixture
def tiffs(tmp_path):
    """A fold's validation as nnU-Net leaves it, with spacing files next to predictions but not next to truths."""
    truth = np.zeros((6, 8, 8), np.uint8)
    truth[1:5, 2:6, 2:6] = 1
    for folder, array in {"gt_segmentations": truth, "predicted": np.roll(truth, 1, 0)}.items():
        (tmp_path / folder).mkdir()
        tifffile.imwrite(tmp_path / folder / "a.tif", array)
    dataset = {"labels": {"background": 0, "x": 1}, "file_ending": ".tif"}
    (tmp_path / "predicted" / "dataset.json").write_text(json.dumps(dataset))
    return tmp_path / "gt_segmentations", tmp_path / "predicted"


@pytest.mark.parametrize("options", [[], ["--ignore-affine"]])
def test_tiffs_without_a_known_spacing_are_refused(tiffs, options, capfd):
    assert evaluate(tiffs, *options) == 1
    printed = "".join(capfd.readouterr())
    assert f"{tiffs[0] / 'a.tif'} has no spacing" in printed
    assert f"to {tiffs[0] / 'a.json'}" in printed
    assert "Traceback" not in printed
    (tiffs[1] / "a.json").write_text('{"spacing": [3, 0.5, 0.5]}')
    assert evaluate(tiffs, *options) == 0
    assert pd.read_csv(tiffs[1] / "evaluation.csv").loc[0, "hd95_mm"] == pytest.approx(3)
    (tiffs[0] / "a.json").write_text('{"spacing": [5, 0.5, 0.5]}')
    assert evaluate(tiffs, *options) == (0 if options else 1)
    if options:
        assert pd.read_csv(tiffs[1] / "evaluation.csv").loc[0, "hd95_mm"] == pytest.approx(5)


def test_a_bug_keeps_its_traceback():
    for processes in (1, 2):
        with pytest.raises(RuntimeError, match="a bug") as raised:
            library.run_all([fail, fail], processes, "failing")
        assert not isinstance(raised.value, EvaluationError)


def test_a_killed_process_is_reported():
    with pytest.raises(EvaluationError, match=r"A process was killed, .* Use fewer `processes`"):
        library.run_all([os.abort, os.abort], 2, "aborting")
