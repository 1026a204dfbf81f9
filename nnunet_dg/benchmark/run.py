"""Running a benchmark: the plan's jobs are given to Snakemake, which runs those that are not done."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from filelock import FileLock, Timeout
from rich.console import Console

from nnunet_dg.benchmark.adapting import adapted_of
from nnunet_dg.benchmark.jobs import Jobs, as_config, jobs_of
from nnunet_dg.benchmark.one_gpu import devices_of_jobs
from nnunet_dg.benchmark.plan import Plan, read_plan
from nnunet_dg.benchmark.record import write_trainings
from nnunet_dg.benchmark.status import FAILED, JobStatus, forget_interrupted, statuses, table, unfinished
from nnunet_dg.benchmark.trainings import Training, trainings_of
from nnunet_dg.errors import SettingsError, about
from nnunet_dg.extras import require
from nnunet_dg.files import locked, write_json
from nnunet_dg.robustness.trained_model import check_device
from nnunet_dg.threads import WAITING, threads_per_job

WORKFLOW = Path(__file__).parent / "workflow" / "Snakefile"
COMMAND = "nnunet-dg benchmark"


def benchmark(
    plan: Path,
    output: Path,
    *,
    number_of_jobs: int = 1,
    gpus: int = 1,
    executor: str | None = None,
    dry_run: bool = False,
    options: Sequence[str] = (),
) -> int:
    """Run all jobs of a plan that are not done, and print what is done.

    Args:
        plan: YAML file.
        output: Folder of the benchmark.
        number_of_jobs: Number of jobs that run at the same time.
        gpus: Number of jobs with a GPU that run at the same time, on this machine each on a GPU of its own if there are
            as many.
        executor: Snakemake's executor, such as ``"slurm"``; None runs the jobs on this machine.
        dry_run: Whether the jobs are only listed.
        options: Further options of Snakemake.

    Returns:
        Exit status of Snakemake.

    Raises:
        SettingsError: The plan has a value that is not accepted, or the executor is not installed.
        DataError: The plan cannot be read, or another benchmark runs in the folder.
        HostError: nnU-Net's folders are not set, or there is no such dataset.
        ModelError: The jobs run on this machine, which lacks the plan's device.
        ExtraError: The extras "benchmark" and "report" are not installed.
    """
    require("report", "A benchmark")
    _check_executor(executor)
    content, trainings, jobs = expanded(plan, output)
    here = executor in (None, "local") and not any(option.startswith(("--profile", "--executor")) for option in options)
    if here and not dry_run:
        check_device(content["device"])
    threads = threads_per_job(number_of_jobs) if here and content["device"] == "cpu" else 1
    devices = devices_of_jobs(gpus) if here and content["device"] == "cuda" and gpus > 1 else []
    command = [
        sys.executable, "-m", "snakemake", "--snakefile", str(WORKFLOW), "--directory", str(output),
        "--configfile", str(output / "jobs.json"), "--jobs", str(number_of_jobs * threads),
        "--resources", f"gpu={gpus}", "--keep-going", "--rerun-incomplete",
        "--rerun-triggers", "mtime", "input", "params",
        "--nolock",  # this package's own lock ends with the process, also if it is killed
        *(["--executor", executor] if executor else []), *(["--dry-run"] if dry_run else []), *options,
    ]  # fmt: skip
    output.mkdir(parents=True, exist_ok=True)
    with locked(output, COMMAND):
        write_trainings(output / "trainings.json", trainings)
        write_json(output / "jobs.json", as_config(jobs, content, threads, devices))
        if not dry_run:
            forget_interrupted(output)
        status = _run(command)
    if not dry_run:
        show(jobs, output, running=False)
    return status


def _check_executor(name: str | None) -> None:
    plugin = f"snakemake_executor_plugin_{(name or '').replace('-', '_')}"
    if name not in (None, "local") and find_spec(plugin) is None:
        raise SettingsError(
            f"`executor` must be an executor of Snakemake that is installed; {name!r} is not. For clusters and clouds, "
            f"install its plugin: pip install {plugin.replace('_', '-')}"
        )


def status(plan: Path, output: Path) -> int:
    """Print what a benchmark has done, which may be running. Returns 1 if a job has failed, else 0."""
    _, _, jobs = expanded(plan, output)
    found = show(jobs, output, running=output.is_dir() and _is_locked(output))
    return int(any(job.state == FAILED for job in found))


def expanded(file: Path, output: Path) -> tuple[Plan, list[Training], Jobs]:
    """The plan in a file after all checks, its trainings and its jobs."""
    plan = read_plan(file)
    with about(file):
        trainings = trainings_of(plan, file.resolve().parent)
        return plan, trainings, jobs_of(plan, trainings, adapted_of(plan, trainings), output)


def show(jobs: Jobs, output: Path, running: bool) -> list[JobStatus]:
    """Print the table of jobs, and those that are not finished; returns the states."""
    found = list(statuses(jobs, output, running))
    console = Console(markup=False, highlight=False, emoji=False)
    console.print(table(found))
    for line in unfinished(found, output):
        console.print(line, soft_wrap=True)
    for name in jobs["report"]:
        report = output / "report" / name / "report.html"
        if report.is_file():
            console.print(f"Report: {report}", soft_wrap=True)
    return found


def _is_locked(output: Path) -> bool:
    lock = FileLock(output / ".nnunet-dg.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False


@contextmanager
def _obeying_interrupts() -> Iterator[None]:
    """Programs that start here obey SIGINT, even if a shell has made this one ignore it, as in its background."""
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    if ignored:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        if ignored:
            signal.signal(signal.SIGINT, signal.SIG_IGN)


def _run(command: Sequence[str]) -> int:
    """Run Snakemake. If a signal ends this process, Snakemake gets Ctrl-C, upon which it ends its jobs."""
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])
    environment = WAITING | os.environ | {"PATH": path, "PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1"}
    with _obeying_interrupts():
        process = subprocess.Popen(command, env=environment)  # noqa: S603
    with process:
        try:
            return process.wait()
        except BaseException as error:
            if not isinstance(error, KeyboardInterrupt):  # which the terminal sends to Snakemake as well
                process.send_signal(signal.SIGINT)
            process.wait()
            raise
