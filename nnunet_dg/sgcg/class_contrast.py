"""The contrastive loss of a training step: it chooses voxels, updates the class statistics and computes the bound.

SgCG: Semantic-Guided Contrastive Generalization for Medical Image Segmentation, submission to ICLR 2025,
https://openreview.net/search?term=Semantic-Guided+Contrastive+Generalization.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from nnunet_dg.sgcg.contrast import contrastive_upper_bound
from nnunet_dg.sgcg.statistics import ClassStatistics
from nnunet_dg.tensors import wide

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
        """Normalized features ``(n, A)`` and classes ``(n,)`` of the chosen voxels of all maps."""
        y = classes.flatten()
        per_map = max(self.voxels_per_class // len(maps), 1)
        drawn = draw_voxels(y, len(self.statistics.count), per_map, len(maps))
        q = torch.cat([_Take.apply(features, index) for features, index in zip(maps, drawn, strict=True)])
        return normalized(wide(q)), y[torch.cat(drawn)]


def normalized(voxels: Tensor) -> Tensor:
    """L2-normalized rows of ``(N, A)``. Rows shorter than 1e-3 keep a norm below 1, so that gradients stay bounded."""
    return F.normalize(voxels, dim=1, eps=1e-3)


def choose_voxels(classes: Tensor, num_classes: int, most: int) -> Tensor:
    """Indices of at most ``most`` voxels of each class, drawn without replacement from ``classes (N,)``.

    >>> classes = torch.tensor([0, 0, 0, 1, -1])
    >>> classes[choose_voxels(classes, num_classes=2, most=2)]
    tensor([0, 0, 1])
    """
    return draw_voxels(classes, num_classes, most, 1)[0]


def draw_voxels(classes: Tensor, num_classes: int, most: int, draws: int) -> list[Tensor]:
    """`choose_voxels` several times: a voxel is drawn again only after all other voxels of its class were drawn.

    All classes are processed at once: frequent classes are thinned at random, one sort groups the remaining voxels by
    class, and each draw starts in every group where the previous draw stopped.

    Args:
        classes: Class of each voxel, ``(N,)``, integers; voxels outside 0 ... K-1 are not drawn.
        num_classes: Number of classes, K.
        most: Maximum number of voxels per class and draw.
        draws: Number of draws.

    Returns:
        Indices of each draw, sorted by class.
    """
    slots = torch.where((classes >= 0) & (classes < num_classes), classes, num_classes)
    key = torch.rand(len(slots), device=slots.device)
    wanted = most * draws
    # this margin makes it practically impossible that fewer voxels remain than wanted
    share = (wanted + 10 * wanted**0.5 + 50) / torch.bincount(slots, minlength=num_classes + 1).clamp(min=1)
    share[num_classes] = 0
    kept = (key < share[slots]).nonzero().squeeze(1)
    slots, key = slots[kept], key[kept]
    order = key.argsort()
    kept = kept[order[slots[order].argsort(stable=True)]]  # grouped by class, in random order within each class
    sizes = torch.bincount(slots, minlength=num_classes)[:num_classes]
    return [kept[_places(sizes, most, draw)] for draw in range(draws)]


def _places(sizes: Tensor, most: int, draw: int) -> Tensor:
    """Positions from ``draw * most`` on in each of the consecutive groups; past its end, a group starts over."""
    taken = sizes.clamp(max=most)
    group = torch.repeat_interleave(taken)
    rank = torch.arange(len(group), device=sizes.device) - (taken.cumsum(0) - taken)[group]
    return (sizes.cumsum(0) - sizes)[group] + (draw * most + rank) % sizes[group]


class _Take(torch.autograd.Function):
    """Features ``(n, A)`` of the distinct voxels ``index (n,)`` from ``(B, A, *spatial)``.

    Voxels are numbered as in ``(B, *spatial)``. Since they are distinct, the gradient is written and not accumulated,
    as it would be by indexing.
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
        flat[index // size, :, index % size] = gradients[0]
        return result, None
