"""Compares training steps, predictions or memory of two versions of this package: did a trainer become slower?

    python benchmarks/before_after.py BEFORE/.venv/bin/python BEFORE AFTER/.venv/bin/python AFTER
    python benchmarks/before_after.py ... --measure prediction --patch 64
    python benchmarks/before_after.py ... --measure memory --patch 32 --features 8 --classes 2 16 118

BEFORE and AFTER are checkouts, each installed in its own environment. Every trainer runs in two processes, one per
version, which take turns step by step (A B A B ...), so that changes in the speed of the machine affect both. The ratio
is the median over the rounds. Steps use noise, late in the training, when every loss term has its full weight. Where
several sizes are given, there is a row for each of them. Memory is what two steps add to the peak memory of a process.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

from sizes import sized

ROWS = {  # the trainer, and settings in the plans
    "nnUNetTrainer": ("nnUNetTrainer", {}),
    "nnUNetTrainerDropGen": ("nnUNetTrainerDropGen", {}),
    "nnUNetTrainerDropGen_MIND": ("nnUNetTrainerDropGen_MIND", {}),
    "nnUNetTrainerDropGen_Synthetic": ("nnUNetTrainerDropGen_Synthetic", {}),
    "nnUNetTrainerDropGen_Paper": ("nnUNetTrainerDropGen_Paper", {}),
    "nnUNetTrainerSgCG": ("nnUNetTrainerSgCG", {}),
    "nnUNetTrainerSgCG, contrast only": ("nnUNetTrainerSgCG", {"sgcg": {"amplitude_mixup": False}}),
    "nnUNetTrainerTinyMIG": ("nnUNetTrainerTinyMIG", {"tinymig": {"teacher": "random:anatomix"}}),
    "nnUNetTrainerTinyMIG_Paper": ("nnUNetTrainerTinyMIG_Paper", {"tinymig": {"teacher": "random:anatomix"}}),
    "nnUNetTrainerDropGenSgCG": ("nnUNetTrainerDropGenSgCG", {}),
    "nnUNetTrainerDropGenTinyMIG": ("nnUNetTrainerDropGenTinyMIG", {"tinymig": {"teacher": "random:anatomix"}}),
}
LATE = 900  # epoch


MEASURES = {"step": "training step, s", "prediction": "prediction, s", "memory": "memory of two steps, GiB"}
SIZES = ("patch", "batch", "classes", "channels", "features")


def serve(checkout: str, row: str, sizes: Mapping[str, int], measure: str) -> None:
    """Measure once for every line on standard input, and print the figure."""
    sys.path.insert(0, os.path.join(checkout, "benchmarks"))
    import step_cost
    import torch
    from nnunetv2.utilities.find_class_by_name import recursive_find_python_class
    from on_noise import plans

    name, settings = ROWS[row]
    folder = os.path.join(os.path.dirname(sys.modules["nnunetv2"].__file__), "training", "nnUNetTrainer")
    trainer = recursive_find_python_class(folder, name, "nnunetv2.training.nnUNetTrainer")
    device = torch.device("cpu")
    content, dataset = sized(plans(sizes["patch"], sizes["batch"]).plans, *(sizes[name] for name in SIZES[2:]))
    step = step_cost.Step(trainer, content | {"nnunet_dg": settings}, device, dataset=dataset)
    step.trainer.current_epoch = LATE
    if measure == "memory":
        figure = lambda: added_memory(step.train)  # noqa: E731
    else:
        figure = lambda: step_cost.seconds(step.train if measure == "step" else step.predict, device)  # noqa: E731
    for _ in sys.stdin:
        print("figure", figure(), flush=True)


def added_memory(call: Callable[[], Any]) -> float:
    """GiB that two calls add to the largest resident set of this process, on Linux."""
    before = largest_resident_set()
    call()
    call()
    return largest_resident_set() - before


def largest_resident_set() -> float:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 2**20


class Version:
    """A process that runs one version of one trainer."""

    def __init__(self, python: str, checkout: str, row: str, sizes: Mapping[str, int], measure: str) -> None:
        command = [python, os.path.abspath(__file__), "--serve", checkout, row, json.dumps(sizes), measure]
        environment = os.environ | {"PYTHONPATH": ""}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env=environment,
        )  # fmt: skip

    def figure(self) -> float:
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("figure "):
                return float(line.split()[1])
        raise SystemExit(f"{' '.join(self.process.args)} ended.")

    def end(self) -> None:
        self.process.kill()


def main() -> None:
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2], sys.argv[3], json.loads(sys.argv[4]), sys.argv[5])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("before_python", "before", "after_python", "after"):
        parser.add_argument(name)
    parser.add_argument("--measure", default="step", choices=MEASURES, help="default: step")
    parser.add_argument("--rounds", type=int, default=7, help="measurements of each version; memory: 1 (default: 7)")
    parser.add_argument("--patch", type=int, nargs="+", default=[48], help="voxels a side (default: 48)")
    parser.add_argument("--batch", type=int, nargs="+", default=[2], help="1 is what nnU-Net predicts (default: 2)")
    parser.add_argument("--classes", type=int, nargs="+", default=[3], help="with background (default: 3)")
    parser.add_argument("--channels", type=int, nargs="+", default=[1], help="of the image (default: 1)")
    parser.add_argument("--features", type=int, nargs="+", default=[32], help="of the first stage (default: 32)")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=ROWS, help="default: all")
    a = parser.parse_args()
    checkouts = ((a.before_python, a.before), (a.after_python, a.after))
    ranges = {name: getattr(a, name) for name in SIZES}
    varied = [name for name, values in ranges.items() if len(values) > 1]
    heads = [MEASURES[a.measure], *varied, "before", "after", "after / before"]
    print(f"| {' | '.join(heads)} |\n|{' --- |' * len(heads)}")
    for row, *values in product(a.rows, *ranges.values()):
        sizes = dict(zip(SIZES, values, strict=True))
        rounds = measured(checkouts, row, sizes, a.measure, a.rounds)
        before, after = (median(figures) for figures in zip(*rounds, strict=True))
        ratio = median(after / before for before, after in rounds)
        cells = [row, *(str(sizes[name]) for name in varied), f"{before:.3f}", f"{after:.3f}", f"{ratio:.2f}"]
        print(f"| {' | '.join(cells)} |", flush=True)


def measured(
    checkouts: tuple[tuple[str, str], ...], row: str, sizes: Mapping[str, int], measure: str, rounds: int
) -> list[list[float]]:
    """The figures of both versions in each round. Memory has one round, since only the first steps add to it."""
    versions = [Version(*checkout, row, sizes, measure) for checkout in checkouts]
    try:
        if measure == "memory":
            return [[version.figure() for version in versions]]
        return [[version.figure() for version in versions] for _ in range(rounds + 2)][2:]
    finally:
        for version in versions:
            version.end()


if __name__ == "__main__":
    main()
