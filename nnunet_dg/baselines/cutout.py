"""CutOut: a box is cut out of the image and its label.

T. DeVries, G. W. Taylor, Improved Regularization of Convolutional Neural Networks with Cutout, 2017,
https://arxiv.org/abs/1708.04552. That the label is cut out as well is from the comparison in: S. Diaz, P. Golland, E.
Adalsteinsson, N. Dey, Why Invariance is Not Enough for Biomedical Domain Generalization and How to Fix It, 2026,
https://arxiv.org/abs/2604.02564.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from nnunet_dg.method import Batch, Method, Paper, Student, TrainingModule, choice, number, probability
from nnunet_dg.tensors import to_device

BACKGROUND = 0


def hole_edges(shape: Sequence[int], size: float) -> tuple[int, ...]:
    """The edges of the hole, in voxels: a fraction of the patch along each axis, rounded, and at least one voxel.

    Args:
        shape: Spatial shape of the patch.
        size: Fraction of the patch.

    >>> hole_edges((128, 160, 64), 0.33)
    (42, 53, 21)
    """
    return tuple(max(round(size * n), 1) for n in shape)


def holes(centers: Tensor, edges: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Boxes around centers, which may be partly outside the patch.

    Along an axis, a hole of length L begins at ``center - L // 2``.

    Args:
        centers: Center of each sample's hole, ``(B, axes)``, integers.
        edges: Length of the holes along each axis, in voxels.
        shape: Spatial shape of the patch.

    Returns:
        Whether each voxel is in the hole, ``(B, 1, *shape)``, bool.

    >>> holes(torch.tensor([[0], [5], [9]]), edges=(3,), shape=(10,)).int()[:, 0]
    tensor([[1, 1, 0, 0, 0, 0, 0, 0, 0, 0],
            [0, 0, 0, 0, 1, 1, 1, 0, 0, 0],
            [0, 0, 0, 0, 0, 0, 0, 0, 1, 1]], dtype=torch.int32)
    """
    hole = torch.ones(len(centers), *[1] * (len(shape) + 1), dtype=torch.bool, device=centers.device)
    for axis, (length, size) in enumerate(zip(edges, shape, strict=True)):
        start = (centers[:, axis] - length // 2)[:, None]
        place = torch.arange(size, device=centers.device)
        along = (place >= start) & (place < start + length)
        hole = hole & along.reshape(-1, *[1] * (axis + 1), size, *[1] * (len(shape) - axis - 1))
    return hole


def cut_images(images: Tensor, hole: Tensor, fill: str = "zero") -> Tensor:
    """The images ``(B, C, *spatial)`` with the hole filled.

    Args:
        images: Images.
        hole: Voxels of the hole, ``(B, 1, *spatial)``.
        fill: ``"zero"`` (default), the mean of z-scored images; or ``"midrange"``, the middle between the minimum and
            the maximum of each sample and channel.

    >>> image, hole = torch.tensor([[[1.0, 2.0, 7.0]]]), torch.tensor([[[False, True, False]]])
    >>> cut_images(image, hole), cut_images(image, hole, "midrange")
    (tensor([[[1., 0., 7.]]]), tensor([[[1., 4., 7.]]]))
    """
    if fill == "zero":
        return images.masked_fill(hole, 0)
    axes = tuple(range(2, images.ndim))
    middle = (images.amin(axes, keepdim=True) + images.amax(axes, keepdim=True)) / 2
    return torch.where(hole, middle, images)


def cut_target(target: Tensor, hole: Tensor, regions: int = 0, ignored: Tensor | None = None) -> Tensor:
    """The target with background in the hole, at any resolution. Ignored voxels stay ignored.

    Args:
        target: Target, ``(B, 1 or regions, *size)``; regions may be followed by the mask of ignored voxels.
        hole: Voxels of the hole at full resolution, ``(B, 1, *spatial)``. For a lower resolution of deep supervision,
            the nearest voxel counts, as in nnU-Net's downsampling of labels.
        regions: Number of regions, which are the first channels of the target; 0: the target is a label map.
        ignored: Ignored voxels of a label map, ``(B, 1, *size)``; None: there are none.

    >>> hole = torch.tensor([[[True, True, False]]])
    >>> cut_target(torch.tensor([[[1, 9, 2]]]), hole, ignored=torch.tensor([[[False, True, False]]]))
    tensor([[[0, 9, 2]]])
    """
    if hole.shape[2:] != target.shape[2:]:
        hole = F.interpolate(hole.float(), target.shape[2:], mode="nearest-exact") > 0
    if regions:
        return torch.cat([target[:, :regions].masked_fill(hole, 0), target[:, regions:]], 1)
    return target.masked_fill(hole if ignored is None else hole & ~ignored, BACKGROUND)


@dataclass(frozen=True)
class CutOut(Method):
    """CutOut: with probability p, a box of the same place is cut out of all channels of a sample and of its label.

    T. DeVries, G. W. Taylor, Improved Regularization of Convolutional Neural Networks with Cutout, 2017,
    https://arxiv.org/abs/1708.04552. The center of the box is uniform over the patch, so that up to half of each edge
    is outside. In the box, the label is background, ignored voxels stay ignored, and the channels of a cascade's
    previous stage are zero. Holes are cut after nnU-Net's augmentation. The paper cuts half of each edge out of the
    image; a third, and the label as well, are as in the comparison of DropGen's paper.

    Attributes:
        p: Probability that a sample has a hole.
        size: Edges of the hole, as a fraction of the patch along each axis.
        fill: What the image is in the hole: zero, the mean of z-scored images, or the middle of each channel's range,
            for images with another normalization.
    """

    key: ClassVar[str] = "cutout"
    slot: ClassVar[str] = "images"
    paper: ClassVar[Paper] = Paper(
        "Improved Regularization of Convolutional Neural Networks with Cutout",
        "Terrance DeVries, Graham W. Taylor",
        "arXiv preprint",
        2017,
        "https://arxiv.org/abs/1708.04552",
        "misc",
    )

    p: float = probability(0.5)
    size: float = number(0.33, above=0, high=1)
    fill: str = choice("zero", "midrange")

    def training_module(self, student: Student) -> CutOutTraining:
        """The training module, which cuts the holes."""
        return CutOutTraining(self, student)


class CutOutTraining(TrainingModule):
    """Cuts holes into samples of every batch.

    Args:
        settings: Settings, see `CutOut`.
        student: Network in training.
    """

    def __init__(self, settings: CutOut, student: Student) -> None:
        super().__init__()
        self.settings, self.student = settings, student

    def augment(self, batch: Batch) -> Batch:
        """The batch, in which each sample has a hole with probability p."""
        if self.settings.p == 0:
            return batch
        data, images, target = batch.data, batch.images, batch.target
        hole = self._draw(data)
        rest = data[:, batch.image_channels :].masked_fill(hole, 0)
        changed = torch.cat([cut_images(images, hole, self.settings.fill), rest], 1)
        scales = [self._cut(scale, hole) for scale in (target if isinstance(target, list) else [target])]
        return replace(batch, data=changed, target=scales if isinstance(target, list) else scales[0])

    def _draw(self, data: Tensor) -> Tensor:
        """The holes of a batch, ``(B, 1, *spatial)``; samples without a hole are False everywhere."""
        samples, shape, device = len(data), data.shape[2:], data.device
        centers = (torch.rand(samples, len(shape)) * torch.tensor(shape)).long()
        chosen = torch.rand(samples) < self.settings.p
        hole = holes(to_device(centers, device), hole_edges(shape, self.settings.size), shape)
        return hole & to_device(chosen, device).reshape(-1, *[1] * (data.ndim - 1))

    def _cut(self, target: Tensor, hole: Tensor) -> Tensor:
        """The target at one resolution with background in the hole."""
        if self.student.regions:
            return cut_target(target, hole, regions=self.student.num_outputs)
        return cut_target(target, hole, ignored=self.student.classes(target)[:, None] < 0)
