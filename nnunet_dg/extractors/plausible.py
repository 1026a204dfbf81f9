"""Whether tensors can be the weights of a trained network: finite floating-point numbers of an ordinary size."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

LARGEST = 1e6
"""The largest magnitude of a weight. Trained networks stay far below; damaged files do not."""
COUNTERS = ("num_batches_tracked", "relative_position_index")
"""Last parts of the names of tensors that hold integers in a state dict of floating-point weights."""


def implausible(weights: Mapping[str, Tensor]) -> str:
    """In words, the first tensor that no trained network holds, and why; empty if there is none.

    Refused are tensors that are sparse, quantized or without content (meta), that are not floating point (but for
    `COUNTERS`), that hold NaN or infinite values, magnitudes above `LARGEST` (above its square in a running variance),
    or negative variances.

    Args:
        weights: A state dict.
    """
    for name, tensor in weights.items():
        if problem := _kind_problem(name, tensor) or _value_problem(name, tensor):
            return f"{name} {problem}"
    return ""


def _kind_problem(name: str, tensor: Tensor) -> str:
    if tensor.is_meta:
        return "is a meta tensor: it has a shape and no content"
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested:
        return f"is a {'quantized' if tensor.is_quantized else 'sparse or nested'} tensor; accepted are dense ones"
    if not tensor.is_floating_point() and not name.endswith(COUNTERS):
        return f"holds {str(tensor.dtype).removeprefix('torch.')} values; weights are floating point"
    return ""


def _value_problem(name: str, tensor: Tensor) -> str:
    if not tensor.is_floating_point() or not tensor.numel():
        return ""
    low, high = (float(value) for value in tensor.detach().double().aminmax())
    largest, bound = max(-low, high), LARGEST**2 if name.endswith("running_var") else LARGEST
    if not largest < float("inf"):  # NaN as well
        return "holds values that are not finite"
    if largest > bound:
        return f"holds a value of {largest:.1e}, and weights are at most {bound:.0e}"
    return "holds a negative variance" if low < 0 and name.endswith("running_var") else ""
