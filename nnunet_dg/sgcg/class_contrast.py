"""The contrastive loss of a training step: from feature maps and labels to chosen voxels, statistics and the bound.

SgCG: Semantic-Guided Contrastive Generalization for Medical Image Segmentation, ICLR 2025 submission.
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

FULL_CLASSES = 4  # with more classes than this, they share the voxels of so many


class ClassContrast(nn.Module):
    """L_feat (eq. 11) of L2-normalized voxel features, against the statistics of the features so far.

    Only some voxels of a step take part, chosen at random: at most ``voxels_per_class`` of each class and four times as
    many of all classes, which more than four classes share equally. The same voxels enter the statistics and the loss.
    No class owns the statistics because it is frequent, and a step with many classes is not much dearer than one with
    few.

    Args:
        num_classes: K.
        num_features: A.
        temperature: tau.
        voxels_per_class: Maximum number of randomly chosen voxels per class and step.
        max_count: See `ClassStatistics`.
        memory: See `ClassStatistics`.
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
        """Update the statistics with the chosen voxels, then compute their loss. In float32, also under autocast.

        Args:
            maps: Features of the same voxels in different guises, each ``(B, A, *spatial)``; they get the gradient.
            classes: ``(B, *spatial)``, integers; voxels outside 0 ... K-1 are left out.

        Returns:
            A scalar, the mean over the chosen voxels.
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
        """Update the statistics as `forward` does, without a loss."""
        with torch.autocast(classes.device.type, enabled=False):
            self.statistics.update(*self._chosen(maps, classes))

    def _chosen(self, maps: Sequence[Tensor], classes: Tensor) -> tuple[Tensor, Tensor]:
        """Normalized features ``(n, A)`` and classes ``(n,)`` of the chosen voxels of all maps."""
        y = classes.flatten()
        per_map = max(self.voxels_per_class // len(maps), 1)
        drawn = draw_voxels(y, len(self.statistics.count), per_map, len(maps))
        q = torch.cat([_Take.apply(features, index) for features, index in zip(maps, drawn, strict=True)])
        return normalised(wide(q)), y[torch.cat(drawn)]


def normalised(voxels: Tensor) -> Tensor:
    """L2-normalized rows of ``(N, A)``; rows shorter than 1e-3 stay shorter, so that no gradient explodes."""
    return F.normalize(voxels, dim=1, eps=1e-3)


def choose_voxels(classes: Tensor, num_classes: int, most: int) -> Tensor:
    """Indices of at most ``most`` voxels of each class, at random without replacement, from ``classes (N,)``."""
    return draw_voxels(classes, num_classes, most, 1)[0]


def draw_voxels(classes: Tensor, num_classes: int, most: int, draws: int) -> list[Tensor]:
    """`choose_voxels`, several times: no voxel is drawn again before its class has no other left.

    All classes at once: frequent classes are thinned at random, one sort groups what is left, and each draw reads on in
    the groups where the one before it stopped.

    Args:
        classes: ``(N,)``, integers; those outside 0 ... K-1 are not drawn.
        num_classes: K.
        most: Maximum number of voxels of each class and draw.
        draws: Number of draws.

    Returns:
        Indices of each draw, sorted by class.
    """
    slots = torch.where((classes >= 0) & (classes < num_classes), classes, num_classes)
    key = torch.rand(len(slots), device=slots.device)
    wanted = most * draws
    # so many more than wanted that it is practically impossible to be left with fewer
    share = (wanted + 10 * wanted**0.5 + 50) / torch.bincount(slots, minlength=num_classes + 1).clamp(min=1)
    share[num_classes] = 0
    kept = (key < share[slots]).nonzero().squeeze(1)
    slots, key = slots[kept], key[kept]
    order = key.argsort()
    kept = kept[order[slots[order].argsort(stable=True)]]  # by class, and at random within
    sizes = torch.bincount(slots, minlength=num_classes)[:num_classes]
    return [kept[_places(sizes, most, draw)] for draw in range(draws)]


def _places(sizes: Tensor, most: int, draw: int) -> Tensor:
    """Places ``draw * most`` and following of each group, beginning again at its end; groups lie one after another."""
    taken = sizes.clamp(max=most)
    group = torch.repeat_interleave(taken)
    rank = torch.arange(len(group), device=sizes.device) - (taken.cumsum(0) - taken)[group]
    return (sizes.cumsum(0) - sizes)[group] + (draw * most + rank) % sizes[group]


class _Take(torch.autograd.Function):
    """Features ``(n, A)`` of voxels ``index (n,)``, which are all different, from ``(B, A, *spatial)``.

    Voxels are numbered as in ``(B, *spatial)``. The gradient is written without adding up, which indexing would do.
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
