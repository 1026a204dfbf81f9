"""The record of stress is robust against interruptions, power cuts and other programs."""

import json
import os

import pytest

from nnunet_dg.robustness.stress_record import Measurement, Record, RecordError

SETTINGS = {"checkpoints": ["abc"], "seed": 0, "mirroring": True, "versions": {"nnunet-dg": "0.1.0"}}
MEASUREMENTS = [Measurement("gamma", float(strength), "case", "hash") for strength in range(4)]
SCORES = {"box": {"dice": 0.5, "nsd": float("nan"), "hd95_mm": 3.0, "assd_mm": 1.0, "truth_voxels": 7.0}}
DAMAGE = {
    "blank": b"\n",
    "binary": b"\xff\xfe\x00\x81\n",
    "NUL bytes": b"\0" * 300 + b"\n",
    "text": b"something else\n",
    "JSON of another shape": b'[1, {"measurement": null}]\nnull\n17\n',
    "a repeated key": b'{"measurement": 1, "measurement": 2, "scores": {}}\n',
    "an impossible score": json.dumps(
        {
            "measurement": {"kind": "gamma", "strength": 9.0, "case": "c", "files": "x", "draw": 0},
            "scores": {"box": {"dice": 17}},
        }
    ).encode()
    + b"\n",
}


@pytest.fixture
def path(tmp_path):
    record = Record(tmp_path / "A.jsonl", SETTINGS)
    for measurement in MEASUREMENTS:
        record.add(measurement, SCORES)
    return tmp_path / "A.jsonl"


def reopened(path):
    """The record, reopened, after checking that all lines of its file are valid."""
    record = Record(path, SETTINGS)
    lines = path.read_bytes().splitlines()
    assert json.loads(lines[0]) == SETTINGS
    assert [json.loads(line)["measurement"]["strength"] for line in lines[1:]] == [m.strength for m in record.scores]
    return record


@pytest.mark.parametrize("place", range(6))
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_valid_lines_are_kept_wherever_the_damage_is(path, damage, place):
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:place], damage, *lines[place:]]))
    record = reopened(path)
    assert list(record.scores) == MEASUREMENTS
    assert record.scores[MEASUREMENTS[0]]["box"]["hd95_mm"] == 3.0
    assert record.damaged == damage.count(b"\n")
    assert reopened(path).damaged == 0


@pytest.mark.parametrize("place", range(5))
def test_a_line_that_was_cut_off_is_measured_again(path, place):
    """Any line may be cut off, including the line of settings, and the next line may follow without a line break."""
    lines = path.read_bytes().splitlines(keepends=True)
    for end in (b"", b"\n"):
        path.write_bytes(b"".join([*lines[:place], lines[place][:20] + end, *lines[place + 1 :]]))
        record = reopened(path)
        lost = {place - 1, place if not end else place - 1} - {-1}
        assert list(record.scores) == [m for i, m in enumerate(MEASUREMENTS) if i not in lost]
        for measurement in MEASUREMENTS:
            if measurement not in record.scores:
                record.add(measurement, SCORES)
        assert set(reopened(path).scores) == set(MEASUREMENTS)


def test_an_undamaged_record_is_only_appended_to(path):
    before, inode = path.read_bytes(), path.stat().st_ino
    os.utime(path, (1, 1))
    record = Record(path, SETTINGS)
    assert (path.stat().st_mtime, path.stat().st_ino) == (1, inode)
    record.add(Measurement("gamma", 9.0, "case", "hash"), SCORES)
    assert path.stat().st_ino == inode
    assert path.read_bytes().startswith(before)
    assert path.read_bytes().count(b"\n") == before.count(b"\n") + 1


def test_an_interrupted_repair_keeps_the_old_file(path, monkeypatch):
    with path.open("ab") as file:
        file.write(b"torn")
    before = path.read_bytes()

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        Record(path, SETTINGS)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("change", [{"seed": 1}, {"checkpoints": ["other"]}, {"mirroring": False}])
def test_measurements_with_other_settings_are_refused_and_kept(path, change):
    before = path.read_bytes()
    with pytest.raises(RecordError, match=f"has measurements with other {next(iter(change))}"):
        Record(path, SETTINGS | change)
    assert path.read_bytes() == before


def test_measurements_without_a_settings_line_are_matched_by_their_hash(path):
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[1:]))
    assert len(Record(path, SETTINGS).scores) == 4
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[1:]))
    assert not Record(path, SETTINGS | {"seed": 1}).scores


def test_an_older_record_without_hashes_is_resumed(path):
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    for entry in lines[1:]:
        del entry["settings"]
    path.write_text("".join(json.dumps(entry) + "\n" for entry in lines))
    record = Record(path, SETTINGS)
    assert (list(record.scores), record.damaged) == (MEASUREMENTS, 0)


def test_a_link_is_replaced_and_its_target_is_not_changed(path, tmp_path):
    target = tmp_path / "elsewhere"
    path.rename(target)
    path.symlink_to(target)
    before = target.read_bytes()
    Record(path, SETTINGS).add(Measurement("gamma", 9.0, "case", "hash"), SCORES)
    assert target.read_bytes() == before
    assert len(Record(path, SETTINGS).scores) == 5
    assert not path.is_symlink()


def test_a_folder_in_place_of_the_file_is_named(tmp_path):
    (tmp_path / "A.jsonl").mkdir()
    with pytest.raises(RecordError, match=r"A\.jsonl is not a regular file"):
        Record(tmp_path / "A.jsonl", SETTINGS)
