"""Jobs on several GPUs of one machine. No GPU is needed: a job is told its GPU by CUDA_VISIBLE_DEVICES."""

import json
import subprocess
import sys
import time

import pytest
import torch
from benchmark_plans import NEEDS_SNAKEMAKE

from nnunet_dg.benchmark import run
from nnunet_dg.benchmark.one_gpu import devices_of_jobs

COMMAND = [sys.executable, "-m", "nnunet_dg.benchmark.one_gpu"]


def started(folder, devices, script):
    return subprocess.Popen([*COMMAND, str(folder), devices, "bash", "-c", script], stdout=subprocess.PIPE, text=True)


def test_jobs_at_the_same_time_have_different_gpus_and_the_next_one_waits(tmp_path):
    wait_for_end = f"until [ -e {tmp_path}/end ]; do sleep 0.05; done"
    first = [started(tmp_path, "5,7", f"echo $CUDA_VISIBLE_DEVICES; {wait_for_end}") for _ in range(2)]
    lines = [[process.stdout.readline().strip() for _ in range(2)] for process in first]
    assert sorted(lines) == [["GPU 5", "5"], ["GPU 7", "7"]]
    third = started(tmp_path, "5,7", f"[ -e {tmp_path}/end ] && echo waited")
    time.sleep(1)
    assert third.poll() is None
    (tmp_path / "end").touch()
    assert third.communicate(timeout=60)[0].split()[2:] == ["waited"]
    assert [process.wait() for process in (*first, third)] == [0, 0, 0]


def test_a_gpu_is_in_use_until_the_last_process_of_its_job_has_ended(tmp_path):
    """As after a kill of the job alone, whose worker processes are still there."""
    left = f"(until [ -e {tmp_path}/end ]; do sleep 0.05; done) > /dev/null &"
    assert started(tmp_path, "0", left).communicate(timeout=60)[0] == "GPU 0\n"
    second = started(tmp_path, "0", "true")
    time.sleep(1)
    assert second.poll() is None
    (tmp_path / "end").touch()
    assert second.wait(timeout=60) == 0


def test_the_status_of_the_command_is_kept(tmp_path):
    assert started(tmp_path, "0", "exit 3").wait() == 3


@pytest.mark.parametrize(
    ("visible", "count", "jobs", "expected"),
    [(None, 4, 2, ["0", "1"]), ("2,3", 8, 2, ["2", "3"]), ("3", 8, 2, ["3", "3"]), (None, 2, 3, ["0", "1", "0"]),
     (None, 0, 2, [])],
)  # fmt: skip
def test_jobs_have_the_gpus_of_the_environment_in_turn(monkeypatch, visible, count, jobs, expected):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert devices_of_jobs(jobs) == expected


@NEEDS_SNAKEMAKE
@pytest.mark.parametrize("devices", [[], ["4", "6"]])
def test_the_workflow_gives_each_training_a_gpu(tmp_path, devices):
    command = 'echo "<$CUDA_VISIBLE_DEVICES>"; echo \'{}\' "$HOME" > /dev/null; sleep 2'
    jobs = {rule: {} for rule in ("train", "report", "stress")}
    jobs["train"] = {name: {"command": command, "after": []} for name in "ab"}
    jobs["report"] = {"r": {"command": 'echo "<$CUDA_VISIBLE_DEVICES>"', "after": ["train/a", "train/b"]}}
    config = tmp_path / "jobs.json"
    config.write_text(json.dumps({"jobs": jobs, "gpu": True, "threads": 1, "devices": devices}))
    subprocess.run(
        [sys.executable, "-m", "snakemake", "--snakefile", run.WORKFLOW, "--directory", tmp_path,
         "--configfile", config, "--jobs", "2", "--resources", "gpu=2"],
        check=True, capture_output=True, timeout=120, env=run.os.environ | {"CUDA_VISIBLE_DEVICES": "1"},
    )  # fmt: skip
    seen = [(tmp_path / f"logs/train/{name}.log").read_text().split()[-1] for name in "ab"]
    assert sorted(seen) == (["<4>", "<6>"] if devices else ["<1>", "<1>"])
    assert (tmp_path / "logs/report/r.log").read_text() == "<1>\n"
