"""The border of each foreground class, the background around it, and the mean features of both.

SAML and FedDG compare them: Q. Liu, Q. Dou, P.-A. Heng, Shape-aware Meta-learning for Generalizing Prostate MRI
Segmentation to Unseen Domains, MICCAI 2020, https://arxiv.org/abs/2007.02035; Q. Liu, C. Chen, J. Qin, Q. Dou, P.-A.
Heng, FedDG, CVPR 2021, https://arxiv.org/abs/2103.06030.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nnunet_dg.method import Student, full_resolution
from nnunet_dg.step import Scales
from nnunet_dg.tensors import wide

BAND = 5  # width of the background band, in voxels


@dataclass(frozen=True)
class Embeddings:
    """Mean features of border and band of each foreground class.

    Attributes:
        border: ``(B, F, A)``, for F foreground classes, or regions, and A feature channels.
        band: ``(B, F, A)``.
        present: Whether the sample has voxels of both, ``(B, F)``, bool.
    """

    border: Tensor
    band: Tensor
    present: Tensor


def grown(mask: Tensor, steps: int = 1) -> Tensor:
    """The mask, grown by one voxel along one axis in each step: a voxel's neighbors are those that share a face.

    Args:
        mask: ``(B, F, *spatial)``, bool.
        steps: Number of steps.

    >>> grown(torch.tensor([[[False, False, True, False]]]), steps=2).int()
    tensor([[[1, 1, 1, 1]]], dtype=torch.int32)
    """
    for _ in range(steps):
        old, mask = mask, mask.clone()
        for axis in range(2, mask.ndim):
            rest = mask.shape[axis] - 1
            mask.narrow(axis, 1, rest).logical_or_(old.narrow(axis, 0, rest))
            mask.narrow(axis, 0, rest).logical_or_(old.narrow(axis, 1, rest))
    return mask


def border_and_band(mask: Tensor, known: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The outermost voxels of the foreground, and the background that is at most 5 steps away from it.

    The edge of the patch is no border.

    Args:
        mask: Foreground, ``(B, F, *spatial)``, bool.
        known: Voxels that are not ignored, ``(B, 1, *spatial)``, bool. Ignored voxels do not count as background, so
            that foreground next to them is not a border, as at the edge of the patch. Default: all voxels.

    Returns:
        Border and band, each ``(B, F, *spatial)``, bool.

    >>> border, band = border_and_band(torch.tensor([[[True, True, True, False]]]))
    >>> border.int(), band.int()
    (tensor([[[0, 0, 1, 0]]], dtype=torch.int32), tensor([[[0, 0, 0, 1]]], dtype=torch.int32))
    """
    outside = ~mask if known is None else ~mask & known
    return mask & grown(outside), grown(mask, BAND) & outside


def region_means(features: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """The mean features of each region, 0 for a region without voxels, and whether it has any.

    It is computed in at least float32, also under autocast. The gradient flows into the features.

    Args:
        features: ``(B, A, *spatial)``.
        masks: ``(B, F, *spatial)``, bool.

    Returns:
        Means ``(B, F, A)``, and ``(B, F)``, bool.

    >>> means, any_voxels = region_means(torch.tensor([[[1.0, 3.0, 9.0]]]), torch.tensor([[[True, True, False]]]))
    >>> means.item(), any_voxels.item()
    (2.0, True)
    """
    with torch.autocast(features.device.type, enabled=False):
        values = wide(features).flatten(2)
        shares = masks.flatten(2).to(values.dtype)
        count = shares.sum(2)
        return shares @ values.transpose(1, 2) / count.clamp(min=1)[..., None], count > 0


def foreground(student: Student, target: Scales) -> tuple[Tensor, Tensor]:
    """The voxels of each foreground class, or of each region, and those that are not ignored.

    Returns:
        ``(B, F, *spatial)`` and ``(B, 1, *spatial)``, bool.

    >>> from types import SimpleNamespace
    >>> student = SimpleNamespace(classes=lambda target: target[:, 0], regions=False, num_classes=2)
    >>> masks, known = foreground(student, torch.tensor([[[0, 1, -1]]]))
    >>> masks.int().tolist(), known.int().tolist()
    ([[[0, 1, 0]]], [[[1, 1, 0]]])
    """
    classes = student.classes(target)[:, None]
    if student.regions:
        masks = full_resolution(target)[:, : student.num_outputs] > 0
    else:
        masks = torch.cat([classes == number for number in range(1, student.num_classes)], 1)
    return masks, classes >= 0


def embeddings(features: Tensor, masks: Tensor, known: Tensor) -> Embeddings:
    """The mean features of border and band of each foreground class.

    Args:
        features: Features at full resolution, ``(B, A, *spatial)``.
        masks: Foreground, ``(B, F, *spatial)``, bool.
        known: Voxels that are not ignored, ``(B, 1, *spatial)``, bool.

    >>> mask = torch.tensor([[[True, True, False]]])
    >>> result = embeddings(torch.tensor([[[1.0, 2.0, 3.0]]]), mask, torch.ones_like(mask))
    >>> result.border.item(), result.band.item(), result.present.item()
    (2.0, 3.0, True)
    """
    border, band = border_and_band(masks, known)
    of_border, has_border = region_means(features, border & known)
    of_band, has_band = region_means(features, band & known)
    return Embeddings(of_border, of_band, has_border & has_band)


def gathered(student: Student, own: Embeddings) -> Embeddings:
    """The embeddings of the samples on all devices, see `Student.gathered`.

    >>> from types import SimpleNamespace
    >>> one = Embeddings(torch.ones(1, 1, 2), torch.zeros(1, 1, 2), torch.ones(1, 1).bool())
    >>> gathered(SimpleNamespace(gathered=lambda values: values), one).present
    tensor([[True]])
    """
    present = student.gathered(own.present.to(own.border.dtype)) > 0.5
    return Embeddings(student.gathered(own.border), student.gathered(own.band), present)
