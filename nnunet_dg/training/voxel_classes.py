"""The class of each voxel, for datasets with labels or regions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nnunet_dg.tensors import to_device


class Classes:
    """The classes 0 ... K-1 of voxels: labels or, with regions, combinations of regions.

    Args:
        label_manager: Label manager of nnU-Net.

    Attributes:
        num: Number of classes, K, including the background, without the ignore label.
    """

    def __init__(self, label_manager: Any) -> None:
        self.ignore = label_manager.ignore_label
        self.combinations: list[int] | None = None
        self.num = len(label_manager.all_labels)
        if label_manager.has_regions:
            # 'all_labels' are the labels in regions, which may lack the background; it is a class as well
            members = [set(r) if isinstance(r, (tuple, list)) else {r} for r in label_manager.foreground_regions]
            codes = {
                sum((label in region) << i for i, region in enumerate(members)) for label in label_manager.all_labels
            }
            self.combinations = sorted(codes | {0})
            self.num = len(self.combinations)

    def of_target(self, target: Tensor | list[Tensor]) -> Tensor:
        """The class of each voxel, ``(B, *spatial)``, int64; -1 for ignored voxels.

        Args:
            target: Target of nnU-Net; of a list, the first one, at full resolution, is used.
        """
        if isinstance(target, list):
            target = target[0]
        if self.combinations is None:
            labels = target[:, 0].long()
            return labels if self.ignore is None else labels.masked_fill(labels == self.ignore, -1)
        regions = target if self.ignore is None else target[:, :-1]
        bits = 2 ** torch.arange(regions.shape[1], device=target.device)
        codes = (regions.long() * bits.reshape(-1, *[1] * (target.ndim - 2))).sum(1)
        known = to_device(torch.tensor(self.combinations), target.device)
        classes = torch.searchsorted(known, codes).clamp(max=self.num - 1)
        classes = torch.where(known[classes] == codes, classes, -1)
        return classes if self.ignore is None else classes.masked_fill(target[:, -1] > 0, -1)
