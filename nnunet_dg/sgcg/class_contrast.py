"""The contrastive loss of a training step: from feature maps and labels to statistics, chosen voxels and the bound."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from nnunet_dg.sgcg.contrast import contrastive_upper_bound
from nnunet_dg.sgcg.statistics import ClassStatistics


class ClassContrast(nn.Module):
    """L_feat (eq. 11) of L2-normalised voxel features, against the statistics of everything seen so far.

    Args:
        num_classes: K.
        num_features: A.
        temperature: tau.
        voxels_per_class: at most so many of each class enter the loss of a step, chosen at random.
        max_count: see `ClassStatistics`.
    """

    def __init__(
        self,
        num_classes: int,
        num_features: int,
        temperature: float = 0.1,
        voxels_per_class: int = 4096,
        max_count: float | None = None,
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.voxels_per_class = voxels_per_class
        self.statistics = ClassStatistics(num_classes, num_features, max_count)

    def forward(self, maps: Sequence[Tensor], classes: Tensor) -> Tensor:
        """Take all voxels into the statistics, then the loss of some. In float32, also under autocast.

        Args:
            maps: features of the same voxels in different guises, each ``(B, A, *spatial)``; they get the gradient.
            classes: ``(B, *spatial)``, integers; voxels outside 0 ... K-1 are left out.

        Returns:
            A scalar, the mean over the chosen voxels.
        """
        with torch.autocast(classes.device.type, enabled=False):
            y = classes.flatten()
            for features in maps:
                self.statistics.update(normalised(_voxels(features.detach()).float()), y)
            statistics = self.statistics
            per_map = max(self.voxels_per_class // len(maps), 1)
            chosen = [choose_voxels(y, len(statistics.count), per_map) for _ in maps]
            q = torch.cat([_take(features, index) for features, index in zip(maps, chosen, strict=True)])
            return contrastive_upper_bound(
                normalised(q.float()), y[torch.cat(chosen)], statistics.mean, statistics.covariance,
                self.temperature, statistics.candidates,
            )  # fmt: skip


def normalised(voxels: Tensor) -> Tensor:
    """L2-normalised rows of ``(N, A)``; rows shorter than 1e-3 stay shorter, so that no gradient explodes."""
    return F.normalize(voxels, dim=1, eps=1e-3)


def choose_voxels(classes: Tensor, num_classes: int, most: int) -> Tensor:
    """Indices of at most ``most`` voxels of each class, at random without replacement, from ``classes (N,)``."""
    chosen = []
    for k in range(num_classes):
        members = (classes == k).nonzero().squeeze(1)
        if len(members) > most:
            members = members[torch.randperm(len(members), device=members.device)[:most]]
        chosen.append(members)
    return torch.cat(chosen)


def _voxels(features: Tensor) -> Tensor:
    """``(B, A, *spatial) -> (B * voxels, A)``."""
    return features.movedim(1, -1).flatten(0, -2)


def _take(features: Tensor, index: Tensor) -> Tensor:
    """The rows of `_voxels` at ``index``, without making the others: ``(n, A)``, with the gradient."""
    flat = features.flatten(2)
    size = flat.shape[2]
    return flat[index // size, :, index % size]
