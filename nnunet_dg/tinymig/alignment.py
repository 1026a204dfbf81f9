"""LRA: the student's enhanced features are pulled towards the teacher's (TinyMIG, eq. 13)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

MOST_VOXELS_3D = 32  # a side: Fourier transforms of full-resolution volumes would cost more than the network


def pooled_shape(spatial: Sequence[int]) -> tuple[int, ...]:
    """The shape in which features are aligned: in 3-D at most 32 voxels a side."""
    return tuple(spatial) if len(spatial) == 2 else tuple(min(size, MOST_VOXELS_3D) for size in spatial)


def pool(feature: Tensor) -> Tensor:
    """``(B, A, *spatial) -> (B, A, *pooled_shape(spatial))``, by averaging."""
    shape = pooled_shape(feature.shape[2:])
    if shape == tuple(feature.shape[2:]):
        return feature
    return F.adaptive_avg_pool3d(feature, shape)  # type: ignore[arg-type]


def localized_representation_alignment(teacher: Sequence[Tensor], student: Sequence[Tensor]) -> Tensor:
    """Eq. 13: the squared difference, averaged over the elements of each depth and over depths. In float32.

    Args:
        teacher: enhanced features of each depth, ``(B, A_i, *spatial_i)``; they get a gradient as well.
        student: the same shapes.
    """
    return torch.stack([F.mse_loss(s.float(), t.float()) for t, s in zip(teacher, student, strict=True)]).mean()
