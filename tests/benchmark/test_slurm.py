"""``--executor slurm`` against stand-ins of Slurm's commands."""

import json
import os
import re
import subprocess
import sys
import time

import pytest
from benchmark_plans import benchmark, results  # noqa: F401, a fixture
from helpers import SUPPORT

pytest.importorskip("snakemake_executor_plugin_slurm", reason="Snakemake's plugin for Slurm is not installed")
OPTIONS = "--executor slurm -j 3 -- --slurm-init-seconds-before-status-checks 1 --default-resources cpus_per_task=3"
OPTIONS += " slurm_account=account slurm_partition=gpu mem_mb=300 runtime=10"


@pytest.fixture
def slurm(host, tmp_path):
    """Environment with the stand-ins, and their folder."""
    state = tmp_path / "slurm"
    state.mkdir()
    subprocess.run([sys.executable, SUPPORT / "slurm_stand_in.py", "install", tmp_path / "bin"], check=True)
    path = f"{tmp_path / 'bin'}{os.pathsep}{host.environment['PATH']}"
    return {"PATH": path, "SLURM_STAND_IN": str(state)}, state


def submitted(state):
    """Arguments and final state of each job by the comment that Snakemake gives it."""
    jobs = {}
    for path in sorted(state.glob("*.arguments")):
        arguments = json.loads(path.read_text())
        comment = arguments[arguments.index("--comment") + 1]
        jobs[comment.removeprefix("rule_").partition("_")[0]] = arguments, path.with_suffix(".state").read_text()
    return jobs


def wait_for(happened, seconds=200):
    end = time.monotonic() + seconds
    while not (found := happened()):
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.5)
    return found


@pytest.mark.matrix
def test_slurm_runs_cancels_and_resumes_the_jobs(host, benchmark, slurm, tmp_path):  # noqa: F811
    environment, state = slurm
    waiting, changes = environment | {"SLURM_STAND_IN_WAITS": "1"}, {"trainers": ["nnUNetTrainer"], "seeds": [5]}
    failed = benchmark(OPTIONS, 1, waiting, **changes, device="cuda")
    assert "failed: train" in failed
    arguments, ended = submitted(state)["train"]
    assert {"--gpus=1", "--cpus-per-task=3", "--mem", "300", "-t", "10"} <= set(arguments)
    assert ended == "FAILED\n"

    command = f"nnunet-dg benchmark {tmp_path / 'plan.yaml'} {OPTIONS}".split()
    plan = json.loads((tmp_path / "plan.yaml").read_text()) | {"device": "cpu", "epochs": 1000}
    (tmp_path / "plan.yaml").write_text(json.dumps(plan))
    process = subprocess.Popen(
        command, env=host.environment | environment | {"nnUNet_n_proc_DA": "0"}, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    wait_for(lambda: list((tmp_path / "plan" / "logs" / "train").rglob("*.running")))
    process.terminate()
    printed, _ = process.communicate(timeout=200)
    assert process.returncode != 0
    arguments, ended = submitted(state)["train"]
    assert ended == "CANCELLED\n", printed
    assert "--gpus=1" not in arguments

    printed = benchmark(OPTIONS, 0, waiting, **changes)
    assert re.search(r"train *│ 1 ", printed), printed
    assert (results(host, "nnUNetTrainer", "nnUNetTrainerERM", seed=5) / "checkpoint_final.pth").is_file()
    jobs = submitted(state)
    assert [ended for _, ended in jobs.values()] == ["COMPLETED\n"] * len(jobs)
    assert set(jobs) == {"prepare", "train", "report"}  # the others are short, and run where Snakemake runs
