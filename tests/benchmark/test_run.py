"""A benchmark by its command: the jobs that a dry run lists, a real run, and runs that are killed."""

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from nnunet_host import DATASET
from nnunetv2.utilities.crossval_split import generate_crossval_split

COMPARISON = f"{DATASET}__3d_fullres__tinyPlans"
ROWS = {"nnUNetTrainer": None, "neutral": {"trainer": "nnUNetTrainerMixStyle", "settings": {"mixstyle": {"p": 0.0}}}}
PLAN = {
    "datasets": [{"dataset": 701, "protocol": "existing", "folds": [0]}],
    "trainers": ROWS, "plans": ["tinyPlans"], "epochs": 1, "steps": 2, "device": "cpu",
}  # fmt: skip


def results(host, row, trainer, seed=0, length="1epochs_2steps"):
    return host.results(trainer, plans=f"tinyPlans_{row}_{length}_seed{seed}")


@pytest.fixture
def benchmark(host, tmp_path):
    """A function that runs the command with a plan, and returns what it prints."""
    splits = host.folder / "nnUNet_preprocessed" / DATASET / "splits_final.json"
    if not splits.is_file():  # the one that nnU-Net makes in its first training
        splits.write_text(json.dumps(generate_crossval_split([f"case_{i}" for i in range(5)], seed=12345)))

    def run(options="", status=0, **changes):
        plan = tmp_path / "plan.yaml"
        plan.write_text(json.dumps(PLAN | changes))
        return host.run(f"nnunet-dg benchmark {plan} {options}", status, nnUNet_n_proc_DA="0")

    return run


def test_a_plan_is_run_to_its_report(host, benchmark, tmp_path):
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


@pytest.mark.matrix
def test_a_dry_run_lists_the_jobs_and_runs_none(benchmark, tmp_path):
    printed = benchmark("--dry-run", stress=["gamma"], metrics=["nsd"], seeds=[0, 1])
    counts = dict(re.findall(r"^(\w+) +(\d+)$", printed, re.M))
    assert counts == {
        "prepare": "1", "plans": "4", "train": "4", "evaluate": "4", "stress": "2", "splits": "1", "costs": "1",
        "report": "1", "all": "1", "total": "19",
    }  # fmt: skip
    assert not (tmp_path / "plan" / "done").exists()


@pytest.mark.matrix
def test_a_failed_job_is_shown_with_the_last_line_of_its_log(benchmark):
    printed = benchmark(plans=["missingPlans"], status=1)
    assert f"failed: prepare {DATASET}__missingPlans" in printed
    assert "There are no plans" in printed
    assert "interrupted" not in printed
    assert "failed: prepare" in benchmark("--status", plans=["missingPlans"], status=1)


@pytest.mark.matrix
def test_domains_surfaces_and_stress_are_in_the_results(host, benchmark, tmp_path):
    raw = host.folder / "nnUNet_raw" / DATASET / "domains.json"
    splits = host.folder / "nnUNet_preprocessed" / DATASET / "splits_final.json"
    before = splits.read_text()
    raw.write_text(json.dumps({f"case_{i}": "A" if i < 3 else "B" for i in range(5)}))
    splits.unlink()
    try:
        dataset = {"dataset": 701, "folds": [1], "in_domain": 0.4}
        benchmark(datasets=[dataset], metrics=["dice", "nsd"], stress=["gamma"], seeds=[2], trainers=["nnUNetTrainer"])
        text = (tmp_path / "plan" / "report" / COMPARISON / "report.md").read_text()
        assert "in-domain" in text.splitlines()[6]
        assert "unseen" in text.splitlines()[6]
        assert "normalized surface Dice" in text
        assert (tmp_path / "plan" / "stress" / COMPARISON / "seed2_fold_1" / "stress.csv").is_file()
    finally:
        raw.unlink()
        (splits.parent / "domains.json").unlink(missing_ok=True)
        splits.write_text(before)


@pytest.mark.matrix
def test_a_benchmark_that_is_killed_at_any_time_ends_with_the_files_of_an_uninterrupted_one(host, benchmark, tmp_path):
    changes = {"epochs": 4, "trainers": ["nnUNetTrainer"], "seeds": [7]}
    plan = tmp_path / "plan.yaml"
    plan.write_text(json.dumps(PLAN | changes))
    for seconds in (9, 13, 17, 21, 25):
        process = subprocess.Popen(
            ["nnunet-dg", "benchmark", str(plan)], env=host.environment | {"nnUNet_n_proc_DA": "0"},
            start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        time.sleep(seconds)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    printed = benchmark(**changes)
    assert re.search(r"train *│ 1 ", printed), printed
    fold: Path = results(host, "nnUNetTrainer", "nnUNetTrainerERM", seed=7, length="4epochs_2steps")
    assert (fold / "checkpoint_final.pth").is_file()
    assert not list(fold.glob("*.partial"))
    assert "Nothing to be done" in benchmark("--dry-run", **changes)
    assert (fold / "validation" / "summary.json").is_file()
    assert (tmp_path / "plan" / "report" / COMPARISON / "report.html").is_file()
