"""What a benchmark has done: which jobs wait, run, are done or have failed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table
from rich.text import Text

from nnunet_dg.files import last_line
from nnunet_dg.names import printable

WAITS, RUNS, DONE, FAILED, INTERRUPTED = STATES = ("waits", "runs", "done", "failed", "interrupted")


@dataclass(frozen=True)
class JobStatus:
    """The state of a job, one of `STATES`, and the last line of its log if it has failed."""

    rule: str
    name: str
    state: str
    line: str = ""


def statuses(jobs: Mapping[str, Iterable[str]], output: Path, running: bool) -> Iterator[JobStatus]:
    """The state of each job.

    Args:
        jobs: Names of the jobs by rule.
        output: Folder of the benchmark.
        running: Whether the benchmark is running; if not, jobs that were running were interrupted.
    """
    for rule, names in jobs.items():
        for name in names:
            log = output / "logs" / rule / f"{name}.log"
            if (output / "done" / rule / name).is_file():
                yield JobStatus(rule, name, DONE)
            elif log.with_name(f"{log.name}.failed").is_file():
                yield JobStatus(rule, name, FAILED, last_line(log))
            elif log.with_name(f"{log.name}.running").is_file():
                yield JobStatus(rule, name, RUNS if running else INTERRUPTED)
            else:
                yield JobStatus(rule, name, WAITS)


def forget_interrupted(output: Path) -> None:
    """Let jobs wait that an earlier benchmark in the folder has left without an end."""
    for mark in (output / "logs").rglob("*.log.running"):
        mark.unlink()


def table(found: Iterable[JobStatus]) -> Table:
    """Number of jobs by rule and state."""
    jobs = list(found)
    present = [state for state in STATES if any(job.state == state for job in jobs)]
    result = Table("jobs", *present)
    for rule in dict.fromkeys(job.rule for job in jobs):
        counts = [sum(job.rule == rule and job.state == state for job in jobs) for state in present]
        result.add_row(rule, *(str(count or "") for count in counts))
    return result


def unfinished(found: Iterable[JobStatus], output: Path) -> list[Text]:
    """One line per job that runs, was interrupted or has failed; failed jobs with the last line of their log."""
    lines = []
    for job in found:
        if job.state in (WAITS, DONE):
            continue
        text = f"{job.state}: {job.rule} {job.name}"
        if job.state == FAILED:
            text += f"\n  {printable(job.line)}\n  {output / 'logs' / job.rule / f'{job.name}.log'}"
        lines.append(Text(text))
    return lines
