"""JiGen: the bottleneck also predicts in which order the tiles of an image are shown.

F. M. Carlucci, A. D'Innocente, S. Bucci, B. Caputo, T. Tommasi, Domain Generalization by Solving Jigsaw Puzzles, CVPR
2019, https://arxiv.org/abs/1903.06864.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from nnunet_dg.hooks import kept_buffers
from nnunet_dg.method import Method, Paper, Step, Student, TrainingModule, number, probability
from nnunet_dg.tensors import to_device, wide

CUBIC = 2  # the longest axis of a patch that is divided along all axes is at most this times the shortest


@cache
def distant_orders(tiles: int, count: int) -> tuple[tuple[int, ...], ...]:
    """Orders of tiles that differ in as many places as possible: from the identity on, the next order is the one whose
    smallest distance to the chosen ones is largest, the first of them in lexicographic order.

    Args:
        tiles: Number of tiles, n.
        count: Number of orders, at most n!.

    >>> distant_orders(tiles=4, count=5)
    ((0, 1, 2, 3), (1, 0, 3, 2), (2, 3, 0, 1), (3, 2, 1, 0), (0, 2, 3, 1))
    """
    every = _all_orders(tiles).T.copy()  # one row for each place
    chosen, nearest = [0], np.full(every.shape[1], tiles + 1, dtype=np.int8)
    while len(chosen) < count:
        last = every[:, chosen[-1]]
        distance = sum((row != tile).view(np.int8) for row, tile in zip(every, last, strict=True))
        nearest = np.minimum(nearest, distance)
        nearest[chosen[-1]] = -1
        chosen.append(int(nearest.argmax()))
    return tuple(tuple(map(int, every[:, i])) for i in chosen)


def _all_orders(tiles: int) -> NDArray[np.int8]:
    """All orders of tiles, ``(tiles!, tiles)``, in lexicographic order."""
    if tiles == 1:
        return np.zeros((1, 1), dtype=np.int8)
    rest = _all_orders(tiles - 1)
    firsts = [np.full((len(rest), 1), first, dtype=np.int8) for first in range(tiles)]
    return np.concatenate([np.hstack([first, rest + (rest >= first)]) for first in firsts]).astype(np.int8)


def grid_of(patch_size: Sequence[int]) -> tuple[int, ...]:
    """The number of tiles along each axis: 3 x 3 in 2-D; in 3-D 2 x 2 x 2, or 1 x 3 x 3 for thin patches.

    A patch is thin if its longest axis has more than twice the voxels of its shortest. The shortest one is not divided.

    >>> grid_of((64, 64)), grid_of((96, 128, 128)), grid_of((16, 256, 256))
    ((3, 3), (2, 2, 2), (1, 3, 3))
    """
    if len(patch_size) == 3 and max(patch_size) <= CUBIC * min(patch_size):
        return (2, 2, 2)
    thin = list(patch_size).index(min(patch_size)) if len(patch_size) == 3 else -1
    return tuple(1 if axis == thin else 3 for axis in range(len(patch_size)))


def reordered(data: Tensor, grid: Sequence[int], orders: Sequence[Sequence[int]]) -> Tensor:
    """Each sample with its tiles in another order: place i shows tile ``order[i]``.

    Tiles are counted along the last axis first. Together they cover the whole patch: if an axis cannot be divided
    evenly, some tiles have one more voxel than others, and a place shows as many voxels as it has, from the tile's
    first on, or the last ones of the axis. A remainder outside of all tiles would show which images are shuffled, by
    its content or by its absence.

    Args:
        data: ``(B, C, *spatial)``.
        grid: Number of tiles along each spatial axis.
        orders: Order of each sample, ``(B, tiles)``.

    Returns:
        The same shape and dtype.

    >>> reordered(torch.arange(4.0).reshape(1, 1, 2, 2), (2, 2), [(2, 0, 3, 1)])
    tensor([[[[2., 0.],
              [3., 1.]]]])
    """
    axes = list(zip(data.shape[2:], grid, strict=True))
    corners = list(itertools.product(*(range(parts) for parts in grid)))
    result = data.clone()
    for sample, order in enumerate(orders):
        for place, tile in zip(corners, (corners[i] for i in order), strict=True):
            if place != tile:
                shown = [_shown(*axis, *at) for axis, *at in zip(axes, place, tile, strict=True)]
                to, source = ((sample, slice(None), *slices) for slices in zip(*shown, strict=True))
                result[to] = data[source]
    return result


def _shown(size: int, parts: int, place: int, tile: int) -> tuple[slice, slice]:
    """The voxels of a place along an axis that is divided into parts, and those of a tile that it shows."""
    first, end = place * size // parts, (place + 1) * size // parts
    source = min(tile * size // parts, size - (end - first))
    return slice(first, end), slice(source, source + end - first)


@dataclass(frozen=True)
class JiGen(Method):
    """JiGen: images are shown with their tiles in one of several orders, which the bottleneck must recognize.

    F. M. Carlucci, A. D'Innocente, S. Bucci, B. Caputo, T. Tommasi, Domain Generalization by Solving Jigsaw Puzzles,
    CVPR 2019, https://arxiv.org/abs/1903.06864. A linear layer on the mean of the bottleneck predicts the order; its
    cross entropy is added to nnU-Net's loss of the images as they are. The paper classifies images; nobody says how to
    segment, so shuffled images are not segmented. In 2-D there are 3 x 3 tiles, in 3-D 2 x 2 x 2, or 1 x 3 x 3 for thin
    patches. Batches are balanced over domains with ``domains.json``; the method needs no domains. A step in which an
    image is shuffled takes a second pass.

    Attributes:
        orders: Number of orders besides the usual one.
        weight: Weight of the cross entropy.
        ordered: Probability that a sample keeps its order; otherwise it gets one of all orders, including the usual.
    """

    key: ClassVar[str] = "jigen"
    slot: ClassVar[str] = "auxiliary task"
    paper: ClassVar[Paper] = Paper(
        "Domain Generalization by Solving Jigsaw Puzzles",
        "Fabio M. Carlucci, Antonio D'Innocente, Silvia Bucci, Barbara Caputo, Tatiana Tommasi",
        "IEEE Conference on Computer Vision and Pattern Recognition (CVPR)",
        2019,
        "https://arxiv.org/abs/1903.06864",
    )

    orders: int = number(30, 1, 1000, whole=True)
    weight: float = number(0.7, above=0)
    ordered: float = probability(0.9)

    def balances_domains(self) -> bool:
        """Batches are balanced over the domains."""
        return True

    def training_module(self, student: Student) -> JiGenTraining:
        """The training module, with the layer that predicts the order."""
        return JiGenTraining(self, student)


class JiGenTraining(TrainingModule):
    """Shows images in other orders, and computes the cross entropy of the predicted order.

    Args:
        settings: Settings, see `JiGen`.
        student: Network in training.
    """

    def __init__(self, settings: JiGen, student: Student) -> None:
        super().__init__()
        self.settings, self.student = settings, student
        self.grid = grid_of(student.patch_size)
        self.orders = distant_orders(math.prod(self.grid), settings.orders + 1)
        self.bottleneck = student.tap(-1)
        self.head = nn.Linear(student.widths[-1], settings.orders + 1)

    def weights(self, epoch: int) -> dict[str, float]:
        """Weights of the terms."""
        return {"segmentation": 1.0, "jigsaw": self.settings.weight}

    def losses(self, step: Step) -> dict[str, Tensor]:
        """nnU-Net's loss, and the cross entropy of the order.

        All devices make a second pass if one of them has a shuffled image.
        """
        data = step.batch.data
        orders = self.draw(len(data))
        terms, shown = {"segmentation": step.segmentation(step.output)}, step.own
        if bool((self.student.gathered(orders) > 0).any()):
            with kept_buffers(self.student.network):  # shuffled images do not count in batch norm's statistics
                shown = step.forward(reordered(data, self.grid, [self.orders[order] for order in orders.tolist()]))
        with torch.autocast(data.device.type, enabled=False):
            logits = self.head(wide(shown.features(self.bottleneck)).flatten(2).mean(2).to(self.head.weight.dtype))
            return terms | {"jigsaw": F.cross_entropy(logits, to_device(orders, data.device))}

    def draw(self, samples: int) -> Tensor:
        """The number of each sample's order, ``(B,)``, int64, on the CPU; 0: the usual order."""
        drawn = torch.randint(len(self.orders), (samples,))
        return drawn.masked_fill(torch.rand(samples) < self.settings.ordered, 0)
