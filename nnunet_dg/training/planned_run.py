"""Seed and length of a training from the plans: ``plans["nnunet_dg"]["training"]``."""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as host  # noqa: N813, a module
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_dg.errors import SettingsError
from nnunet_dg.fields import number
from nnunet_dg.files import locked
from nnunet_dg.names import did_you_mean
from nnunet_dg.threads import limit_threads

SECTION = 'plans["nnunet_dg"]["training"]'
CACHED_BATCHES = 2  # per worker process
LATEST = (
    50  # times per training, ``checkpoint_latest.pth`` is written: ``--c`` reads ``checkpoint_best.pth`` without it
)


@dataclass(frozen=True)
class PlannedRun:
    """Seed and length of a training; None keeps what the trainer does without this section.

    Attributes:
        seed: Seed of all random numbers, with which the same machine gives the same first losses.
        epochs: Number of epochs.
        steps: Training steps per epoch. A fifth as many validation steps are made, as in nnU-Net.
    """

    seed: int | None = number(None, 0, 2**32 - 1, whole=True, null=True)
    epochs: int | None = number(None, 1, 1e6, whole=True, null=True)
    steps: int | None = number(None, 1, 1e6, whole=True, null=True)

    def __post_init__(self) -> None:
        for field in fields(self):
            field.metadata["check"].checked(field.name, getattr(self, field.name))

    @classmethod
    def of_plans(cls, plans: dict[str, Any]) -> PlannedRun:
        """Read the section of the plans.

        Raises:
            SettingsError: The section has an unknown key, or a value that is not accepted.
        """
        section = plans.get("nnunet_dg", {}).get("training", {})
        names = [field.name for field in fields(cls)]
        if not isinstance(section, dict):
            raise SettingsError(f'{SECTION} must look like {{"seed": 0, "epochs": 100}}; got {section!r}.')
        for name in section:
            if name not in names:
                close = did_you_mean(name, names)
                raise SettingsError(f"Unknown key in {SECTION}: {name!r}.{close} Accepted are {', '.join(names)}.")
        try:
            return cls(**section)
        except SettingsError as error:
            raise SettingsError(f"{SECTION}: {error}") from error


class PlannedRunTrainer(nnUNetTrainer):
    """nnU-Net's trainer with seed and length of `PlannedRun`.

    Without that section, it does the same as nnU-Net's, except that a training on a CPU has OMP_NUM_THREADS threads.
    """

    def initialize(self) -> None:
        limit_threads(self.device)
        run = PlannedRun.of_plans(self.plans_manager.plans)
        if run.epochs is not None:
            self.num_epochs = run.epochs
        if run.steps is not None:
            self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = run.steps, max(1, run.steps // 5)
        if run.seed is not None:
            seed_all(numbers_from(run.seed)[0])  # on all devices, since DDP copies the network of the first
        if run != PlannedRun():
            self.save_every = max(1, min(self.save_every, self.num_epochs // LATEST))  # type: ignore[has-type]
        super().initialize()

    def run_training(self) -> None:
        """As nnU-Net, but a second training refuses to write to the same folder: one whose command was killed alone."""
        planned = PlannedRun.of_plans(self.plans_manager.plans) != PlannedRun()
        lock = locked(Path(self.output_folder), "training", required=False)
        with lock if planned and self.local_rank == 0 else nullcontext():
            super().run_training()

    def save_checkpoint(self, filename: str) -> None:
        """As nnU-Net, but if the training is killed meanwhile, the earlier checkpoint remains."""
        partial_file = Path(f"{filename}.partial")
        super().save_checkpoint(str(partial_file))
        if partial_file.is_file():  # nnU-Net saves on one device, and only if checkpoints are enabled
            partial_file.replace(filename)

    def on_train_end(self) -> None:
        super().on_train_end()
        if self.local_rank == 0 and "training" in self.plans_manager.plans.get("nnunet_dg", {}):
            on_gpu = self.device.type == "cuda"
            gpu = f", GPU {torch.cuda.max_memory_reserved(self.device) / 2**30:.2f} GiB" if on_gpu else ""
            self.print_to_log_file(
                f"Steps per epoch: {self.num_iterations_per_epoch}. Peak memory: {_peak_gib():.2f} GiB{gpu}"
            )

    def get_dataloaders(self) -> Any:
        """nnU-Net's data loaders. With a seed, their worker processes are seeded and take turns.

        A resumed training continues with other random numbers than an uninterrupted one.
        """
        seed = PlannedRun.of_plans(self.plans_manager.plans).seed
        if seed is None:
            return super().get_dataloaders()
        own, training, validation = numbers_from(seed, self.current_epoch, self.local_rank)
        seed_all(own)
        with ordered_workers(training, validation):
            return super().get_dataloaders()


def _peak_gib() -> float:
    """Peak memory of this process in GiB, without its workers."""
    if sys.platform == "win32":
        return math.nan
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


def numbers_from(seed: int, epoch: int = 0, device: int = 0) -> list[int]:
    """Three independent seeds: of the training process, and of the workers for training and validation batches."""
    return [int(value) for value in np.random.SeedSequence((seed, epoch, device)).generate_state(3)]


def seed_all(seed: int) -> None:
    """Seed Python's, NumPy's and PyTorch's random numbers."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@contextmanager
def ordered_workers(training: int, validation: int) -> Iterator[None]:
    """Inside this context, nnU-Net's trainer creates data loaders whose batches have a fixed order.

    ``nnUNetTrainer.get_dataloaders`` refers to the class by name and starts its processes, so the name is replaced for
    the duration of the call. It creates the loader for training batches first.
    """
    original, seeds = host.NonDetMultiThreadedAugmenter, [training, validation]
    host.NonDetMultiThreadedAugmenter = lambda **arguments: _ordered(seeds.pop(0), **arguments)
    try:
        yield
    finally:
        host.NonDetMultiThreadedAugmenter = original


def _ordered(seed: int, data_loader: Any, num_processes: int, pin_memory: bool, **_: Any) -> Any:
    seeds = [int(value) for value in np.random.SeedSequence(seed).generate_state(num_processes)]
    data_loader.set_thread_id = partial(_start_worker, data_loader.set_thread_id, seeds)
    return host.MultiThreadedAugmenter(
        data_loader, None, num_processes, CACHED_BATCHES, seeds, pin_memory=pin_memory, wait_time=0.002
    )


def _start_worker(set_thread_id: Callable[[int], None], seeds: list[int], number: int) -> None:
    """Called in each worker process, which batchgenerators seeds for NumPy only.

    One thread, as in nnU-Net's own workers: the threads of the training do not exist in a forked process, which would
    wait for them forever.
    """
    torch.set_num_threads(1)
    seed_all(seeds[number])
    set_thread_id(number)
