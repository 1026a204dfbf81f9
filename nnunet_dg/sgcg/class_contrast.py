"""The contrastive loss of a training step: it chooses voxels, updates the class statistics and computes the bound.

SgCG: Semantic-Guided Contrastive Generalization for Medical Image Segmentation, submission to ICLR 2025,
https://openreview.net/search?term=Semantic-Guided+Contrastive+Generalization.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from nnunet_dg.sgcg.contrast import contrastive_upper_bound
from nnunet_dg.sgcg.statistics import ClassStatistics
from nnunet_dg.tensors import sortable, wide

FULL_CLASSES = 4  # more classes than this share the voxels of this many classes


class ClassContrast(nn.Module):
    """L_feat (eq. 11) of L2-normalized voxel features, against the class statistics of the features seen so far.

    In each step, randomly chosen voxels enter both the statistics and the loss: at most ``voxels_per_class`` of each
    class. With more than four classes, all classes together have the voxels of four and share them equally. Frequent
    classes therefore do not dominate the statistics, and a step with many classes costs little more than one with few.

    Args:
        num_classes: Number of classes, K.
        num_features: Number of features, A.
        temperature: Temperature of the loss, tau; default 0.1.
        voxels_per_class: Maximum number of randomly chosen voxels per class and step; default 4096.
        max_count: Upper limit of a class's count, see `ClassStatistics`; None: no limit.
        memory: Number of steps that the statistics remember, see `ClassStatistics`; None: all.
    """

    def __init__(
        self,
        num_classes: int,
        num_features: int,
        temperature: float = 0.1,
        voxels_per_class: int = 4096,
        max_count: float | None = None,
        memory: float | None = None,
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.voxels_per_class = max(voxels_per_class * FULL_CLASSES // max(num_classes, FULL_CLASSES), 2)
        self.statistics = ClassStatistics(num_classes, num_features, max_count, memory)

    def forward(self, maps: Sequence[Tensor], classes: Tensor) -> Tensor:
        """Update the statistics with the chosen voxels, then compute their loss, in float32 also under autocast.

        Args:
            maps: Feature maps of the same voxels, for example of the image and its mixed twin, each
                ``(B, A, *spatial)``. They get the gradient.
            classes: Class of each voxel, ``(B, *spatial)``, integers; voxels outside 0 ... K-1 are excluded.

        Returns:
            The mean loss of the chosen voxels, a scalar.
        """
        with torch.autocast(classes.device.type, enabled=False):
            q, y = self._chosen(maps, classes)
            statistics = self.statistics
            statistics.update(q, y)
            return contrastive_upper_bound(
                q, y, statistics.mean, statistics.covariance, self.temperature, statistics.candidates
            )

    @torch.no_grad()
    def observe(self, maps: Sequence[Tensor], classes: Tensor) -> None:
        """Update the statistics as `forward` does, without computing a loss."""
        with torch.autocast(classes.device.type, enabled=False):
            self.statistics.update(*self._chosen(maps, classes))

    def _chosen(self, maps: Sequence[Tensor], classes: Tensor) -> tuple[Tensor, Tensor]:
        """Normalized features ``(n, A)`` and classes ``(n,)`` of the chosen voxels of all maps; -1: none is there."""
        y = classes.flatten()
        per_map = max(self.voxels_per_class // len(maps), 1)
        drawn, labels = draw_voxels(y, len(self.statistics.count), per_map, len(maps))
        q = torch.cat([_Take.apply(features, index) for features, index in zip(maps, drawn, strict=True)])
        return normalized(wide(q)), labels.repeat(len(maps))


def normalized(voxels: Tensor) -> Tensor:
    """L2-normalized rows of ``(N, A)``. Rows shorter than 1e-3 keep a norm below 1, so that gradients stay bounded."""
    return F.normalize(voxels, dim=1, eps=1e-3)


def choose_voxels(classes: Tensor, num_classes: int, most: int) -> Tensor:
    """Indices of at most ``most`` voxels of each class, drawn without replacement from ``classes (N,)``.

    The host waits for the device, since the number of indices depends on the classes.

    >>> classes = torch.tensor([0, 0, 0, 1, -1])
    >>> classes[choose_voxels(classes, num_classes=2, most=2)]
    tensor([0, 0, 1])
    """
    (drawn,), labels = draw_voxels(classes, num_classes, most, 1)
    return drawn[labels >= 0]


def draw_voxels(classes: Tensor, num_classes: int, most: int, draws: int) -> tuple[list[Tensor], Tensor]:
    """`choose_voxels` several times: a voxel is drawn again only after all other voxels of its class were drawn.

    All classes are processed at once: frequent classes are thinned at random, one sort groups the remaining voxels by
    class, and each draw starts in every group where the previous draw stopped. Every class has ``most`` places, also
    one with fewer voxels, so that no size depends on values of the device, and the host does not wait for it.

    Args:
        classes: Class of each voxel, ``(N,)``, integers; voxels outside 0 ... K-1 are not drawn.
        num_classes: Number of classes, K.
        most: Maximum number of voxels per class and draw.
        draws: Number of draws.

    Returns:
        Indices of each draw, ``(K * most,)`` each, sorted by class, and the class at each place, ``(K * most,)``; -1
        where a class has too few voxels, so that the index is that of any voxel.

    >>> (first, second), labels = draw_voxels(torch.tensor([1, 0, -1]), num_classes=2, most=2, draws=2)
    >>> labels, first[labels >= 0]
    (tensor([ 0, -1,  1, -1]), tensor([1, 0]))
    """
    device = classes.device
    slots = torch.where((classes >= 0) & (classes < num_classes), classes, num_classes).long()
    key = torch.rand(len(slots), device=device)
    wanted = most * draws
    # this margin makes it practically impossible that fewer voxels remain than wanted
    share = (wanted + 10 * wanted**0.5 + 50) / _counts(slots, num_classes + 1).clamp(min=1)
    share[num_classes] = 0
    kept = _first_places(key < share[slots], num_classes * math.ceil(wanted + 20 * wanted**0.5 + 200))
    padded = torch.cat([slots, slots.new_full((1,), num_classes)])  # the place after the last voxel has no class
    keys, order = sortable(torch.cat([key, key.new_zeros(1)])[kept], padded[kept]).sort()
    start = torch.searchsorted(keys, torch.arange(num_classes + 1, device=device) << 32)
    sizes, rank = start.diff()[:, None], torch.arange(most, device=device)
    labels = torch.where(rank < sizes, torch.arange(num_classes, device=device)[:, None], -1).flatten()
    drawn = []
    for draw in range(draws):
        place = start[:-1, None] + (draw * most + rank) % sizes.clamp(min=1)
        index = kept[order[place.clamp(max=len(order) - 1)]]
        drawn.append(torch.where(rank < sizes, index, (rank % len(slots)).expand_as(index)).flatten())
    return drawn, labels


def _counts(slots: Tensor, number: int) -> Tensor:
    """How often each of the numbers 0 ... number - 1 occurs, float32. `torch.bincount` would wait for a GPU."""
    return torch.histc(slots.float(), number, -0.5, number - 0.5)


def _first_places(chosen: Tensor, most: int) -> Tensor:
    """The first ``most`` indices at which ``chosen (N,)`` is True; at places without one, N."""
    places, most = chosen.cumsum(0) - 1, min(most, len(chosen))
    result = torch.full((most + 1,), len(chosen), device=chosen.device)
    index = torch.arange(len(chosen), device=chosen.device)
    result.scatter_(0, torch.where(chosen, places.clamp(max=most), most), index)  # the last place is for all others
    return result[:most]


class _Take(torch.autograd.Function):
    """Features ``(n, A)`` of the voxels ``index (n,)`` from ``(B, A, *spatial)``.

    Voxels are numbered as in ``(B, *spatial)``. The gradient of a voxel that occurs several times is the sum.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.shape = features.shape
        flat = features.flatten(2)
        size = flat.shape[2]
        return flat[index // size, :, index % size]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        result = gradients[0].new_zeros(ctx.shape)
        flat = result.flatten(2)
        size = flat.shape[2]
        flat.transpose(1, 2).index_put_((index // size, index % size), gradients[0], accumulate=True)
        return result, None
