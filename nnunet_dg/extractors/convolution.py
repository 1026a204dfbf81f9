"""The convolution of frozen extractors, faster for single samples on CPUs."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812


def convolved(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A convolution without padding and with stride 1, the same as `torch.nn.functional.conv3d` up to rounding.

    For a single sample of at most 20480 channels times rows times columns, PyTorch does not take oneDNN's convolution,
    but a matrix product that is up to 14 times as slow (``use_mkldnn`` in ``aten/src/ATen/native/Convolution.cpp``). A
    sliding window predicts single samples, and most layers of an extractor are as small. This calls oneDNN's.

    Args:
        x: ``(B, C, *spatial)``, 2-D or 3-D.
        weight: Kernel, ``(O, C, *size)``.
        bias: ``(O,)``; default None: zero.

    >>> convolved(torch.ones(1, 2, 3, 3, 3), torch.ones(1, 2, 3, 3, 3)).flatten()
    tensor([54.])
    """
    dims = x.ndim - 2
    if _is_single(x):
        result: Tensor = torch.ops.aten.mkldnn_convolution(x, weight, bias, [0] * dims, [1] * dims, [1] * dims, 1)
        return result
    return (F.conv2d if dims == 2 else F.conv3d)(x, weight, bias)


def _is_single(x: Tensor) -> bool:
    """Whether this is a single sample on a CPU, not traced, and without gradient."""
    if type(x) is not Tensor or torch.compiler.is_compiling() or torch.is_grad_enabled():  # not a fake tensor
        return False
    narrow = x.dtype != torch.float32 or torch.is_autocast_enabled("cpu")
    return len(x) == 1 and x.device.type == "cpu" and not narrow and torch.backends.mkldnn.is_available()
