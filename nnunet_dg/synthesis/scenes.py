"""A scene: the label map and the textures that all views of it have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nnunet_dg.synthesis.draws import Draws
from nnunet_dg.synthesis.ellipsoids import paint_ellipsoid
from nnunet_dg.synthesis.outside import outside
from nnunet_dg.synthesis.regions import competing, layers
from nnunet_dg.synthesis.smooth import smooth_fields
from nnunet_dg.synthesis.tubes import paint_tube
from nnunet_dg.synthesis.warps import warp

TEXTURE_SCALES = (2.5, 4.0, 7.0)  # voxels


@dataclass(frozen=True)
class Scene:
    """What there is to see, before it has a contrast.

    Attributes:
        labels: ``(*shape)``, int64, from 0 to ``count - 1``; 0 is the outside and may be absent.
        textures: ``(T, *shape)``, float32, zero mean and unit variance. Fine structure that all contrasts show in their
            own way.
        count: Number of labels that the label map may contain.
    """

    labels: Tensor
    textures: Tensor
    count: int


def draw_scene(shape: Sequence[int], draws: Draws) -> Scene:
    """A random scene.

    Args:
        shape: Spatial shape, two or three sizes.
        draws: Source of random numbers.
    """
    count = draws.whole(4, 12)
    labels = (layers if draws.chance(0.5) else competing)(shape, count, draws) + 1
    count += 1
    if draws.chance(0.4):  # a part of the regions is made of layers
        part = competing(shape, 3, draws) == 0
        inner = draws.whole(3, 6)
        labels = torch.where(part, layers(shape, inner, draws) + count, labels)
        count += inner
    for _ in range(draws.whole(0, 4)):
        labels = paint_ellipsoid(labels, count, draws)
        count += 2
    if draws.chance(0.4):
        labels = paint_tube(labels, count, draws)
        count += 1
    labels = warp(labels, draws.uniform(0, 1.5), draws.uniform(5, 12), draws)
    if draws.chance(0.5):
        labels = labels.masked_fill(outside(shape, draws), 0)
    textures = torch.cat([smooth_fields(shape, scale, 1, draws) for scale in TEXTURE_SCALES])
    return Scene(labels, textures, count)
