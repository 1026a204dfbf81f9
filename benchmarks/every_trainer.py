"""Measures time and memory of a training step of every trainer relative to nnUNetTrainer, on noise.

    python benchmarks/every_trainer.py                 # patches of 48^3, nine rounds, on the CPU
    python benchmarks/every_trainer.py --dims 2 --patch 128 --rounds 5
    python benchmarks/every_trainer.py --cpu-time     # for a machine that does other work meanwhile
    python benchmarks/every_trainer.py nnUNetTrainerTinyMIG nnUNetTrainerTinyMIG:tinymig.alignment=cwd

The table also says whether a model can be exported for plain nnU-Net; if not, predicting needs this package. Steps are
interleaved and ratios computed per round; their medians are reported. To save memory, groups of trainers are timed one
after the other, each group with nnUNetTrainer. Memory is the largest resident set of a fresh process that makes two
steps, less that of a process that only builds nnUNetTrainer's network. Trainers that are not available for the number
of axes are left out. Each batch has one case of each of three domains.
"""

import argparse
import multiprocessing
import os
import platform
import sys
import time
from contextlib import redirect_stdout
from importlib.metadata import entry_points, version
from pathlib import Path
from statistics import median
from typing import Any

import aside  # noqa: F401, before nnU-Net

# isort: split
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from step_cost import Step, interleaved, largest_resident_set

from nnunet_dg.errors import UserError
from nnunet_dg.files import write_json

DATASET_NAME = "Dataset999_Benchmark"
LEAST = 0.1  # GiB of nnUNetTrainer, below which memory is not compared
GROUP = 8  # trainers that are timed together
PLAIN = "nnUNetTrainer"
CPU = torch.device("cpu")
WITHOUT_DOWNLOADS = {  # by number of axes
    3: {
        "tinymig": {"teacher": "random:anatomix"},
        "teacher": {"teacher": "random:anatomix"},
        "anatomix_finetune": {"initial": "random"},
    },
    2: {
        "tinymig": {"teacher": "random:vit_tiny_patch16_224"},
        "teacher": {"teacher": "random:vit_tiny_patch16_224"},
    },
}


def planned(dims: int, patch: int, batch: int) -> dict[str, Any]:
    """Plans of nnU-Net's default network, with settings for random weights, which cost as much as trained ones."""
    from on_noise import plans

    content = plans(patch, batch).plans
    if dims == 2:
        configuration = content["configurations"].pop("3d_fullres")
        network = configuration["architecture"]["arch_kwargs"]
        for name in ("kernel_sizes", "strides"):
            network[name] = [sizes[:2] for sizes in network[name]]
        network["conv_op"], network["norm_op"] = (network[k].replace("3d", "2d") for k in ("conv_op", "norm_op"))
        configuration |= {"patch_size": [patch] * 2, "spacing": [1.0] * 2}
        content["configurations"]["2d"] = configuration
    return content


def three_domains() -> None:
    """The noise becomes that of three cases from three domains, so that a batch of three has all of them."""
    import on_noise

    on_noise.CASES = ("case_0", "case_1", "case_2")
    folder = Path(os.environ["nnUNet_preprocessed"], DATASET_NAME)  # noqa: SIM112
    folder.mkdir(parents=True, exist_ok=True)
    domains = {case: f"domain of {case}" for case in on_noise.CASES}
    write_json(folder / "domains.json", domains)  # whole at any moment: other processes read it


def training(row: str, dims: int, patch: int, batch: int, device: torch.device = CPU, compiled: bool = False) -> Step:
    """A trainer that is ready for steps, by its name, or by name and setting as ``NAME:METHOD.SETTING=VALUE``."""
    three_domains()
    name, _, change = row.partition(":")
    trainer: type = nnUNetTrainer
    content = planned(dims, patch, batch)
    if name != "nnUNetTrainer":
        (entry,) = (e for e in entry_points(group="nnunetv2.trainers") if e.name == name)
        trainer = entry.load()
        used = {method.key for method in trainer.methods}
        content["nnunet_dg"] = {k: dict(v) for k, v in WITHOUT_DOWNLOADS[dims].items() if k in used}
    if change:
        place, _, value = change.partition("=")
        method, _, setting = place.partition(".")
        content["nnunet_dg"].setdefault(method, {})[setting] = value
    with redirect_stdout(sys.stderr):  # notes of the methods
        return Step(trainer, content, device, compiled, "2d" if dims == 2 else "3d_fullres")


def memory(name: str, dims: int, patch: int, batch: int, steps: int = 2) -> float:
    """Largest resident set in GiB of this process after some training steps."""
    with redirect_stdout(sys.stderr):
        step = training(name, dims, patch, batch)
        for _ in range(steps):
            step.train()
    return largest_resident_set()


def in_a_fresh_process(*arguments: Any) -> float:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(memory, arguments)


def timed(names: list[str], size: tuple[int, int, int], rounds: int, clock: Any) -> dict[str, tuple[float, Step]]:
    """The ratio of each trainer's step to that of nnUNetTrainer, and the trainer. Those that refuse are left out."""
    steps = {PLAIN: training(PLAIN, *size)}
    for name in names:
        try:
            steps[name] = training(name, *size)
        except (UserError, NotImplementedError) as error:
            print(f"{name}: {error}")  # to standard error, with the notes of the methods
    times = interleaved({name: step.train for name, step in steps.items()}, rounds, CPU, clock)
    ratios = {name: median(t / base for t, base in zip(times[name], times[PLAIN], strict=True)) for name in steps}
    return {name: (ratios[name], step) for name, step in steps.items()}


def row(name: str, ratio: float, memory_ratio: str, trainer: nnUNetTrainer) -> str:
    """A line of the table."""
    changed = [method for method in getattr(trainer, "methods", ()) if method.changes_network]
    plain = all(method.folds_at_export for method in changed)
    exported = "yes" if plain else "no"
    needs = "until it is exported" if changed and plain else "yes" if changed else "no"
    return f"| `{name}` | {ratio:.2f} | {memory_ratio} | {exported} | {needs} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dims", type=int, choices=(2, 3), default=3)
    parser.add_argument("--patch", type=int, default=48)
    parser.add_argument("--batch", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--cpu-time", action="store_true", help="CPU seconds instead of elapsed ones: one thread")
    parser.add_argument("trainers", nargs="*", help="NAME or NAME:METHOD.SETTING=VALUE; default: all")
    arguments = parser.parse_args()
    size = arguments.dims, arguments.patch, arguments.batch
    ours = sorted(e.name for e in entry_points(group="nnunetv2.trainers") if e.dist and e.dist.name == "nnunet-dg")
    clock = time.perf_counter
    if arguments.cpu_time:
        torch.set_num_threads(1)
        clock = time.process_time
    versions = ", ".join(f"{package} {version(package)}" for package in ("nnunet-dg", "nnunetv2", "torch"))
    print(
        f"\n{platform.machine()}, {torch.get_num_threads()} threads; {versions}; {arguments.dims}-D, patch "
        f"{arguments.patch}, batch {arguments.batch}, {arguments.rounds} rounds\n"
    )
    idle = in_a_fresh_process(PLAIN, *size, 0)
    used = in_a_fresh_process(PLAIN, *size) - idle
    print("| trainer | step | memory | exported for plain nnU-Net | needs this package to predict |")
    print("| --- | --- | --- | --- | --- |")
    print(f"| `{PLAIN}` | 1.00 | 1.00 | is plain | no |")
    names = arguments.trainers or ours
    for start in range(0, len(names), GROUP):
        with redirect_stdout(sys.stderr):
            measured = timed(names[start : start + GROUP], size, arguments.rounds, clock)
        for name, (ratio, step) in measured.items():
            if name == PLAIN:
                continue
            compared = used > LEAST
            memory_ratio = f"{(in_a_fresh_process(name, *size) - idle) / used:.2f}" if compared else "too small"
            print(row(name, ratio, memory_ratio, step.trainer), flush=True)


if __name__ == "__main__":
    main()
