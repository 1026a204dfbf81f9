"""Training steps, predictions and memory of the main trainers on the CPU, with their bounds.

    python benchmarks/step_bounds.py
    python benchmarks/step_bounds.py --quick

As step_cost.py, by the clock and with all cores, so the machine must be idle. Memory is what two steps add to the
largest resident set of a new process that has only built the trainer.
"""

import multiprocessing
import sys
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


def measures(quick: bool = False) -> list[Measure]:
    """The figures of this file, nnUNetTrainer's = 1."""
    patch, rounds = (32, 1) if quick else (64, 9)
    pairs = {row: step_of(row, patch) for row in (BASE, *STEP)}
    single = {row: step_of(row, patch, batch=1) for row in (BASE, *PREDICTION)}
    result = []
    for name, method, bounds, steps in (
        ("training step", "train", STEP, pairs),
        ("prediction", "predict", PREDICTION, pairs),
        ("prediction of a single patch", "predict", dict.fromkeys(PREDICTION), single),
    ):
        times = interleaved({row: getattr(steps[row], method) for row in (BASE, *bounds)}, rounds, CPU)
        for row, bound in bounds.items():
            ratio = median(t / base for t, base in zip(times[row], times[BASE], strict=True))
            result.append(Measure(f"{name}, {row}, {patch}^3", ratio, bound=bound))
    if not quick:
        used = {row: in_a_fresh_process(row, patch) for row in (BASE, *MEMORY)}
        result += [Measure(f"memory, {row}, {patch}^3", used[row] / used[BASE], bound=b) for row, b in MEMORY.items()]
    return result


if __name__ == "__main__":
    arguments = arguments_of(__doc__)
    show(measures(arguments.quick), arguments)
