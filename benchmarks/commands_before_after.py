"""Compares whole commands of two versions of this package, interleaved: help, evaluate, report, and `import torch`.

    python benchmarks/commands_before_after.py BEFORE/.venv/bin AFTER/.venv/bin

The arguments are folders of programs: each version is installed in an environment of its own. Every command runs in new
processes of both versions in turns (A B A B ...). Times are CPU seconds of a process and those that it starts; the
ratio is the median over the rounds.
"""

import argparse
import subprocess
import tempfile
from pathlib import Path
from statistics import median

import aside  # noqa: F401, before nnU-Net

# isort: split
import numpy as np
from evaluate_cost import write_cases
from import_cost import CODE, children, environment
from report_cost import write_dataset, write_results

IMPORTS = 20  # processes of each version


def cpu_seconds(command: list[str]) -> float:
    """CPU seconds of a command, which must succeed."""
    before = children()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return children() - before


def added_to_import(version: Path) -> float:
    """CPU seconds that a version adds to ``import torch``, in a new process."""
    command = [str(version / "python"), "-W", "ignore", "-c", CODE]
    printed = subprocess.check_output(command, env=environment(), cwd=tempfile.gettempdir(), text=True)
    return float(printed.split()[0]) / 1000


def rows(folder: Path, evaluated: int, reported: int) -> dict[str, list[str]]:
    """The commands by name, after writing their input to a folder; the program is the first word."""
    for labels, cases in ((3, evaluated), (118, max(1, evaluated // 5))):
        write_cases(folder / str(labels), labels, cases, 128 if evaluated > 2 else 16)
    folds, rng = write_dataset(reported), np.random.default_rng(0)
    results = [folder / f"{name}__nnUNetPlans__3d_fullres" for name in ("nnUNetTrainer", *(f"T{n}" for n in range(9)))]
    for path in results:
        write_results(path, folds, rng)
    report = ["nnunet-dg", "report", *map(str, results), "-o", str(folder / "report")]
    commands = {"nnunet-dg --help": ["nnunet-dg", "--help"]}
    for labels in ("3", "118"):
        folders = [str(folder / labels / part) for part in ("truths", "predictions")]
        commands[f"evaluate, {labels} labels"] = ["nnunet-dg", "evaluate", "-np", "1", *folders]
    return commands | {f"report, 10 x 5 x {reported} cases": report}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--evaluated", type=int, default=20, help="cases to evaluate (default: %(default)s)")
    parser.add_argument("--reported", type=int, default=500, help="cases of a fold to report (default: %(default)s)")
    a = parser.parse_args()
    print("| command | before, CPU s | after, CPU s | after / before |\n| --- | --- | --- | --- |")
    show("added to import torch", [[added_to_import(v) for v in (a.before, a.after)] for _ in range(IMPORTS + 1)])
    with tempfile.TemporaryDirectory() as folder:
        for name, (program, *words) in rows(Path(folder), a.evaluated, a.reported).items():
            commands = [[str(version / program), *words] for version in (a.before, a.after)]
            show(name, [[cpu_seconds(command) for command in commands] for _ in range(a.rounds + 1)])


def show(name: str, rounds: list[list[float]]) -> None:
    """A line of the table. The first round fills caches."""
    before, after = (median(times) for times in zip(*rounds[1:], strict=True))
    print(f"| {name} | {before:.4g} | {after:.4g} | {median(y / x for x, y in rounds[1:]):.2f} |", flush=True)


if __name__ == "__main__":
    main()
