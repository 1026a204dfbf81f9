"""The number type of the convolutions in training, and reproducible operations."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def precision_of(device: torch.device) -> torch.dtype:
    """The type of the convolutions: bfloat16 where the hardware multiplies it in matrices, and otherwise float32.

    That is the case for NVIDIA GPUs since 2020 and for CPUs with AMX. Weights and losses are float32 in any case.
    """
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = bool(getattr(torch.cpu, "_is_amx_tile_supported", bool)())
    return torch.bfloat16 if fast else torch.float32


def processor_of(device: torch.device) -> str:
    """The kind of processor, on which rounding depends: the name of the GPU, or the vector instructions of the CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()


def autocast(device: torch.device, precision: torch.dtype) -> Any:
    """The context manager in which the network computes its convolutions in this type."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision != torch.float32)


@contextmanager
def reproducible(device: torch.device) -> Iterator[None]:
    """On a GPU, use only operations whose result does not change from run to run. On a CPU, they do not anyway."""
    if device.type == "cpu":
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when the GPU is first used
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
