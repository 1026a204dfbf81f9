"""Measures the cost of our trainers relative to nnUNetTrainer, and of the extractor relative to a plain implementation.

    python benchmarks/step_cost.py                 # CPU, and CUDA where there is one
    python benchmarks/step_cost.py --rounds 15 --patch 64 --device cpu

Steps are interleaved (A B C A B C ...), so that changes in the speed of the machine affect all of them. Ratios are
computed per round, and their median is reported. A training step is the trainer's own `train_step` on noise, without
nnU-Net's augmentation, which runs in other processes. The extractor's weights are random, since its cost does not
depend on them.
"""

import argparse
import multiprocessing
import os
import platform
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import aside  # noqa: F401, before nnU-Net

# isort: split
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from on_noise import DATASET, batch, initialized, plans
from plain_anatomix import PlainAnatomix, random_weights

from nnunet_dg.extractors.anatomix import Anatomix
from nnunet_dg.host import unwrap
from nnunet_dg.trainers.nnUNetTrainerDropGen import (
    nnUNetTrainerDropGen,
    nnUNetTrainerDropGen_MIND,
    nnUNetTrainerDropGen_Synthetic,
)
from nnunet_dg.trainers.nnUNetTrainerSgCG import nnUNetTrainerSgCG
from nnunet_dg.trainers.nnUNetTrainerTinyMIG import nnUNetTrainerTinyMIG
from nnunet_dg.training.trainer import MethodsTrainer


def tinymig(*ablate: str, **settings: Any) -> dict[str, Any]:
    """Settings with a random teacher, which costs as much as a trained one, and with parts of the method left out."""
    return {"tinymig": {"teacher": "random:anatomix", "ablate": ablate} | settings}


ROWS: dict[str, tuple[type[nnUNetTrainer], dict[str, Any]]] = {  # trainer, and settings in the plans
    "nnUNetTrainer": (nnUNetTrainer, {}),
    "nnUNetTrainerDropGen": (nnUNetTrainerDropGen, {}),
    "nnUNetTrainerDropGen_MIND": (nnUNetTrainerDropGen_MIND, {}),
    "nnUNetTrainerDropGen_Synthetic": (nnUNetTrainerDropGen_Synthetic, {}),
    "nnUNetTrainerSgCG, contrast only": (nnUNetTrainerSgCG, {"sgcg": {"amplitude_mixup": False}}),
    "nnUNetTrainerSgCG": (nnUNetTrainerSgCG, {}),
    "nnUNetTrainerTinyMIG, styled passes only": (
        nnUNetTrainerTinyMIG,
        tinymig("lra", "co_training", statistics="dsu"),
    ),
    "nnUNetTrainerTinyMIG, teacher and its labels only": (nnUNetTrainerTinyMIG, tinymig("lra", "ufdm")),
    "nnUNetTrainerTinyMIG, teacher and alignment only": (nnUNetTrainerTinyMIG, tinymig("co_training", "ufdm")),
    "nnUNetTrainerTinyMIG": (nnUNetTrainerTinyMIG, tinymig()),
}


class Step:
    """A trainer that is ready for training steps on noise."""

    def __init__(
        self,
        trainer: type[nnUNetTrainer],
        plans: dict[str, Any],
        device: torch.device,
        compiled: bool = False,
        configuration_name: str = "3d_fullres",
        dataset: dict[str, Any] = DATASET,
    ) -> None:
        os.environ["nnUNet_compile"] = str(compiled)  # noqa: SIM112
        self.trainer = initialized(trainer, plans, device, configuration_name, dataset)
        network = unwrap(self.trainer.network)
        if isinstance(getattr(network, "extractor", None), Anatomix):
            network.extractor.load_published(random_weights())
        if isinstance(self.trainer, MethodsTrainer):
            self.trainer.prepare_training()
        self.trainer.current_epoch = self.trainer.num_epochs - 1  # every loss term has its full weight
        self.batch = batch(self.trainer)
        self.device = device

    def train(self) -> float:
        """Make a step. Returns its loss."""
        self.trainer.network.train()
        self.trainer.set_deep_supervision_enabled(self.trainer.enable_deep_supervision)
        return float(self.trainer.train_step(self.batch)["loss"])

    def predict(self) -> None:
        self.trainer.network.eval()
        self.trainer.set_deep_supervision_enabled(False)
        with torch.inference_mode(), torch.autocast("cuda") if self.device.type == "cuda" else nullcontext():
            self.trainer.network(self.batch["data"].to(self.device))


def seconds(call: Callable[[], object], device: torch.device, clock: Callable[[], float] = time.perf_counter) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = clock()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def interleaved(
    calls: dict[str, Callable[[], object]],
    rounds: int,
    device: torch.device,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each call in each round, after a warm-up round."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(rounds + 1):
        for name, call in calls.items():
            duration = seconds(call, device, clock)
            if i:
                times[name].append(duration)
    return times


def report(title: str, times: dict[str, list[float]], memory: dict[str, float] | None = None) -> None:
    """A Markdown table: median seconds, and the median ratio to the first row."""
    base = next(iter(times.values()))
    print(f"\n| {title} | seconds | ratio | {'peak memory, GiB |' if memory else ''}")
    print(f"| --- | --- | --- | {'--- |' if memory else ''}")
    for name, durations in times.items():
        ratio = median(t / b for t, b in zip(durations, base, strict=True))
        gib = f"{memory[name]:.2f} |" if memory else ""
        print(f"| {name} | {median(durations):.3f} | {ratio:.2f} | {gib}", flush=True)


def largest_resident_set() -> float:
    """The largest resident set of this process so far, in GiB, on Linux.

    The value of `resource.getrusage` would be at least that of the process that started this one.
    """
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 2**20


def peak_memory(
    trainer: type, plans: dict[str, Any], device: torch.device, configuration_name: str, dataset: dict[str, Any]
) -> float:
    """Peak memory in GiB of two training steps: the process's resident set on CPU, PyTorch's allocations on CUDA."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    step = Step(trainer, plans, device, configuration_name=configuration_name, dataset=dataset)
    step.train()
    step.train()
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return largest_resident_set()


def peak_memory_in_a_fresh_process(
    trainer: type,
    plans: dict[str, Any],
    device: torch.device,
    configuration_name: str = "3d_fullres",
    dataset: dict[str, Any] = DATASET,
) -> float:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(peak_memory, (trainer, plans, device, configuration_name, dataset))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--patch", type=int, default=64)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: both, if CUDA is available")
    parser.add_argument("--compile", action="store_true", help="also measure with torch.compile (CUDA)")
    arguments = parser.parse_args()
    both = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    for name in [arguments.device] if arguments.device else both:
        device = torch.device(name)
        hardware = (
            torch.cuda.get_device_name()
            if name == "cuda"
            else f"{platform.machine()}, {torch.get_num_threads()} threads"
        )
        versions = ", ".join(f"{package} {version(package)}" for package in ("nnunet-dg", "nnunetv2", "torch"))
        print(
            f"\n{name}: {hardware}; {versions}; "
            f"patch {arguments.patch}^3, batch {arguments.batch}, {arguments.rounds} rounds"
        )
        for compiled in (False, True) if arguments.compile and name == "cuda" else (False,):
            plain = plans(arguments.patch, arguments.batch).plans
            rows = {row: (trainer, plain | {"nnunet_dg": given}) for row, (trainer, given) in ROWS.items()}
            memory = {row: peak_memory_in_a_fresh_process(*training, device) for row, training in rows.items()}
            steps = {row: Step(*training, device, compiled) for row, training in rows.items()}
            suffix = ", compiled" if compiled else ""
            for label, method in (("training step", "train"), ("prediction of a batch", "predict")):
                calls = {trainer: getattr(step, method) for trainer, step in steps.items()}
                times = interleaved(calls, arguments.rounds, device)
                report(label + suffix, times, memory if method == "train" else None)
        extractor = Anatomix().to(device)
        extractor.load_published(random_weights())
        unfolded = PlainAnatomix({key: value.to(device) for key, value in random_weights().items()})
        image = torch.rand(1, 1, *[arguments.patch] * 3, device=device)

        def folded(extractor=extractor, image=image):
            with torch.inference_mode():
                return extractor.features(image)

        expected = unfolded(image)["penultimate"]
        difference = (folded() - expected).abs().max() / expected.abs().max()
        calls = {"plain, all layers": partial(unfolded, image), "ours, penultimate": folded}
        times = interleaved(calls, 3 * arguments.rounds, device)
        report("anatomix only", times)
        speedup = median(a / b for a, b in zip(*times.values(), strict=True))
        print(f"\nanatomix: {speedup:.2f}x as fast, largest difference {difference:.1e} of the largest value")


if __name__ == "__main__":
    main()
