import errno

import pandas as pd
import pytest
from tiny_model import write_cases, write_trained

from nnunet_dg.cli import main
from nnunet_dg.files import locked
from nnunet_dg.robustness.stress import figure, identity_of, overview
from nnunet_dg.robustness.stress_record import Record


@pytest.fixture
def table() -> pd.DataFrame:
    """Scores of two trainers for gamma and weight noise. Both masks of one case are empty."""
    rows = [
        {
            "trainer": trainer,
            "kind": kind,
            "strength": strength,
            "case": case,
            "draw": 0,
            "label": "organ",
            "dice": dice,
        }
        for trainer, gain in (("A", 0.0), ("B", 0.2))
        for kind, strength, values in (
            ("gamma", 1.0, (0.7, 0.5, float("nan"))),
            ("gamma", 4.0, (0.3, 0.1, float("nan"))),
            ("weight noise", 0.0, (0.7, 0.5, float("nan"))),
        )
        for case, dice in zip("xyz", (v + gain for v in values), strict=True)
    ]
    return pd.DataFrame(rows)


def test_curves_are_means_of_cases_with_the_identity_marked(table):
    _, (gamma, noise) = figure(table)
    assert (gamma.get_title(), noise.get_title()) == ("gamma", "weight noise")
    first, second = (container.lines[0] for container in gamma.containers)
    assert first.get_xdata().tolist() == [1, 4]
    assert first.get_ydata().tolist() == pytest.approx([0.6, 0.2])
    assert second.get_ydata().tolist() == pytest.approx([0.8, 0.4])
    for ax, kind in ((gamma, "gamma"), (noise, "weight noise")):
        vertical = [list(line.get_xdata()) for line in ax.lines if line.get_linestyle() == "--"]
        assert [identity_of(kind)] * 2 in vertical
    assert gamma.get_xscale() == "log"


def test_the_overview_has_one_column_per_trainer(table):
    rows = overview(table).set_index(["kind", "strength"])
    assert rows.loc[("gamma", 4.0)].to_dict() == {"A": 20.0, "B": 40.0}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A model folder with random weights, and folders with images and truths of one case."""
    folder = tmp_path_factory.mktemp("stress")
    return write_trained(folder / "results"), *write_cases(folder / "cases")


def run(tiny, output, name="A", *options):
    model, images, truths = tiny
    where = ["-i", images, "-t", truths, "-device", "cpu", "--disable_tta", "--kinds", "inversion", "-o", output]
    return main([str(a) for a in ("stress", f"{name}={model}", *where, *options)])


def test_damaged_lines_are_reported_and_only_their_measurements_are_repeated(tiny, tmp_path, capfd):
    assert run(tiny, tmp_path) == 0
    path = tmp_path / "A.jsonl"
    before = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([b"\0" * 50 + b"\n", *before[:3], b"\xff\n", *before[4:]]))
    capfd.readouterr()
    assert run(tiny, tmp_path) == 0
    assert f"{path}: 2 damaged lines. Their measurements are repeated" in capfd.readouterr().out
    assert sorted(path.read_bytes().splitlines(keepends=True)) == sorted(before)


def test_one_stress_at_a_time_in_a_folder(tiny, tmp_path, capfd):
    with locked(tmp_path, "nnunet-dg stress"):
        assert run(tiny, tmp_path) == 1
    assert f"Another nnunet-dg stress is running in {tmp_path}" in capfd.readouterr().err
    assert not (tmp_path / "A.jsonl").exists()


@pytest.mark.parametrize("name", ["..", "a/b", "a\\b", "a\nb", " a", "a.", "x" * 101, "a:b", "\x1b[2J"])
def test_names_that_cannot_be_file_names_are_refused(tiny, tmp_path, name, capfd):
    assert run(tiny, tmp_path / "out", name) == 1
    printed = capfd.readouterr().err
    assert "need names that can be file names; got" in printed
    assert "\x1b" not in printed
    assert not (tmp_path / "out").exists()


def test_names_that_differ_only_in_case_are_refused(tiny, tmp_path, capfd):
    model, images, truths = tiny
    arguments = [
        "stress",
        f"Mine={model}",
        f"mine={model}",
        "-i",
        images,
        "-t",
        truths,
        "-device",
        "cpu",
        "-o",
        tmp_path,
    ]
    assert main([str(a) for a in arguments]) == 1
    assert "Models need different names" in capfd.readouterr().err


def test_unreadable_files_are_reported_before_the_first_measurement(tiny, tmp_path, capfd):
    model, *_ = tiny
    images, truths = write_cases(tmp_path / "cases", ["a", "b"])
    (images / "b_0000.nii.gz").write_bytes(b"damaged")
    assert run((model, images, truths), tmp_path / "out") == 1
    printed = capfd.readouterr().err.splitlines()[-1]
    assert printed.startswith(f"nnunet-dg: {images / 'b_0000.nii.gz'} cannot be read")
    assert (tmp_path / "out" / "A.jsonl").read_text().count("\n") == 1


def test_a_repeated_kind_is_refused(tiny, tmp_path, capfd):
    assert run(tiny, tmp_path, "A", "--kinds", "gamma", "gamma") == 1
    printed = capfd.readouterr().err
    assert "--kinds must be among" in printed
    assert "each once; got 'gamma'" in printed


def test_messages_name_the_options_of_the_command(tiny, tmp_path, capfd):
    model, images, _ = tiny
    assert main(["stress", str(model), "-o", str(tmp_path), "-device", "cpu", "-i", str(images)]) == 1
    assert "-i and -t belong together" in capfd.readouterr().err


def test_a_message_has_its_own_line_below_the_progress_bar(tiny, tmp_path, monkeypatch, capfd):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Record, "add", full)
    assert run(tiny, tmp_path) == 1
    lines = [line for line in capfd.readouterr().err.replace("\r", "\n").splitlines() if line.strip()]
    assert lines[-1] == "nnunet-dg: No space left on device"


def test_special_characters_in_names_are_not_read_as_formulas(table, tmp_path):
    result, _ = figure(table.assign(trainer=table["trainer"].map({"A": r"$\frac{$", "B": "_b"})))
    result.savefig(tmp_path / "stress.png")
    (legend,) = result.legends
    assert [text.get_text() for text in legend.get_texts()] == [r"$\frac{$", "_b"]
