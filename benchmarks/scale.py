"""Measures how time and memory of a training step grow with classes, patch size and image channels.

    python benchmarks/scale.py           # 2, 16, 118 classes; 32^3 to 96^3; 1 to 4 channels
    python benchmarks/scale.py --quick
    python benchmarks/scale.py --only classes --no-memory

Steps are `train_step` on noise in CPU seconds with one thread, interleaved; the network is nnU-Net's with 8 features in
its first stage. For each series, the exponent e of the fit cost = c * size^e is shown, with the number of voxels as
the size of a patch, the exponent of the ratio to nnUNetTrainer, and the exponent from the second largest to the largest
size, where fixed costs hide least. A cost that grows faster than linearly has an exponent above 1. Memory is what two
steps add to the largest resident set of a new process that has only built the trainer.
"""

import argparse
import multiprocessing
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from statistics import median

import aside  # noqa: F401, before nnU-Net

# isort: split
import numpy as np
import torch
from measures import Measure, show
from on_noise import plans
from sizes import sized
from step_cost import ROWS, Step, interleaved, largest_resident_set

CPU = torch.device("cpu")
TRAINERS = ("nnUNetTrainer", "nnUNetTrainerDropGen_MIND", "nnUNetTrainerSgCG", "nnUNetTrainerTinyMIG")
FEATURES = 8
USUAL = {"classes": 3, "patch": 32, "channels": 1}
SERIES = {"classes": (2, 16, 118), "patch": (32, 48, 64, 96), "channels": (1, 2, 4)}
QUICK = {"classes": (2, 16), "patch": (32, 48), "channels": (1, 2)}
LINEAR = 1.05  # exponents above are flagged; the rest is noise of the measurement


def step_of(trainer: str, classes: int, patch: int, channels: int) -> Step:
    """A trainer that is ready for steps on noise; ``classes`` includes the background."""
    content, dataset = sized(plans(patch, batch=2).plans, classes, channels, FEATURES)
    kind, settings = ROWS[trainer]
    with redirect_stdout(sys.stderr):  # notes of the methods
        return Step(kind, content | {"nnunet_dg": settings}, CPU, dataset=dataset)


def memory(trainer: str, sizes: Mapping[str, int]) -> float:
    """GiB that two steps add to the largest resident set of this process."""
    torch.set_num_threads(1)
    step = step_of(trainer, **sizes)
    before = largest_resident_set()
    step.train()
    step.train()
    return largest_resident_set() - before


def in_a_fresh_process(trainer: str, sizes: Mapping[str, int]) -> float:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(memory, (trainer, sizes))


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """The slope of a line through the logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


class Growth:
    """The costs of all trainers in one series, ``{trainer: [cost of each size]}``."""

    def __init__(self, name: str, values: Sequence[int], rounds: int, with_memory: bool) -> None:
        self.name, self.values = name, values
        self.sizes = [value**3 if name == "patch" else value for value in values]
        self.seconds: dict[str, list[float]] = {trainer: [] for trainer in TRAINERS}
        self.gib: dict[str, list[float]] = {trainer: [] for trainer in TRAINERS}
        for value in values:
            sizes = USUAL | {name: value}
            steps = {trainer: step_of(trainer, **sizes) for trainer in TRAINERS}
            calls = {trainer: step.train for trainer, step in steps.items()}
            for trainer, times in interleaved(calls, rounds, CPU, time.process_time).items():
                self.seconds[trainer].append(median(times))
                if with_memory:
                    self.gib[trainer].append(in_a_fresh_process(trainer, sizes))

    def print(self) -> None:
        """A Markdown table of the costs and the exponents."""
        self._print("CPU seconds of a step", "s", self.seconds)
        if any(self.gib.values()):
            self._print("memory of a step", "GiB", self.gib)

    def _print(self, title: str, unit: str, costs: Mapping[str, Sequence[float]]) -> None:
        columns = [f"{value}{'^3' if self.name == 'patch' else ''}, {unit}" for value in self.values]
        heads = [f"{title}, by {self.name}", *columns, "exponent", "of the ratio", "at the largest", ""]
        print(f"\n| {' | '.join(heads)} |\n|{' --- |' * len(heads)}")
        for trainer, values in costs.items():
            e, relative, last = self.exponents(costs, trainer)
            numbers = [*(f"{value:.3f}" for value in values), *(f"{number:.2f}" for number in (e, relative, last))]
            print(f"| {' | '.join([trainer, *numbers, 'above linear' if max(e, last) > LINEAR else ''])} |", flush=True)

    def exponents(self, costs: Mapping[str, Sequence[float]], trainer: str) -> tuple[float, float, float]:
        """The exponents of a trainer's cost, of its ratio to nnUNetTrainer's, and between the two largest sizes."""
        e, base = (exponent(self.sizes, costs[name]) for name in (trainer, TRAINERS[0]))
        return e, e - base, exponent(self.sizes[-2:], costs[trainer][-2:])

    def measures(self) -> list[Measure]:
        """The largest exponents of time and memory, of all trainers."""
        kinds = {"time": self.seconds, "memory": self.gib} if any(self.gib.values()) else {"time": self.seconds}
        return [
            Measure(
                f"exponent of the {kind} of a step, by {self.name}, {max(es, key=lambda t: es[t])}",
                max(es.values()), "", LINEAR,
            )
            for kind, costs in kinds.items()
            for es in [{trainer: max(self.exponents(costs, trainer)[::2]) for trainer in TRAINERS}]
        ]  # fmt: skip


def measures(
    quick: bool = False, only: Sequence[str] = tuple(SERIES), rounds: int = 5, with_memory: bool = True
) -> list[Measure]:
    """The figures of this file. Prints a table for each series, too."""
    torch.set_num_threads(1)
    result = []
    for name in only:
        growth = Growth(name, (QUICK if quick else SERIES)[name], 1 if quick else rounds, with_memory and not quick)
        growth.print()
        result += growth.measures()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smoke test with small sizes")
    parser.add_argument("--only", nargs="+", choices=SERIES, default=tuple(SERIES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--json", type=Path, help="file to which the figures are written as well")
    arguments = parser.parse_args()
    show(measures(arguments.quick, arguments.only, arguments.rounds, not arguments.no_memory), arguments)


if __name__ == "__main__":
    main()
