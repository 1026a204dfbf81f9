"""Measures a training step or a prediction operation by operation, in CPU seconds of one thread or in elapsed seconds.

    python benchmarks/operations.py nnUNetTrainerDropGen                   # a training step, patch 64^3, batch 2
    python benchmarks/operations.py nnUNetTrainerDropGen --predict --shapes
    python benchmarks/operations.py nnUNetTrainerTinyMIG --patch 48 --against nnUNetTrainer
    python benchmarks/operations.py nnUNetTrainerSgCG --shapes --elapsed   # all cores; the machine must be idle

PyTorch's profiler measures wall time, which says little on a machine that does other work. Here, each operation of the
forward and backward pass is measured by the CPU clock of the thread, or with ``--elapsed`` by the clock, with all
cores. Medians over the rounds are summed. With ``--against``, the table also has the same operation of another trainer,
measured in turns.
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Callable
from statistics import median
from typing import Any

import aside  # noqa: F401, before nnU-Net

# isort: split
import torch
from every_trainer import training
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Operations(TorchDispatchMode):
    """Inside this context, CPU seconds are summed for each operation.

    Attributes:
        seconds: Seconds by operation, or by operation and shapes of its tensors.
    """

    def __init__(self, shapes: bool, clock: Callable[[], float]) -> None:
        super().__init__()
        self.shapes = shapes
        self.clock = clock
        self.seconds: dict[str, float] = defaultdict(float)

    def __torch_dispatch__(self, operation: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        start = self.clock()
        result = operation(*args, **kwargs or {})
        duration = self.clock() - start
        name = str(operation).removeprefix("aten.").rsplit(".", 1)[0]
        if self.shapes:
            sizes = ["x".join(map(str, x.shape)) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
            name = " ".join([name, *sizes[:3]])
        self.seconds[name] += duration
        return result


def measured(call: Callable[[], object], shapes: bool, clock: Callable[[], float]) -> dict[str, float]:
    with Operations(shapes, clock) as operations:
        call()
    return operations.seconds


def medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    names = {name for seconds in rounds for name in seconds}
    return {name: median(seconds.get(name, 0.0) for seconds in rounds) for name in names}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trainer")
    parser.add_argument("--against", default="nnUNetTrainer", help="trainer of the second column")
    parser.add_argument("--predict", action="store_true", help="a prediction instead of a training step")
    parser.add_argument("--shapes", action="store_true", help="one row for each combination of shapes")
    parser.add_argument("--elapsed", action="store_true", help="elapsed seconds with all cores")
    parser.add_argument("--patch", type=int, default=64)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=20)
    arguments = parser.parse_args()
    if not arguments.elapsed:
        torch.set_num_threads(1)
    clock = time.perf_counter if arguments.elapsed else time.thread_time
    names = [arguments.trainer, arguments.against]
    steps = [training(name, 3, arguments.patch, arguments.batch) for name in names]
    calls = [step.predict if arguments.predict else step.train for step in steps]
    for call in calls:
        call()
    rounds = [[measured(call, arguments.shapes, clock) for call in calls] for _ in range(arguments.rounds)]
    ours, theirs = (medians([one[i] for one in rounds]) for i in range(2))
    total = sum(theirs.values())
    print(f"| operation | {names[0]}, s | {names[1]}, s | difference, share of {names[1]} |")
    print("| --- | --- | --- | --- |")
    rows = sorted(ours, key=lambda name: theirs.get(name, 0.0) - ours[name])[: arguments.rows]
    for name in rows:
        other = theirs.get(name, 0.0)
        print(f"| {name} | {ours[name]:.3f} | {other:.3f} | {(ours[name] - other) / total:+.3f} |")
    print(f"| all | {sum(ours.values()):.3f} | {total:.3f} | {sum(ours.values()) / total - 1:+.3f} |")


if __name__ == "__main__":
    main()
