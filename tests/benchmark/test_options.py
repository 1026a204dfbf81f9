"""Options of ``nnunet-dg benchmark``, and what is passed on to Snakemake."""

import json
import os
from pathlib import Path

import pytest
import torch
from benchmark_plans import NEEDS_SNAKEMAKE, PLAN, folders, written  # noqa: F401, a fixture

from nnunet_dg.benchmark import run
from nnunet_dg.cli import main

pytestmark = NEEDS_SNAKEMAKE


@pytest.fixture
def snakemake(folders, monkeypatch):  # noqa: F811
    """A function that runs the command and returns the words that Snakemake is started with."""
    started = []
    monkeypatch.setattr(run, "check_device", lambda _: None)
    monkeypatch.setattr(run, "_run", lambda command: started.append(command) or 0)

    def passed(*words, **changes):
        assert main(["benchmark", str(written(folders, PLAN | changes)), *words]) == 0
        return started.pop()

    return passed


@pytest.mark.parametrize("words", [["-j", "3", "--gpus", "2"], ["--dry-run"], []])
def test_words_after_two_dashes_are_passed_on(snakemake, words):
    command = snakemake(*words, "--", "--default-resources", "runtime=10", "--quiet")
    assert command[-3:] == ["--default-resources", "runtime=10", "--quiet"]
    assert command[command.index("--jobs") + 1] == ("3" if words[:1] == ["-j"] else "1")
    assert command[command.index("--resources") + 1] == ("gpu=2" if words[:1] == ["-j"] else "gpu=1")
    assert ("--dry-run" in command) == (words == ["--dry-run"])


def test_an_executor_that_is_not_installed_is_named_with_its_plugin(folders, capsys):  # noqa: F811
    assert main(["benchmark", str(written(folders, PLAN)), "--executor", "aws-none"]) == 1
    printed = capsys.readouterr().err
    assert "--executor must be an executor of Snakemake that is installed; 'aws-none' is not." in printed
    assert "pip install snakemake-executor-plugin-aws-none" in printed


@pytest.mark.parametrize(
    ("words", "cores", "jobs", "threads"),
    [([], 8, 8, 8), (["-j", "2"], 8, 8, 4), (["-j", "3"], 8, 6, 2), (["-j", "3"], 2, 3, 1)],
)
def test_jobs_on_cpus_share_the_cores(snakemake, monkeypatch, words, cores, jobs, threads):
    """Snakemake counts threads: as many jobs run at the same time as asked for, whatever their number of threads."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(cores), raising=False)
    command = snakemake(*words, device="cpu")
    assert command[command.index("--jobs") + 1] == str(jobs)
    config = json.loads(Path(command[command.index("--configfile") + 1]).read_text())
    assert config["threads"] == threads


@pytest.mark.parametrize(
    ("words", "device", "expected"),
    [(["--gpus", "2"], "cuda", ["2", "3"]), ([], "cuda", []), (["--gpus", "2"], "cpu", []),
     (["--gpus", "2", "--", "--profile", "cluster"], "cuda", [])],
)  # fmt: skip
def test_only_jobs_on_this_machine_choose_a_gpu_and_only_among_several(snakemake, monkeypatch, words, device, expected):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    command = snakemake(*words, device=device)
    config = json.loads(Path(command[command.index("--configfile") + 1]).read_text())
    assert config["devices"] == expected


def test_jobs_on_a_cluster_do_not_depend_on_the_cores_of_this_machine(snakemake, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8), raising=False)
    monkeypatch.setattr(run, "_check_executor", lambda name: None)
    command = snakemake("-j", "40", "--executor", "slurm", device="cpu")
    assert command[command.index("--jobs") + 1] == "40"
    assert json.loads(Path(command[command.index("--configfile") + 1]).read_text())["threads"] == 1


def test_a_profile_decides_what_a_job_is_and_where_it_runs(snakemake, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8), raising=False)
    command = snakemake("-j", "3", "--", "--profile", "cluster", device="cpu")
    assert command[command.index("--jobs") + 1] == "3"
    assert json.loads(Path(command[command.index("--configfile") + 1]).read_text())["threads"] == 1


@pytest.mark.parametrize(("words", "checked"), [([], True), (["--dry-run"], False), (["--", "--profile", "x"], False)])
def test_the_device_of_this_machine_is_checked_before_the_first_job(folders, monkeypatch, capsys, words, checked):  # noqa: F811
    monkeypatch.setattr(run, "_run", lambda command: 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    status = main(["benchmark", str(written(folders, PLAN | {"device": "cuda"})), *words])
    assert status == int(checked)
    assert ("cuda needs a GPU that PyTorch can use" in capsys.readouterr().err) == checked


def test_a_plan_without_extension_needs_a_folder(folders, capsys):  # noqa: F811
    plan = written(folders, PLAN).rename(folders / "plan")
    assert main(["benchmark", str(plan), "--dry-run"]) == 1
    assert "has no extension such as .yaml, so name the folder of the benchmark: -o." in capsys.readouterr().err


def test_jobs_that_an_earlier_run_has_left_wait(snakemake, folders):  # noqa: F811
    mark = folders / "plan" / "logs" / "train" / "a.log.running"
    mark.parent.mkdir(parents=True)
    mark.touch()
    snakemake("--dry-run")
    assert mark.exists()
    snakemake()
    assert not mark.exists()
