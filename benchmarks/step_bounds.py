"""Training steps, predictions and memory of the main trainers on the CPU, with their bounds.

    python benchmarks/step_bounds.py
    python benchmarks/step_bounds.py --quick

As step_cost.py, by the clock and with all cores, so the machine must be idle. Each trainer has a process of its own, as
in a training, and the processes take turns: in one process with other trainers, each of them is slower. Memory is what
two steps add to the largest resident set of a new process that has only built the trainer.
"""

import multiprocessing
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from statistics import median

import aside  # noqa: F401, before nnU-Net

# isort: split
import torch
from measures import Measure, arguments_of, show
from on_noise import plans
from step_cost import ROWS, Step, interleaved, largest_resident_set

BASE = "nnUNetTrainer"
STEP = {
    "nnUNetTrainerDropGen": 1.12,
    "nnUNetTrainerDropGen_MIND": 1.10,
    "nnUNetTrainerDropGen_Synthetic": 1.12,
    "nnUNetTrainerSgCG, contrast only": 1.10,
    "nnUNetTrainerSgCG": 2.45,
    "nnUNetTrainerTinyMIG": 2.9,
}
PREDICTION = {"nnUNetTrainerDropGen": 1.20, "nnUNetTrainerDropGen_MIND": None, "nnUNetTrainerDropGen_Synthetic": 1.20}
MEMORY = {"nnUNetTrainerSgCG": 1.6, "nnUNetTrainerTinyMIG": 1.9}
CPU = torch.device("cpu")


def step_of(row: str, patch: int, batch: int = 2) -> Step:
    trainer, settings = ROWS[row]
    with redirect_stdout(sys.stderr):  # notes of the methods
        return Step(trainer, plans(patch, batch).plans | {"nnunet_dg": settings}, CPU)


def memory(row: str, patch: int) -> float:
    """GiB that two steps add to the largest resident set of this process."""
    step = step_of(row, patch)
    before = largest_resident_set()
    step.train()
    step.train()
    return largest_resident_set() - before


def in_a_fresh_process(row: str, patch: int) -> float:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(memory, (row, patch))


class InOwnProcess:
    """A trainer in a process of its own."""

    def __init__(self, row: str, patch: int, batch: int) -> None:
        self.pool = multiprocessing.get_context("spawn").Pool(1, _build, (row, patch, batch))

    def train(self) -> None:
        self.pool.apply(_call, ("train",))

    def predict(self) -> None:
        self.pool.apply(_call, ("predict",))


_built: list[Step] = []  # in the process of a trainer


def _build(row: str, patch: int, batch: int) -> None:
    _built.append(step_of(row, patch, batch))


def _call(method: str) -> None:
    getattr(_built[0], method)()


def compared(
    name: str, method: str, bounds: Mapping[str, float | None], sizes: tuple[int, int], rounds: int
) -> list[Measure]:
    """Measures of steps or predictions, nnUNetTrainer's = 1, for a patch and a batch size."""
    steps = {row: InOwnProcess(row, *sizes) for row in (BASE, *bounds)}
    times = interleaved({row: getattr(step, method) for row, step in steps.items()}, rounds, CPU)
    for step in steps.values():
        step.pool.terminate()
    ratios = {row: median(t / base for t, base in zip(times[row], times[BASE], strict=True)) for row in bounds}
    return [Measure(f"{name}, {row}, {sizes[0]}^3", ratios[row], bound=bound) for row, bound in bounds.items()]


def measures(quick: bool = False) -> list[Measure]:
    """The figures of this file, nnUNetTrainer's = 1."""
    patch, rounds = (32, 1) if quick else (64, 9)
    result = [
        *compared("training step", "train", STEP, (patch, 2), rounds),
        *compared("prediction", "predict", PREDICTION, (patch, 2), rounds),
        *compared("prediction of a single patch", "predict", dict.fromkeys(PREDICTION), (patch, 1), rounds),
    ]
    if not quick:
        used = {row: in_a_fresh_process(row, patch) for row in (BASE, *MEMORY)}
        result += [Measure(f"memory, {row}, {patch}^3", used[row] / used[BASE], bound=b) for row, b in MEMORY.items()]
    return result


if __name__ == "__main__":
    arguments = arguments_of(__doc__)
    show(measures(arguments.quick), arguments)
