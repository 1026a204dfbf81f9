"""Reading and validating text and JSON files, and writing files atomically."""

import json
import multiprocessing
import os
import signal
import stat
import subprocess
import sys
import time

import pytest

from nnunet_dg.errors import DataError
from nnunet_dg.files import cell, check_regular, read_json, read_text, replacing, share, write_json, write_text
from nnunet_dg.formats import Dataset, Domains, Splits, Summary

DATASET = {"labels": {"background": 0, "box": 1}, "file_ending": ".nii.gz"}
DAMAGE = {  # what power cuts, editors, other programs and other systems leave
    "empty": (b"", "not valid JSON, or cut off"),
    "cut off": (b'{"labels": {"backgr', "not valid JSON, or cut off"),
    "binary": (bytes(range(1, 256)), "is not UTF-8 text"),
    "NUL bytes": (b"\0" * 64, "contains NUL bytes"),
    "UTF-16": ("\ufeff{}".encode("utf-16-le"), "is UTF-16 text. Save it as UTF-8"),
    "Latin-1": ('{"labels": {"Zürich": 1}}'.encode("latin-1"), "is not UTF-8 text"),
    "a lone surrogate": (b'{"labels": {"\\ud800": 1}}', "half of a surrogate pair"),
    "a repeated key": (b'{"labels": {"a": 1, "a": 2}}', "the key 'a' appears more than once"),
    "nested": (b"[" * 100_000, "nested too deeply"),
    "thousands of digits": (b'{"labels": ' + b"1" * 5000 + b"}", "not valid JSON"),
    "two documents": (b"{}{}", "not valid JSON, or cut off: Extra data at line 1, column 3"),
    "a list": (b"[1]", "valid dictionary; got [1]"),
    "null": (b"null", "valid dictionary; got None"),
    "text": (b'"labels"', "valid dictionary; got 'labels'"),
    "a missing key": (b'{"labels": {"background": 0}}', "file_ending: Field required"),
    "a value of another type": (b'{"labels": [1], "file_ending": ".png"}', "labels: Input should be a valid dict"),
    "text for a number": (b'{"labels": {"a": 1}, "file_ending": 1}', "file_ending: Input should be a valid string"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_errors_about_damaged_files_are_one_line_with_the_file_the_fault_and_the_advice(tmp_path, what):
    content, fault = DAMAGE[what]
    path = tmp_path / "dataset.json"
    path.write_bytes(content)
    with pytest.raises(DataError) as raised:
        read_json(path, Dataset, "Plan again.")
    message = str(raised.value)
    assert message.startswith(str(path))
    assert fault in message
    assert message.endswith("Plan again.")
    assert len(message.splitlines()) == 1
    assert len(message) < 400 + len(str(path))


@pytest.mark.parametrize(
    ("model", "content", "place"),
    [
        (Splits, [{"train": ["a"], "val": ["b"]}, {"train": ["a"]}], "[1].val: Field required"),
        (Splits, [{"train": ["a"], "val": [3]}], "[0].val[0]: Input should be a valid string; got 3"),
        (Domains, {"case": ["a"]}, "case: Input should be a valid string; got ['a']"),
        (Summary, {"metric_per_case": [{"reference_file": "a"}]}, "metric_per_case[0].prediction_file: Field required"),
    ],
)
def test_the_place_in_the_file_is_named(tmp_path, model, content, place):
    write_json(tmp_path / "x.json", content)
    with pytest.raises(DataError) as raised:
        read_json(tmp_path / "x.json", model)
    assert f"x.json: {place}" in str(raised.value)


def test_valid_json_is_read_unchanged_with_unknown_keys_and_a_byte_order_mark(tmp_path):
    content = DATASET | {"labels": {"background": 0, "Zürich 北京 😀": [1, 2]}, "unknown key": {"x": [None, 1.5]}}
    path = tmp_path / "dataset.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(content).encode())  # json writes 😀 as two escapes
    assert read_json(path, Dataset) == content
    write_json(path, content)
    assert read_json(path, Dataset) == content
    assert "Zürich 北京 😀" in path.read_bytes().decode("utf-8")


def test_nan_is_read_because_nnunet_writes_it(tmp_path):
    case = {"reference_file": "a", "prediction_file": "b", "metrics": {"1": {"Dice": float("nan")}}}
    (tmp_path / "summary.json").write_text(json.dumps({"metric_per_case": [case]}))
    dice = read_json(tmp_path / "summary.json", Summary)["metric_per_case"][0]["metrics"]["1"]["Dice"]
    assert dice != dice


def test_paths_that_are_not_regular_files_are_refused_without_blocking(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    for path, fault in {
        tmp_path / "pipe": "is not a regular file, but a pipe",
        tmp_path / "folder": "is not a regular file, but a folder",
        tmp_path / "dangling": "is a link to nowhere, which does not exist",
        tmp_path / "loop": "cannot be read: Too many levels of symbolic links",
        tmp_path / "nothing": "There is no file",
        tmp_path / "pipe" / "below": "There is no file",
        tmp_path / ("long" * 100): "cannot be read: File name too long",
        tmp_path / "NUL\0": "There is no file",
    }.items():
        for read in (read_text, check_regular, lambda path: read_json(path, Domains)):
            with pytest.raises(DataError) as raised:
                read(path)
            assert fault in str(raised.value)
            assert str(path) in str(raised.value)
    with pytest.raises(DataError, match="is not a regular file, but a device"):
        read_text(tmp_path.__class__("/dev/zero"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_read_permission_is_named(tmp_path):
    (tmp_path / "x").touch(0o000)
    with pytest.raises(DataError, match="x cannot be read: Permission denied"):
        read_text(tmp_path / "x")


def test_a_link_to_a_file_is_read(tmp_path):
    (tmp_path / "file").write_text("text")
    (tmp_path / "link").symlink_to("file")
    assert read_text(tmp_path / "link") == "text"


def test_text_is_written_as_utf8_with_unix_line_endings_in_any_locale(tmp_path):
    code = "from pathlib import Path; from nnunet_dg.files import *; p = Path(__file__).with_name('x.json'); "
    code += "write_json(p, {'Zürich': '北京\\n±'}, None); assert '北京' in read_text(p)"
    (tmp_path / "code.py").write_text(code, encoding="utf-8")
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run([sys.executable, "-W", "error", tmp_path / "code.py"], env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "x.json").read_bytes() == '{"Zürich": "北京\\n±"}\n'.encode()


def test_a_planted_link_is_replaced_and_its_target_stays(tmp_path):
    (tmp_path / "precious").write_text("precious")
    for target in ("precious", "nowhere"):
        link = tmp_path / "out.csv"
        link.unlink(missing_ok=True)
        link.symlink_to(target)
        write_text(link, "new")
        assert not link.is_symlink()
        assert link.read_text() == "new"
    assert (tmp_path / "precious").read_text() == "precious"
    assert sorted(os.listdir(tmp_path)) == ["out.csv", "precious"]


def test_an_error_while_writing_leaves_the_old_file_and_no_temporary_one(tmp_path):
    write_text(tmp_path / "x", "old")

    def write_half():
        with replacing(tmp_path / "x") as partial:
            partial.write_text("ha")
            raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        write_half()
    with pytest.raises(DataError, match="a name in it is not UTF-8, near 'name "):
        write_text(tmp_path / "x", "name \udcff")
    assert (tmp_path / "x").read_text() == "old"
    assert os.listdir(tmp_path) == ["x"]


def write_forever(path):
    for number in range(10**9):
        write_json(path, [number] * 20_000, None)


def test_a_process_killed_while_writing_leaves_a_complete_file(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, [-1] * 20_000, None)
    for attempt in range(8):
        process = multiprocessing.get_context("fork").Process(target=write_forever, args=(path,))
        process.start()
        time.sleep(0.02 + 0.013 * attempt)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        content = json.loads(path.read_text())
        assert len(content) == 20_000
        assert len(set(content)) == 1
    assert all(name == "x.json" or name.startswith(".x.json.") for name in os.listdir(tmp_path))


@pytest.mark.parametrize(
    ("folder", "umask", "expected"),
    [
        (0o755, 0o022, 0o644),
        (0o700, 0o022, 0o600),
        (0o750, 0o022, 0o640),
        (0o777, 0o000, 0o664),  # never writable for all users
        (0o2775, 0o022, 0o664),  # a group's folder: the group may replace files that its members write
        (0o775, 0o077, 0o664),  # a shared folder
        (0o2770, 0o077, 0o660),
        (0o755, 0o077, 0o600),  # a private umask
        (0o755, 0o000, 0o644),
    ],
)
def test_permissions_follow_the_folder_and_the_umask(tmp_path, folder, umask, expected):
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(folder)
    before = os.umask(umask)
    try:
        write_text(shared / "x", "text")
        assert os.umask(umask) == umask  # unchanged
    finally:
        os.umask(before)
    assert stat.S_IMODE((shared / "x").stat().st_mode) == expected
    (shared / "x").chmod(0o600)  # the mode that tempfile sets
    before = os.umask(umask)
    share(shared / "x")
    os.umask(before)
    assert stat.S_IMODE((shared / "x").stat().st_mode) == expected


def test_long_names_can_be_written(tmp_path):
    name = "京" * 85  # 255 bytes, as long as a name can be
    write_text(tmp_path / name, "text")
    assert os.listdir(tmp_path) == [name]


def test_formulas_are_text_in_a_spreadsheet_and_ordinary_names_stay():
    for formula in ("=1+1", "+cmd", "-2+3", "@SUM(A1)", "\t=1", "\r=1"):
        assert cell(formula) == f"'{formula}"
    for ordinary in ("case_001", "a=b", "left-right", "", "Zürich", 3, -0.5, None):
        assert cell(ordinary) is ordinary
