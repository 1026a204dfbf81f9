"""What DropGen costs: nnUNetTrainer against our trainers on the same plan, and the extractor against a plain build.

    python benchmarks/step_cost.py                 # CPU, and CUDA where there is one
    python benchmarks/step_cost.py --rounds 15 --patch 64 --device cpu

Steps are interleaved (A B C A B C ...), so that a machine whose speed drifts slows all of them alike; ratios are taken
round by round and their median is reported. A training step is what nnU-Net's `train_step` does: forward under autocast
on CUDA, Dice and cross entropy with deep supervision, backward, clipping, SGD. The extractor's weights are random: its
cost does not depend on them.
"""

import argparse
import multiprocessing
import platform
import resource
import time
from collections.abc import Callable
from contextlib import nullcontext
from importlib.metadata import version
from statistics import median

import numpy as np
import torch
from nnunet_dg.trainers.nnUNetTrainerDropGen import nnUNetTrainerDropGen, nnUNetTrainerDropGen_MIND
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from plain_anatomix import PlainAnatomix, random_weights
from torch import nn

from nnunet_dg.extractors.anatomix import Anatomix

TRAINERS = (nnUNetTrainer, nnUNetTrainerDropGen, nnUNetTrainerDropGen_MIND)
CLASSES = 3


def plans(patch: int) -> PlansManager:
    """What nnU-Net's default planner writes for an isotropic cubic patch, as far as the network is concerned."""
    stages = int(np.log2(patch / 4)) + 1
    architecture = {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {
            "n_stages": stages,
            "features_per_stage": [min(32 * 2**i, 320) for i in range(stages)],
            "conv_op": "torch.nn.modules.conv.Conv3d",
            "kernel_sizes": [[3, 3, 3]] * stages,
            "strides": [[1, 1, 1]] + [[2, 2, 2]] * (stages - 1),
            "n_conv_per_stage": [2] * stages,
            "n_conv_per_stage_decoder": [2] * (stages - 1),
            "conv_bias": True,
            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }
    configuration = {
        "patch_size": [patch] * 3,
        "normalization_schemes": ["ZScoreNormalization"],
        "architecture": architecture,
    }
    return PlansManager({"configurations": {"3d_fullres": configuration}})


class Step:
    """A network as a trainer builds it, with what one training step and one prediction need."""

    def __init__(self, trainer: type, patch: int, batch: int, device: torch.device, compiled: bool = False) -> None:
        manager = plans(patch)
        configuration = manager.get_configuration("3d_fullres")
        network = trainer.build_network_architecture(manager, configuration, 1, CLASSES, True)
        if isinstance(getattr(network, "extractor", None), Anatomix):
            network.extractor.load_published(random_weights())
        self.device, self.plain = device, network.to(device)
        self.network: nn.Module = torch.compile(self.plain) if compiled else self.plain
        self.optimizer = torch.optim.SGD(
            self.network.parameters(), 1e-2, weight_decay=3e-5, momentum=0.99, nesterov=True
        )
        stages = len(configuration.pool_op_kernel_sizes) - 1
        weights = np.array([1 / 2**i for i in range(stages)])
        weights[-1] = 0
        dice = {"batch_dice": False, "smooth": 1e-5, "do_bg": False, "ddp": False}
        single = DC_and_CE_loss(dice, {}, dice_class=MemoryEfficientSoftDiceLoss)
        self.loss = DeepSupervisionWrapper(single, weights / weights.sum())
        self.scaler = torch.amp.GradScaler("cuda", enabled=device.type == "cuda")
        self.data = torch.randn(batch, 1, *[patch] * 3, device=device)
        sizes = [patch // 2**i for i in range(stages)]
        self.target = [torch.randint(0, CLASSES, (batch, 1, n, n, n), device=device) for n in sizes]

    def autocast(self):
        return torch.autocast("cuda") if self.device.type == "cuda" else nullcontext()

    def train(self) -> None:
        self.network.train()
        self.plain.decoder.deep_supervision = True
        self.optimizer.zero_grad(set_to_none=True)
        with self.autocast():
            loss = self.loss(self.network(self.data), self.target)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 12)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def predict(self) -> None:
        self.network.eval()
        self.plain.decoder.deep_supervision = False
        with torch.inference_mode(), self.autocast():
            self.network(self.data)


def seconds(call: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def interleaved(calls: dict[str, Callable[[], object]], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each call in each round, after one round that is not counted."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(rounds + 1):
        for name, call in calls.items():
            taken = seconds(call, device)
            if i:
                times[name].append(taken)
    return times


def report(title: str, times: dict[str, list[float]], memory: dict[str, float] | None = None) -> None:
    """A Markdown table: median seconds, and the median ratio to the first row."""
    base = next(iter(times.values()))
    print(f"\n| {title} | seconds | ratio | {'peak memory, GiB |' if memory else ''}")
    print(f"| --- | --- | --- | {'--- |' if memory else ''}")
    for name, taken in times.items():
        ratio = median(t / b for t, b in zip(taken, base, strict=True))
        print(f"| {name} | {median(taken):.3f} | {ratio:.2f} | {f'{memory[name]:.2f} |' if memory else ''}", flush=True)


def peak_memory(trainer: type, patch: int, batch: int, device: torch.device) -> float:
    """GiB at the peak of two training steps: the process's resident set on CPU, PyTorch's allocations on CUDA."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    step = Step(trainer, patch, batch, device)
    step.train()
    step.train()
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def in_a_fresh_process(*arguments: object) -> float:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(peak_memory, arguments)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--patch", type=int, default=64)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: both, where there is CUDA")
    parser.add_argument("--compile", action="store_true", help="also with torch.compile (CUDA)")
    arguments = parser.parse_args()
    both = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    for name in [arguments.device] if arguments.device else both:
        device = torch.device(name)
        what = (
            torch.cuda.get_device_name()
            if name == "cuda"
            else f"{platform.machine()}, {torch.get_num_threads()} threads"
        )
        versions = ", ".join(f"{package} {version(package)}" for package in ("nnunet-dg", "nnunetv2", "torch"))
        print(
            f"\n{name}: {what}; {versions}; "
            f"patch {arguments.patch}^3, batch {arguments.batch}, {arguments.rounds} rounds"
        )
        for compiled in (False, True) if arguments.compile and name == "cuda" else (False,):
            build = (arguments.patch, arguments.batch, device)
            memory = {t.__name__: in_a_fresh_process(t, *build) for t in TRAINERS}
            steps = {t.__name__: Step(t, *build, compiled) for t in TRAINERS}
            suffix = ", compiled" if compiled else ""
            for label, method in (("training step", "train"), ("prediction of a batch", "predict")):
                calls = {trainer: getattr(step, method) for trainer, step in steps.items()}
                times = interleaved(calls, arguments.rounds, device)
                report(label + suffix, times, memory if method == "train" else None)
        extractor = Anatomix().to(device)
        extractor.load_published(random_weights())
        plain = PlainAnatomix({key: value.to(device) for key, value in random_weights().items()})
        image = torch.rand(1, 1, *[arguments.patch] * 3, device=device)

        def folded(extractor=extractor, image=image):
            with torch.inference_mode():
                return extractor.features(image)

        difference = (folded() - plain(image)["penultimate"]).abs().max() / plain(image)["penultimate"].abs().max()
        calls = {"plain, to the end": lambda plain=plain, image=image: plain(image), "ours, penultimate": folded}
        times = interleaved(calls, 3 * arguments.rounds, device)
        report("anatomix alone", times)
        speedup = median(a / b for a, b in zip(*times.values(), strict=True))
        print(f"\nanatomix: {speedup:.2f}x as fast, largest difference {difference:.1e} of the largest value")


if __name__ == "__main__":
    main()
