"""LRA (localized representation alignment): pulls the student's enhanced features towards the teacher's.

TinyMIG: Transferring Generalization from Vision Foundation Models to Single-Domain Medical Imaging, ICML 2025,
https://proceedings.mlr.press/v267, eq. 13.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from nnunet_dg.tensors import wide
from nnunet_dg.tinymig.reprogramming import resize

MOST_VOXELS = {2: 64, 3: 32}  # per side: at full resolution the alignment would cost more than the network
SCALES = ("free", "paper")


def pooled_shape(spatial: Sequence[int]) -> tuple[int, ...]:
    """The spatial shape in which features are aligned: at most 64 voxels per side in 2-D, 32 in 3-D."""
    return tuple(min(size, MOST_VOXELS[len(spatial)]) for size in spatial)


def pool(feature: Tensor) -> Tensor:
    """Average pooling, ``(B, A, *spatial) -> (B, A, *pooled_shape(spatial))``."""
    return resize(feature, pooled_shape(feature.shape[2:]))


def localized_representation_alignment(teacher: Sequence[Tensor], student: Sequence[Tensor]) -> Tensor:
    """Eq. 13 of TinyMIG: the squared difference, averaged over the elements of each depth and over depths.

    It is computed in at least float32. `alignment_scale` "paper" uses it as published. A shared, trainable enhancement
    can minimize it by shrinking all features, so by default the features are first brought to zero mean and unit RMS.
    `nnunet_dg.tinymig.spectral` computes both from spectra.

    Args:
        teacher: Enhanced features of the teacher, one ``(B, A_i, *spatial_i)`` per depth. They get a gradient as well.
        student: Enhanced features of the student, the same shapes.

    >>> teacher, student = [torch.zeros(1, 1, 2)], [torch.tensor([[[1.0, 3.0]]])]
    >>> localized_representation_alignment(teacher, student)
    tensor(5.)
    """
    return torch.stack([F.mse_loss(wide(s), wide(t)) for t, s in zip(teacher, student, strict=True)]).mean()
