"""LRA: the student's enhanced features are pulled towards the teacher's (TinyMIG, ICML 2025, eq. 13)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from nnunet_dg.tensors import wide
from nnunet_dg.tinymig.reprogramming import resize

MOST_VOXELS = {2: 64, 3: 32}  # a side: at full resolution the alignment would cost more than the network
SCALES = ("free", "paper")
EPS = 1e-5  # as in UFDM: features that vary less are not blown up to unit RMS
ROUNDING = 1e-12  # the square of float32's, with some room for a Fourier transform
TINY = 1e-30


def pooled_shape(spatial: Sequence[int]) -> tuple[int, ...]:
    """The shape in which features are aligned: at most 64 voxels a side in 2-D, 32 in 3-D."""
    return tuple(min(size, MOST_VOXELS[len(spatial)]) for size in spatial)


def pool(feature: Tensor) -> Tensor:
    """``(B, A, *spatial) -> (B, A, *pooled_shape(spatial))``, by averaging."""
    return resize(feature, pooled_shape(feature.shape[2:]))


def gain(enhanced: Tensor, given: Tensor) -> Tensor:
    """``std(enhanced) / std(given)`` over space, ``(B, A, *spatial) -> (B, A, 1, ...)``; for constants, of means."""
    return (_variance(enhanced) / _variance(given)).sqrt()


def _variance(x: Tensor) -> Tensor:
    """Over space, with what rounding alone can make of a constant on top, so that it is not taken for a variation."""
    axes = tuple(range(2, x.ndim))
    variance, mean = torch.var_mean(wide(x), axes, correction=0, keepdim=True)
    return variance + ROUNDING * mean.square() + TINY


def scale_free(enhanced: Tensor, given: Tensor) -> Tensor:
    """The enhanced feature with zero mean and unit RMS per sample and channel, whatever the scale of the enhancement.

    Where the given feature hardly varies, as on a blank patch, it stays small: its RMS is ``std / sqrt(std**2 + EPS)``
    with ``std`` that of the given feature, so that gradients stay bounded.

    Args:
        enhanced: ``(B, A, *spatial)``.
        given: The feature before its enhancement, the same shape.

    Returns:
        The same shape, float32. The gradient flows into both.
    """
    axes = tuple(range(2, given.ndim))
    std = (wide(given).var(axes, correction=0, keepdim=True) + EPS).sqrt()
    enhanced = wide(enhanced)
    return (enhanced - enhanced.mean(axes, keepdim=True)) / (gain(enhanced, given) * std)


def localized_representation_alignment(teacher: Sequence[Tensor], student: Sequence[Tensor]) -> Tensor:
    """Eq. 13: the squared difference, averaged over the elements of each depth and over depths. In float32.

    As printed, this is the term of `alignment_scale` "paper". Its minimum is trivial where a shared, trainable
    enhancement may shrink, so by default the features go through `scale_free` first.

    Args:
        teacher: Enhanced features of each depth, ``(B, A_i, *spatial_i)``; they get a gradient as well.
        student: The same shapes.
    """
    return torch.stack([F.mse_loss(wide(s), wide(t)) for t, s in zip(teacher, student, strict=True)]).mean()
