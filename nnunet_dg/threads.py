"""Threads on CPUs, where several processes share the cores: trainings, and the workers that make their batches."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

WAITING = {"GOMP_SPINCOUNT": "1000"}
"""Environment in which waiting threads of GNU OpenMP soon give up their core.

By default they spin for milliseconds, which is many times slower if other processes need the cores.
"""


def limit_threads(device: torch.device) -> None:
    """On a CPU, compute with as many threads as OMP_NUM_THREADS says, if it is set.

    nnU-Net's command starts one per core whatever it says. Where trainings, or a training and its worker processes,
    share the cores, threads that wait for each other make a step several times slower.
    """
    import torch

    chosen = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    if device.type == "cpu" and chosen.isdecimal() and int(chosen):
        torch.set_num_threads(int(chosen))


def threads_per_job(jobs: int) -> int:
    """Number of threads with which ``jobs`` jobs that run at the same time share the cores.

    >>> threads_per_job(jobs=1000)
    1
    """
    allowed = getattr(os, "sched_getaffinity", None)  # on Linux: cores of a container or allocation
    cores = len(allowed(0)) if allowed else os.cpu_count() or 1
    return max(1, cores // jobs)
