"""Two views of one scene, cut from different places.

With equal crops, a network learns where a voxel is in the crop: its features of a brain and of unrelated noise at the
same place agree. Different places leave only what the views show.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nnunet_dg.synthesis.contrasts import draw_contrast, remap
from nnunet_dg.synthesis.defects import blur, draw_defects
from nnunet_dg.synthesis.draws import Draws
from nnunet_dg.synthesis.scenes import Scene, draw_scene

REMAPPED = 0.4  # probability that the second view is a remapping of the first one's intensities


@dataclass(frozen=True)
class Pair:
    """Two views of a scene.

    Attributes:
        views: ``(2, 1, *crop)``, float32, in [0, 1].
        starts: First voxel of the region that both views show, for each view and axis.
        labels: Label map of that region, ``(*common)``, int64; 0 is the outside.
    """

    views: Tensor
    starts: tuple[tuple[int, ...], tuple[int, ...]]
    labels: Tensor


def draw_pair(crop: Sequence[int], margin: int, draws: Draws) -> Pair:
    """Two views of a random scene.

    Args:
        crop: Spatial shape of the views, two or three sizes.
        margin: Number of voxels by which the scene is larger, and by which views may be apart along an axis; less than
            each size of the crop.
        draws: Source of random numbers.
    """
    scene = draw_scene([size + margin for size in crop], draws)
    places = [[draws.whole(0, margin) for _ in crop] for _ in range(2)]
    common = [max(a, b) for a, b in zip(*places, strict=True)]
    sizes = [size - abs(a - b) for size, a, b in zip(crop, *places, strict=True)]
    box = tuple(slice(start, start + size) for start, size in zip(common, sizes, strict=True))
    first, second = (tuple(c - p for c, p in zip(common, place, strict=True)) for place in places)
    return Pair(torch.stack(_views(scene, crop, places, draws))[:, None], (first, second), scene.labels[box])


def _views(scene: Scene, crop: Sequence[int], places: list[list[int]], draws: Draws) -> list[Tensor]:
    same = draws.chance(REMAPPED)
    contrast = draw_contrast(scene.labels, scene.textures, scene.count, draws) if same else None
    if contrast is not None:  # boundaries have intensities in between, which are remapped as well
        contrast = blur(contrast, [draws.uniform(0, 0.9)] * len(crop))
    views = []
    for number, place in enumerate(places):
        box = tuple(slice(start, start + size) for start, size in zip(place, crop, strict=True))
        if contrast is None:
            of_textures = (slice(None), *box)
            view = draw_contrast(scene.labels[box], scene.textures[of_textures], scene.count, draws)
        else:
            view = remap(contrast, draws)[box] if number else contrast[box]
        views.append(draw_defects(view, draws))
    return views
