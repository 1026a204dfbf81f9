"""Measures what the installed package adds to `import torch`, and how long the help of the command line takes.

    python benchmarks/import_cost.py           # medians of 20 new processes each
    python benchmarks/import_cost.py --quick

PyTorch scans the entry points of all installed packages with or without this one, so what is added is reading this
package's own entry points, and loading and calling ours. Compiled files (.pyc) are used, as after an installation.
Times are CPU seconds, since others on the machine lengthen elapsed time; elapsed medians are reported without a bound.
"""

import os
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from statistics import median

from measures import Measure, arguments_of, show

CODE = """
import time, torch
from importlib.metadata import distribution
cpu, elapsed = time.process_time(), time.perf_counter()
(entry_point,) = distribution("nnunet-dg").entry_points.select(group="torch.backends")
entry_point.load()()
print(1000 * (time.process_time() - cpu), 1000 * (time.perf_counter() - elapsed))
"""
COMMANDS = (
    "doctor", "env", "methods", "cite", "weights", "export", "pretrain", "splits", "evaluate", "report", "stress",
    "stability", "predict", "benchmark", "demo",
)  # fmt: skip


def environment() -> dict[str, str]:
    """Without PyTorch's autoload, so that our entry point has not been loaded yet, and with compiled files."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return kept | {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}


def added_to_import(processes: int) -> list[tuple[float, float]]:
    """Milliseconds added to `import torch`, CPU and elapsed, in new processes, after one that compiles the files."""
    command = [sys.executable, "-W", "ignore", "-c", CODE]
    runs = [
        subprocess.check_output(command, env=environment(), cwd=tempfile.gettempdir(), text=True)
        for _ in range(processes + 1)
    ]
    return [(float(cpu), float(elapsed)) for cpu, elapsed in map(str.split, runs[1:])]


def children() -> float:
    """CPU seconds of all processes that this one started and that have ended."""
    times = os.times()
    return times.children_user + times.children_system


def help_of(command: list[str], processes: int) -> tuple[float, float]:
    """Median seconds of ``nnunet-dg ... --help``, CPU and elapsed."""
    program = str(Path(sysconfig.get_path("scripts"), "nnunet-dg"))
    runs = []
    for _ in range(processes):
        cpu, elapsed = children(), time.perf_counter()
        subprocess.run([program, *command, "--help"], env=environment(), stdout=subprocess.DEVNULL, check=True)
        runs.append((children() - cpu, time.perf_counter() - elapsed))
    return median(cpu for cpu, _ in runs), median(elapsed for _, elapsed in runs)


def measures(quick: bool = False) -> list[Measure]:
    """The figures of this file."""
    processes = 2 if quick else 20
    added = added_to_import(processes)
    cpu, elapsed = help_of([], processes)
    slowest = max(help_of([command], 1 if quick else 5)[0] for command in COMMANDS)
    return [
        Measure("added to import torch, CPU", median(cpu for cpu, _ in added), "ms", 2),
        Measure("added to import torch, elapsed", median(elapsed for _, elapsed in added), "ms"),
        Measure("nnunet-dg --help, CPU", cpu, "s", 0.3),
        Measure("nnunet-dg --help, elapsed", elapsed, "s"),
        Measure("nnunet-dg COMMAND --help, CPU, the slowest", slowest, "s", 0.3),
    ]


if __name__ == "__main__":
    arguments = arguments_of(__doc__)
    show(measures(arguments.quick), arguments)
