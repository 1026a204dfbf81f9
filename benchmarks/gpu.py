"""Measures a training step of every trainer on a GPU, as nnU-Net runs it: autocast, gradient scaler, patches of 128^3.

    python benchmarks/gpu.py                                  # all trainers
    python benchmarks/gpu.py --compile nnUNetTrainerSgCG      # with torch.compile, as nnU-Net does by default
    python benchmarks/gpu.py --rehearse nnUNetTrainerSgCG     # tiny, and on the CPU if there is no GPU

For each trainer: milliseconds of a step, relative to nnUNetTrainer; peak memory of PyTorch's allocations, relative to
nnUNetTrainer; synchronizations of the host with the GPU in a step beyond nnUNetTrainer's, and where they are in our
code; milliseconds of predicting a batch, relative to nnUNetTrainer; seconds of the first step, which includes
compilation; the loss of the third step.

Each trainer runs in a process of its own. Trainers are measured in groups with nnUNetTrainer in each: one step of each
in turn, so that changes in the speed of the machine affect all of them. Ratios are computed per round, and their median
is reported. A trainer that fails has a row with its error. The exit status is 1 where one failed, or had a loss
or weights that are not finite.
"""

import argparse
import multiprocessing
import sys
import time
import traceback
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import entry_points, version
from math import isfinite
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import aside  # noqa: F401, before nnU-Net

# isort: split
import torch
from torch.utils.data._utils.pin_memory import pin_memory

PLAIN = "nnUNetTrainer"
MAIN = [f"nnUNetTrainer{name}" for name in ("DropGen", "DropGen_MIND", "DropGen_Synthetic", "SgCG", "TinyMIG")]  # first
GIB = 2**30


class Single(NamedTuple):
    """Measurements of one trainer that need no comparison."""

    first: float
    memory: float
    loss: float
    finite: bool
    synchronizations: int
    places: Counter[str]


class Training:
    """A trainer in a process of its own, which makes a step on request."""

    def __init__(self, name: str, patch: int, batch: int, compiled: bool) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["every_trainer", "nnunet_dg.trainers.baselines", "on_noise"])
        self.name, self.error = name, ""
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=serve, args=(other, name, patch, batch, compiled), daemon=True)
        self.process.start()
        other.close()

    def ask(self, request: str = "") -> Any:
        """The answer to a request, or None where the trainer has failed."""
        if self.error:
            return None
        try:
            if request:
                self.pipe.send(request)
            answer = self.pipe.recv()
        except (EOFError, OSError):
            answer = RuntimeError(f"the process ended with exit code {self.process.exitcode}")
        if isinstance(answer, Exception):
            self.error = f"{type(answer).__name__}: {answer}".splitlines()[0]
            return None
        return answer

    def stop(self) -> None:
        with suppress(OSError):
            self.pipe.send("stop")
        self.process.join()


def serve(pipe: Connection, name: str, patch: int, batch: int, compiled: bool) -> None:
    sys.stdout = sys.stderr  # notes of the methods; the table is printed by the parent
    try:
        requests = prepared(name, patch, batch, compiled)
        pipe.send(requests["measure"]())
        while (request := pipe.recv()) != "stop":
            pipe.send(requests[request]())
    except Exception as error:
        traceback.print_exc()
        pipe.send(RuntimeError(f"{type(error).__name__}: {error}"))


def prepared(name: str, patch: int, batch: int, compiled: bool) -> dict[str, Callable[[], Any]]:
    from every_trainer import training

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    start = time.perf_counter()
    step = training(name, 3, patch, batch, device, compiled)
    if device.type == "cuda":
        step.batch = pin_memory(step.batch)  # as nnU-Net's loaders give it

    def seconds(call: Callable[[], object]) -> float:
        synchronize()
        start = time.perf_counter()
        call()
        synchronize()
        return time.perf_counter() - start

    def measure() -> Single:
        step.train()
        synchronize()
        first = time.perf_counter() - start
        memory = peak_memory(step.train)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            if device.type == "cuda":
                torch.cuda.set_sync_debug_mode("warn")
            loss = step.train()
            if device.type == "cuda":
                torch.cuda.set_sync_debug_mode("default")
        seen = [w for w in caught if "synchroniz" in str(w.message)]
        ours = (w for w in seen if "nnunet_dg" in w.filename)
        places = Counter(f"{w.filename.rpartition('nnunet_dg/')[2]}:{w.lineno}" for w in ours)
        finite = all(bool(p.isfinite().all()) for p in step.trainer.network.parameters())
        step.predict()
        return Single(first, memory, loss, finite, len(seen), places)

    return {"measure": measure, "step": lambda: seconds(step.train), "predict": lambda: seconds(step.predict)}


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_memory(call: Callable[[], object]) -> float:
    """Peak of PyTorch's allocations on the GPU during a call, in GiB; without a GPU, that of the process."""
    if not torch.cuda.is_available():
        from step_cost import largest_resident_set

        call()
        return largest_resident_set()
    torch.cuda.reset_peak_memory_stats()
    call()
    return torch.cuda.max_memory_allocated() / GIB


def rows(names: list[str], patch: int, batch: int, rounds: int, compiled: bool) -> bool:
    """Measure nnUNetTrainer and the named trainers, and print their rows. Returns whether all were finite."""
    group = [Training(name, patch, batch, compiled) for name in [PLAIN, *names]]
    single = {training.name: training.ask() for training in group}
    times: dict[str, dict[str, list[float]]] = {"step": defaultdict(list), "predict": defaultdict(list)}
    for request, measured in times.items():
        for _ in range(rounds):
            for training in group:
                measured[training.name].append(training.ask(request) or float("nan"))
    plain = single[PLAIN]
    if plain is None:
        sys.exit(f"{PLAIN}: {group[0].error}")
    for training in group:
        own = single[training.name]
        if training.error or own is None:
            print(f"| `{training.name}` | {training.error} |", flush=True)
            continue
        ms, ratio = {}, {}
        for request, measured in times.items():
            ms[request] = 1000 * median(measured[training.name])
            ratio[request] = median(a / b for a, b in zip(measured[training.name], measured[PLAIN], strict=True))
        places = ", ".join(f"{place} x{n}" if n > 1 else place for place, n in own.places.most_common(6))
        print(
            f"| `{training.name}` | {ms['step']:.0f} | {ratio['step']:.2f} | {own.memory:.2f} | "
            f"{own.memory / plain.memory:.2f} | {own.synchronizations - plain.synchronizations:+d} | "
            f"{ms['predict']:.1f} | {ratio['predict']:.2f} | {own.first:.0f} | "
            f"{own.loss:.2f}{'' if own.finite else ', weights are not finite'} | {places} |",
            flush=True,
        )
    for training in group:
        training.stop()
    finite = all(own is not None and own.finite and isfinite(own.loss) for own in single.values())
    return finite and not any(training.error for training in group)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patch", type=int, default=128)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--group", type=int, default=6, help="trainers in memory at the same time")
    parser.add_argument("--compile", action="store_true", help="with torch.compile, as nnU-Net does by default")
    parser.add_argument("--rehearse", action="store_true", help="patches of 16^3, one round; on the CPU without a GPU")
    parser.add_argument("trainers", nargs="*", help="default: all")
    arguments = parser.parse_args()
    if arguments.rehearse:
        arguments.patch, arguments.rounds = 16, 1
    elif not torch.cuda.is_available():
        sys.exit("There is no GPU. benchmarks/every_trainer.py measures on the CPU.")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU, a rehearsal"
    ours = [e.name for e in entry_points(group="nnunetv2.trainers") if e.dist and e.dist.name == "nnunet-dg"]
    known = sorted(ours, key=lambda name: (name not in MAIN, name))
    names = [name for name in arguments.trainers or known if name != PLAIN]
    versions = ", ".join(f"{package} {version(package)}" for package in ("nnunet-dg", "nnunetv2", "torch"))
    print(
        f"\n{device}; {versions}; patch {arguments.patch}^3, batch {arguments.batch}, "
        f"{'compiled' if arguments.compile else 'not compiled'}, {arguments.rounds} rounds\n"
    )
    columns = "step, ms", "ratio", "memory, GiB", "ratio", "more syncs", "predict, ms", "ratio", "first step, s", "loss"
    print(f"| trainer | {' | '.join(columns)} | where the host waits |")
    print("| --- " * 11 + "|")
    groups = [names[i : i + arguments.group] for i in range(0, len(names), arguments.group)]
    size = arguments.patch, arguments.batch, arguments.rounds, arguments.compile
    worked = [rows(group, *size) for group in groups]
    sys.exit(not all(worked))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
