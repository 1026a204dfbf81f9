"""Checks whether tensors can be weights of a trained network: finite floating-point numbers of ordinary size."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

LARGEST = 1e6
"""Largest accepted magnitude of a weight. Weights of trained networks are far below it, those of damaged files often
are not."""
COUNTERS = ("num_batches_tracked", "relative_position_index")
"""Name endings of tensors that may contain integers."""


def implausible(weights: Mapping[str, Tensor]) -> str:
    """A description of the first tensor that cannot be a trained weight, and why; empty if there is none.

    Implausible are tensors that are sparse, quantized, without content (meta), or not floating point (except
    `COUNTERS`), and those with NaN or infinite values, magnitudes above `LARGEST` (above its square for a running
    variance), or negative variances.

    Args:
        weights: State dict.
    """
    for name, tensor in weights.items():
        if problem := _kind_problem(name, tensor) or _value_problem(name, tensor):
            return f"{name} {problem}"
    return ""


def _kind_problem(name: str, tensor: Tensor) -> str:
    if tensor.is_meta:
        return "is a meta tensor, which has a shape but no content"
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested:
        return f"is a {'quantized' if tensor.is_quantized else 'sparse or nested'} tensor; it must be dense"
    if not tensor.is_floating_point() and not name.endswith(COUNTERS):
        return f"has {str(tensor.dtype).removeprefix('torch.')} values; they must be floating point"
    return ""


def _value_problem(name: str, tensor: Tensor) -> str:
    if not tensor.is_floating_point() or not tensor.numel():
        return ""
    low, high = (float(value) for value in tensor.detach().double().aminmax())
    largest, bound = max(-low, high), LARGEST**2 if name.endswith("running_var") else LARGEST
    if not largest < float("inf"):  # also true for NaN
        return "has values that are not finite"
    if largest > bound:
        return f"has a value of {largest:.1e}; weights must be at most {bound:.0e}"
    return "has a negative variance" if low < 0 and name.endswith("running_var") else ""
