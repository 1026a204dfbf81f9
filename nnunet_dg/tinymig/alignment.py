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
EPS = 1e-5  # as in UFDM: features with less variation are not amplified to unit RMS
ROUNDING = 1e-12  # the squared rounding error of float32, with some margin for a Fourier transform
TINY = 1e-30


def pooled_shape(spatial: Sequence[int]) -> tuple[int, ...]:
    """The spatial shape in which features are aligned: at most 64 voxels per side in 2-D, 32 in 3-D."""
    return tuple(min(size, MOST_VOXELS[len(spatial)]) for size in spatial)


def pool(feature: Tensor) -> Tensor:
    """Average pooling, ``(B, A, *spatial) -> (B, A, *pooled_shape(spatial))``."""
    return resize(feature, pooled_shape(feature.shape[2:]))


def gain(enhanced: Tensor, given: Tensor) -> Tensor:
    """``std(enhanced) / std(given)`` over space, ``(B, A, *spatial) -> (B, A, 1, ...)``.

    For constant features it is the ratio of their means.
    """
    return (_variance(enhanced) / _variance(given)).sqrt()


def _variance(x: Tensor) -> Tensor:
    """The variance over space, plus a bound of the rounding error, so that a constant does not seem to vary."""
    axes = tuple(range(2, x.ndim))
    variance, mean = torch.var_mean(wide(x), axes, correction=0, keepdim=True)
    return variance + ROUNDING * mean.square() + TINY


def scale_free(enhanced: Tensor, given: Tensor) -> Tensor:
    """The enhanced feature with zero mean and unit RMS per sample and channel, independent of the enhancement's scale.

    If the given feature hardly varies, as on a blank patch, the result stays small: its RMS is
    ``std / sqrt(std**2 + EPS)``, where ``std`` is that of the given feature. This keeps gradients bounded.

    Args:
        enhanced: Enhanced feature, ``(B, A, *spatial)``.
        given: Feature before the enhancement, the same shape.

    Returns:
        A tensor of the same shape in at least float32. The gradient flows into both arguments.
    """
    axes = tuple(range(2, given.ndim))
    std = (wide(given).var(axes, correction=0, keepdim=True) + EPS).sqrt()
    enhanced = wide(enhanced)
    return (enhanced - enhanced.mean(axes, keepdim=True)) / (gain(enhanced, given) * std)


def localized_representation_alignment(teacher: Sequence[Tensor], student: Sequence[Tensor]) -> Tensor:
    """Eq. 13 of TinyMIG: the squared difference, averaged over the elements of each depth and over depths.

    It is computed in at least float32. `alignment_scale` "paper" uses it as published. A shared, trainable enhancement
    can minimize it by shrinking all features, so by default the features go through `scale_free` first.

    Args:
        teacher: Enhanced features of the teacher, one ``(B, A_i, *spatial_i)`` per depth. They get a gradient as well.
        student: Enhanced features of the student, the same shapes.

    >>> teacher, student = [torch.zeros(1, 1, 2)], [torch.tensor([[[1.0, 3.0]]])]
    >>> localized_representation_alignment(teacher, student)
    tensor(5.)
    """
    return torch.stack([F.mse_loss(wide(s), wide(t)) for t, s in zip(teacher, student, strict=True)]).mean()
