"""Batch norm with separate statistics and affine maps for several kinds of images, and the choice among them.

W. Chang, T. You, S. Seo, S. Kwak, B. Han, Domain-Specific Batch Normalization for Unsupervised Domain Adaptation, CVPR
2019, https://arxiv.org/abs/1906.03950. The choice at inference: Z. Zhou, L. Qi, X. Yang, D. Ni, Y. Shi, Generalizable
Cross-modality Medical Image Segmentation via Style Augmentation and Dual Normalization, CVPR 2022,
https://arxiv.org/abs/2112.11177.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from nnunet_dg.errors import SettingsError
from nnunet_dg.group_norm import batch_norm_of_groups
from nnunet_dg.method import AroundPlanned
from nnunet_dg.tensors import Statistics, moments, per_channel

EPS = 1e-5
MOMENTUM = 0.1
OTHER_NORMS = (nn.GroupNorm, nn.LayerNorm, nn.LocalResponseNorm)


class Branches:
    """The branch of each sample of the current pass, which all norms of a network share. It is not a module.

    Attributes:
        of_sample: Branch of each sample, ``(B,)``, int64.
        distances: In eval mode, the distance of each sample from the branch's statistics, ``(B,)`` for each norm.
    """

    def __init__(self) -> None:
        self.of_sample = torch.zeros(0, dtype=torch.long)
        self.distances: list[Tensor] = []


class BranchNorm(nn.Module):
    """Batch norm with separate statistics, running statistics and affine maps for each branch.

    ``(B, C, *spatial)`` -> the same shape and dtype, computed in at least float32. In training mode, each branch
    normalizes its samples by the mean and variance of these samples. A branch without samples keeps its running
    statistics. The affine maps of all branches are a single parameter, so that it has a gradient in every step. In eval
    mode, the running statistics are used, and the distance of each sample from them is added to the branches.

    Statistics are those of the samples on one device: nnU-Net's conversion to SyncBatchNorm leaves this module alone,
    so that a device without samples of a branch does not wait for the others.

    Args:
        channels: Number of channels, C.
        branches: Branch of each sample, shared with the other norms of the network.
        count: Number of branches, D.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, branches: Branches, count: int = 2) -> None:
        super().__init__()
        self.branches = branches
        self.weight = nn.Parameter(torch.ones(count, channels))
        self.bias = nn.Parameter(torch.zeros(count, channels))
        self.register_buffer("running_mean", torch.zeros(count, channels))
        self.register_buffer("running_var", torch.ones(count, channels))

    def forward(self, x: Tensor) -> Tensor:
        branch = self.branches.of_sample
        weight, bias = self.weight[branch], self.bias[branch]
        with torch.autocast(x.device.type, enabled=False):
            if self.training:
                y, mean, variance = batch_norm_of_groups(x, weight, bias, branch, EPS)
                self._update(mean, variance, branch, F.one_hot(branch, len(self.weight)).sum(0) * x[0, 0].numel())
                return y
            centered, rough, mean, variance = moments(x)
            running = self.running_mean[branch], self.running_var[branch]
            self.branches.distances.append(distance((mean, variance), running))
            scale = weight * (running[1] + EPS).rsqrt()
            shift = bias + (rough - running[0]) * scale
            return torch.addcmul(per_channel(shift, x), centered, per_channel(scale, x)).to(x.dtype)

    @torch.no_grad()
    def _update(self, mean: Tensor, variance: Tensor, branch: Tensor, voxels: Tensor) -> None:
        """Average the running statistics with those of the batch, ``(B, C)``, of branches that have ``voxels (D,)``."""
        unbiased = variance * (voxels / (voxels - 1).clamp(min=1))[branch, None]
        for running, new in ((self.running_mean, mean), (self.running_var, unbiased)):
            target = running.index_copy(0, branch, new)  # equal for all samples of a branch
            running.copy_(running + MOMENTUM * (target - running))


class NearestBranchNetwork(AroundPlanned):
    """A network with `BranchNorm`; in eval mode, each sample is predicted by the branch with the nearest statistics.

    ``(B, C + R, *spatial)`` -> logits ``(B, K, *spatial)``; a list under deep supervision. In eval mode, the network
    runs once for each branch. The nearest branch is that with the smallest sum over all norms of `distance`.

    Args:
        network: Network whose norms are replaced.
        count: Number of branches.

    Raises:
        SettingsError: The network has another norm, or none.
    """

    def __init__(self, network: nn.Module, count: int = 2) -> None:
        super().__init__()
        self.branches, self.count = Branches(), count
        planned = network
        while isinstance(planned, AroundPlanned):
            planned = planned.network
        replace_norms(planned, self.branches, count)
        self.network = network

    def forward(self, x: Tensor) -> Any:
        if self.training:
            if len(self.branches.of_sample) != len(x):
                raise ValueError(
                    f"The branch of {len(self.branches.of_sample)} samples is known, but a pass in training mode has "
                    f"{len(x)}. Train it with its trainer, without methods that change the number of samples."
                )
            return self.network(x)
        outputs, distances = [], []
        for branch in range(self.count):
            self.branches.of_sample = torch.full((len(x),), branch, device=x.device)
            self.branches.distances = []
            outputs.append(self.network(x))
            distances.append(torch.stack(self.branches.distances).sum(0))
        self.branches.distances = []
        nearest = torch.stack(distances).argmin(0)
        if isinstance(outputs[0], list):
            return [chosen(list(scale), nearest) for scale in zip(*outputs, strict=True)]
        return chosen(outputs, nearest)


def distance(own: Statistics, stored: Statistics) -> Tensor:
    """``||mean - stored mean|| + ||variance - stored variance||`` of each sample, Euclidean norms over the channels.

    Args:
        own: Mean and variance of each sample, each ``(B, C)``.
        stored: Mean and variance of a branch, each ``(B, C)``.

    >>> distance((torch.tensor([[11.0]]), torch.tensor([[4.0]])), (torch.tensor([[3.0]]), torch.tensor([[5.0]])))
    tensor([9.])
    """
    return sum((a - b).norm(dim=1) for a, b in zip(own, stored, strict=True))


def chosen(outputs: list[Tensor], index: Tensor) -> Tensor:
    """For each sample, the output with its index: tensors ``(B, *shape)`` and indices ``(B,)`` -> ``(B, *shape)``.

    >>> chosen([torch.tensor([1, 2]), torch.tensor([3, 4])], torch.tensor([1, 0]))
    tensor([3, 2])
    """
    return torch.stack(outputs)[index, torch.arange(len(index), device=index.device)]


def replace_norms(network: nn.Module, branches: Branches, count: int = 2) -> None:
    """Replace every batch norm and instance norm of a network by a `BranchNorm`, in place.

    Args:
        network: Network; a norm that it contains at several places is replaced by the same module.
        branches: Branch of each sample, shared by the norms.
        count: Number of branches.

    Raises:
        SettingsError: The network has another norm, or none.

    >>> network = nn.Sequential(nn.Conv2d(1, 4, 1), nn.InstanceNorm2d(4))
    >>> replace_norms(network, Branches())
    >>> network[1].weight.shape
    torch.Size([2, 4])
    """
    replaced: dict[nn.Module, BranchNorm] = {}
    for module in list(network.modules()):
        for name, child in module._modules.items():
            if isinstance(child, OTHER_NORMS):
                raise SettingsError(
                    f"Separate batch norms need a network with batch or instance norm; it has a "
                    f"{type(child).__name__}. Use plans with another norm_op."
                )
            if isinstance(child, (_BatchNorm, _InstanceNorm)):
                if child not in replaced:
                    replaced[child] = BranchNorm(child.num_features, branches, count)
                module._modules[name] = replaced[child]
    if not replaced:
        raise SettingsError("Separate batch norms need a network with batch or instance norm; it has no norm.")
