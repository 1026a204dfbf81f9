"""Smooth random deformation of a label map."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from nnunet_dg.synthesis.draws import Draws
from nnunet_dg.synthesis.smooth import smooth_fields


def warp(labels: Tensor, deviation: float, scale: float, draws: Draws) -> Tensor:
    """Labels read at places displaced by smooth fields; each voxel keeps a label of the input.

    Args:
        labels: Label map ``(*shape)``, int64.
        deviation: Standard deviation of the displacement along each axis, in voxels.
        scale: Scale of the displacement in voxels, see `smooth_fields`.
        draws: Source of random numbers.
    """
    shape = labels.shape
    displacement = deviation * smooth_fields(shape, scale, len(shape), draws)
    places = [torch.linspace(-1, 1, size, device=labels.device) for size in shape]
    grid = torch.stack(torch.meshgrid(*places, indexing="ij"))
    steps = torch.tensor([2 / (size - 1) for size in shape]).reshape(-1, *[1] * len(shape))
    grid = grid + displacement * (steps if labels.device.type == "cpu" else steps.to(labels.device))
    sampled = F.grid_sample(
        labels[None, None].float(),
        grid.flip(0).movedim(0, -1)[None],  # grid_sample takes the last axis first
        mode="nearest",
        padding_mode="border",
        align_corners=True,
    )
    return sampled[0, 0].long()
