"""A benchmark by its command: the jobs that a dry run lists, a real run, and runs that are killed."""

import json
import os
import random
import re
import signal
import subprocess
import time

import pytest
from benchmark_plans import NEEDS_SNAKEMAKE, benchmark, results  # noqa: F401, a fixture
from nnunet_host import DATASET

pytestmark = NEEDS_SNAKEMAKE
COMPARISON = f"{DATASET}__3d_fullres__tinyPlans"


@pytest.fixture
def domains(host, benchmark):  # noqa: F811
    """Domains A and B of the dataset, which has no splits yet."""
    raw = host.folder / "nnUNet_raw" / DATASET / "domains.json"
    splits = host.folder / "nnUNet_preprocessed" / DATASET / "splits_final.json"
    before = splits.read_text()
    raw.write_text(json.dumps({f"case_{i}": "A" if i < 3 else "B" for i in range(5)}))
    splits.unlink()
    yield
    raw.unlink()
    (splits.parent / "domains.json").unlink(missing_ok=True)
    splits.write_text(before)


def test_a_plan_is_run_to_its_report_and_later_plans_repeat_nothing(host, benchmark, tmp_path):  # noqa: F811
    printed = benchmark("-- --quiet")
    assert re.search(r"train *│ 2 ", printed), printed
    logs = []
    for row, trainer in (("nnUNetTrainer", "nnUNetTrainerERM"), ("neutral", "nnUNetTrainerMixStyle")):
        fold = results(host, row, trainer)
        assert (fold / "checkpoint_final.pth").is_file()
        assert (fold / "validation" / "summary.json").is_file()
        (log,) = fold.glob("training_log_*.txt")
        logs.append(re.findall(r"(train_loss|val_loss) (-?[\d.]+)", log.read_text()))
    assert len(logs[0]) == 2
    assert logs[0] == logs[1]  # one seed, and MixStyle with p = 0 changes nothing
    text = (tmp_path / "plan" / "report" / COMPARISON / "report.md").read_text()
    assert "## Costs" in text
    assert re.search(r"\| neutral +\| ", text)
    assert "step (ms)" in text
    printed = benchmark("--dry-run", plans=["tinyPlans", "nnUNetPlans"])
    assert re.search(r"^train +2$", printed, re.M), printed  # of the other plans
    assert "Nothing to be done" in benchmark("--dry-run")


@pytest.mark.matrix
def test_a_dry_run_lists_the_jobs_and_runs_none(benchmark, tmp_path):  # noqa: F811
    printed = benchmark("--dry-run", stress=["gamma"], metrics=["nsd"], seeds=[0, 1])
    counts = dict(re.findall(r"^(\w+) +(\d+)$", printed, re.M))
    assert counts == {
        "prepare": "1", "plans": "4", "train": "4", "evaluate": "4", "stress": "2", "splits": "1", "costs": "1",
        "report": "1", "all": "1", "total": "19",
    }  # fmt: skip
    assert not (tmp_path / "plan" / "done").exists()


@pytest.mark.matrix
def test_a_failed_job_is_shown_with_the_last_line_of_its_log(benchmark):  # noqa: F811
    """nnU-Net plans no low resolution for such a small dataset, which shows once it has planned."""
    plan = {"plans": {"newPlans": "ExperimentPlanner"}, "configurations": ["3d_lowres"]}
    printed = benchmark(status=1, **plan)
    assert f"failed: prepare {DATASET}__newPlans" in printed
    assert "has no configuration '3d_lowres'. It has 2d, 3d_fullres" in printed
    assert "interrupted" not in printed
    assert "must be one of 2d, 3d_fullres; got '3d_lowres'" in benchmark("--status", status=1, **plan)


@pytest.mark.matrix
def test_domains_surfaces_stress_and_choices_are_in_the_results(host, benchmark, tmp_path, domains):  # noqa: F811
    three = {f"case_{i}": domain for i, domain in enumerate("AAABC")}
    (host.folder / "nnUNet_raw" / DATASET / "domains.json").write_text(json.dumps(three))
    dataset = {"dataset": 701, "folds": [1], "in_domain": 0.4, "validation_domain": "C"}
    choose = {"best": ["neutral", "nnUNetTrainer"]}  # which are the same, since MixStyle with p = 0 changes nothing
    benchmark(datasets=[dataset], metrics=["dice", "nsd"], stress=["gamma"], seeds=[2], choose=choose)
    text = (tmp_path / "plan" / "report" / COMPARISON / "report.md").read_text()
    assert "in-domain" in text.splitlines()[6]
    assert "unseen" in text.splitlines()[6]
    assert "normalized surface Dice" in text
    assert "The validation domain, on which settings and trainers are chosen, is C." in text
    assert re.search(r"\| best +\| 2 +\| 1 +\| neutral +\| neutral (\S+), nnUNetTrainer \1 +\|", text), text
    best, *_ = (split(line) for line in text.splitlines() if line.startswith("| best "))
    assert best[3].endswith(" (1)")  # without the case of C
    assert (tmp_path / "plan" / "stress" / COMPARISON / "seed2_fold_1" / "stress.csv").is_file()


@pytest.mark.matrix
def test_adapted_rows_are_in_the_report(host, benchmark, tmp_path, domains):  # noqa: F811
    dataset = {"dataset": 701, "folds": [1], "in_domain": 0.4}
    benchmark(datasets=[dataset], adaptation={"tent": {"steps": 1}, "alpha": None}, stable="neutral", seeds=[2])
    lines = (tmp_path / "plan" / "report" / COMPARISON / "report.md").read_text().splitlines()
    first, *others = (i for i, line in enumerate(lines) if line.startswith("| trainer "))
    rows = {cells[1]: cells[2:4] for line in lines[first + 2 : others[0]] if (cells := split(line))[1:]}
    assert list(rows) == ["nnUNetTrainer", "neutral", "nnUNetTrainer+tent", "nnUNetTrainer+alpha", "neutral+tent"]
    assert split(lines[first])[2:4] == ["in-domain", "unseen"]
    assert all(cells[1].endswith("(2)") for cells in rows.values())
    assert [name for name, cells in rows.items() if not cells[0]] == ["nnUNetTrainer+alpha"]
    assert "alpha chose a number on in-domain validation cases, which its rows leave out." in "\n".join(lines)
    (record,) = (tmp_path / "plan" / "adapted").glob("*__nnUNetTrainer__seed2+alpha/fold_1/validation/adaptation.json")
    validation = json.loads(record.read_text())["validation"]
    assert (validation["domains"], validation["target_domains"]) == (["A"], ["B"])


def split(line):
    """The cells of a row of a table in Markdown, from number 1."""
    return [cell.strip() for cell in line.split("|")]


MOMENTS = random.Random(0)


def told(fold):
    """What each start of a training says about its epochs: their numbers and losses."""
    logs = (path.read_text() for path in sorted(fold.glob("training_log_*.txt")))
    return [re.findall(r"Epoch \d+ *$|(?:train|val)_loss -?[\d.]+", text, re.M) for text in logs]


def files(folder):
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith("training_log_") and ".snakemake" not in path.parts
    }


@pytest.mark.matrix
def test_ten_kills_change_neither_files_nor_numbers(host, benchmark, tmp_path):  # noqa: F811
    changes = {"epochs": 2, "trainers": ["nnUNetTrainer"], "seeds": [7, 8]}
    whole, cut = ({"nnUNet_results": str(tmp_path / name)} for name in ("whole", "cut"))
    began = time.monotonic()
    benchmark(f"-o {tmp_path / 'whole_run'}", environment=whole, **changes)
    needed = time.monotonic() - began
    command = ["nnunet-dg", "benchmark", str(tmp_path / "plan.yaml"), "-o", str(tmp_path / "cut_run")]
    for _ in range(10):
        process = subprocess.Popen(
            command, env=host.environment | {"nnUNet_n_proc_DA": "0"} | cut, start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        time.sleep(MOMENTS.uniform(0.05, 0.4) * needed)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    printed = benchmark(f"-o {tmp_path / 'cut_run'}", environment=cut, **changes)
    assert re.search(r"train *│ 2 ", printed), printed
    assert files(tmp_path / "cut") == files(tmp_path / "whole")
    assert files(tmp_path / "cut_run") == files(tmp_path / "whole_run")
    for fold in (tmp_path / "whole").rglob("fold_0"):
        (expected,) = told(fold)
        same = tmp_path / "cut" / fold.relative_to(tmp_path / "whole")
        starts = [start for start in told(same) if start]
        assert len(expected) == 6
        assert all(start == expected[: len(start)] for start in starts if start[0].startswith("Epoch 0"))
        if expected in starts:  # not cut before its last epoch
            scores = (json.loads((f / "validation" / "summary.json").read_text()) for f in (fold, same))
            assert len({score["foreground_mean"]["Dice"] for score in scores}) == 1
    assert "Nothing to be done" in benchmark(f"-o {tmp_path / 'cut_run'} --dry-run", environment=cut, **changes)
