"""Batch norm of samples that share their statistics with some samples of the batch, with few passes over the features.

Each group of samples has a batch norm of its own: S. Ioffe, C. Szegedy, Batch Normalization: Accelerating Deep Network
Training by Reducing Internal Covariate Shift, ICML 2015, https://arxiv.org/abs/1502.03167.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nnunet_dg.tensors import moments, per_channel


def batch_norm_of_groups(
    x: Tensor, weight: Tensor, bias: Tensor, groups: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Each sample is normalized by mean and biased variance of all samples of its group.

    The gradient flows into ``x``, also through the statistics, and into ``weight`` and ``bias``. There are no second
    derivatives. For PyTorch's batch norm, each group would have to be cut out of the batch; here, all samples are
    normalized at once. Call it outside of autocast, which would make copies in float32 on a GPU.

    Args:
        x: ``(B, C, *spatial)``.
        weight: Scale of each sample and channel, ``(B, C)``, at least float32 and the dtype of ``x``. It must be equal
            within a group, otherwise the gradient is wrong.
        bias: Shift of each sample and channel, with the same shape and the same conditions.
        groups: Number of each sample's group, ``(B,)``, integers.
        eps: Number that is added to variances.

    Returns:
        The normalized samples in the dtype of ``x``; mean and biased variance of each sample's group, each ``(B, C)``
        in at least float32, detached.

    >>> x = torch.tensor([[[0.0, 2.0]], [[4.0, 6.0]]])
    >>> weight, bias = torch.full((2, 1), 5**0.5), torch.zeros(2, 1)
    >>> batch_norm_of_groups(x, weight, bias, groups=torch.tensor([0, 0]), eps=0)[0].flatten()
    tensor([-3., -1.,  1.,  3.])
    """
    same = (groups[:, None] == groups).to(weight.dtype)
    return _BatchNormOfGroups.apply(x, weight, bias, same / same.sum(1, keepdim=True), eps)


class _BatchNormOfGroups(torch.autograd.Function):
    """`batch_norm_of_groups`, with ``share (B, B)``: 1 / size of the group for samples of the same group, otherwise 0.

    For ``z = (x - mean) / std``, the gradient of a batch norm is ``weight / std * (g - E[g] - z E[g z])``, with means
    over the samples that share statistics. Given the group's statistics, PyTorch's function takes means over each
    sample. The difference, ``weight / std * (E_sample[g] - E_group[g] + z (E_sample[g z] - E_group[g z]))``, is added.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, share: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        centered, rough, of_sample, variance = moments(x)
        mean = _average(of_sample, share)
        variance = _average(variance + (of_sample - mean).square(), share)
        rstd = (variance + eps).rsqrt()
        scale = weight * rstd
        shift = bias + (rough - mean) * scale
        torch.addcmul(per_channel(shift, x), centered, per_channel(scale, x), out=centered)
        ctx.save_for_backward(x, weight, share, mean, rstd)
        ctx.mark_non_differentiable(mean, variance)
        return centered, mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        x, weight, share, mean, rstd = ctx.saved_tensors
        one_batch = (1, x.shape[0] * x.shape[1], -1)  # PyTorch's result is wrong for 5 axes in two memory formats
        result, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            gradients[0].reshape(one_batch),
            x.reshape(one_batch),
            weight.flatten(),
            None,
            None,
            mean.flatten(),
            rstd.flatten(),
            True,
            0.0,
            [True, True, True],
        )
        result, of_weight, of_bias = result.reshape(x.shape), of_weight.view_as(weight), of_bias.view_as(weight)
        scale = weight * rstd / x[0, 0].numel()
        slope = scale * rstd * (of_weight - _average(of_weight, share))
        constant = scale * (of_bias - _average(of_bias, share)) - slope * mean
        result.addcmul_(x, per_channel(slope, x).to(x.dtype)).add_(per_channel(constant, x).to(x.dtype))
        return result, of_weight, of_bias, None, None


def _average(values: Tensor, share: Tensor) -> Tensor:
    """Values ``(B, C)`` averaged over each sample's group; products of matrices are less precise on some GPUs."""
    return (share[..., None] * values).sum(1)
