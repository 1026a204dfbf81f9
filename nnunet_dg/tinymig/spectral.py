"""LRA computed from spectra, without transforming the enhanced features back.

TinyMIG: Transferring Generalization from Vision Foundation Models to Single-Domain Medical Imaging, ICML 2025,
https://proceedings.mlr.press/v267, eq. 13. By Parseval's theorem, means over voxels of squares and of squared
differences are weighted sums over frequencies. Half spectra have the layout of `torch.fft.rfftn`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from nnunet_dg.tensors import wide

if TYPE_CHECKING:
    from nnunet_dg.tinymig.content import FrequencyContentEnhancement

EPS = 1e-5  # as in UFDM: features with less variation are not amplified to unit RMS
ROUNDING = 1e-12  # the squared rounding error of float32, with some margin for a Fourier transform
TINY = 1e-30


class Enhanced(NamedTuple):
    """An enhanced feature, given by its spectrum.

    Attributes:
        numbers: Real and imaginary parts of the half spectrum before channels are weighted, ``(B, A, 2 * F)``.
        gain: ``std(enhanced) / std(given)`` over space, ``(B, A)``. For constant features it is the ratio of their
            means.
        weight: Weight of each channel, ``(B, A)``.
        scale_free: Factor of ``numbers``, ``(B, A)``, after which the feature has unit RMS, independent of the
            enhancement's scale. If the given feature hardly varies, as on a blank patch, the RMS stays small:
            ``std / sqrt(std**2 + EPS)``, where ``std`` is that of the given feature. This keeps gradients bounded.
    """

    numbers: Tensor
    gain: Tensor
    weight: Tensor
    scale_free: Tensor


def enhanced_spectrum(enhance: FrequencyContentEnhancement, feature: Tensor) -> Enhanced:
    """Enhance a feature ``(B, A, *spatial)``, in at least float32, also under autocast."""
    spatial = tuple(feature.shape[2:])
    with torch.autocast(feature.device.type, enabled=False):
        spectrum = torch.fft.rfftn(wide(feature), dim=tuple(range(2, feature.ndim)))
        filtered, phase = enhance.filtered(spectrum)
        weight = enhance.channel_weights(phase)
        weight = torch.ones_like(phase.flatten(2)[..., 0]) if weight is None else weight
        return scaled(_numbers(spectrum), _numbers(filtered), weight, spatial)


def scaled(given: Tensor, enhanced: Tensor, weight: Tensor, spatial: Sequence[int]) -> Enhanced:
    """The enhanced feature with its scale.

    Args:
        given: Spectrum before the enhancement, as in `Enhanced.numbers`.
        enhanced: Spectrum after it.
        weight: Weight of each channel, ``(B, A)``.
        spatial: Spatial shape of the feature.
    """
    shares = shares_of_variance(spatial, given)
    variance = _squares(given, shares)
    before = _at_least_rounding(variance, given, spatial)
    after = _at_least_rounding(_squares(enhanced, shares), enhanced, spatial) * weight.square()
    gain = ((after + TINY) / (before + TINY)).sqrt()
    return Enhanced(enhanced, gain, weight, weight / (gain * (variance + EPS).sqrt()))


def alignment(teacher: Enhanced, student: Enhanced, spatial: Sequence[int], scale: str) -> Tensor:
    """The squared difference of both enhanced features, averaged over samples, channels and voxels.

    It is computed in the dtype of the spectra, also under autocast: in half precision, large low frequencies overflow,
    and the weights of frequencies vanish.

    Args:
        teacher: Enhanced feature of the teacher.
        student: Enhanced feature of the student.
        spatial: Spatial shape of both.
        scale: ``"free"``: both have zero mean and unit RMS. ``"paper"``: they are compared as they are.
    """
    free = scale == "free"
    factors = [(side.scale_free if free else side.weight).unsqueeze(-1) for side in (teacher, student)]
    with torch.autocast(teacher.numbers.device.type, enabled=False):
        difference = torch.addcmul(teacher.numbers * factors[0], student.numbers, factors[1], value=-1)
        shares = shares_of_variance(spatial, difference) if free else shares_of_power(spatial, difference)
        return _squares(difference, shares).mean()


def shares_of_power(spatial: Sequence[int], like: Tensor) -> Tensor:
    """Weights ``(2 * F,)`` with which the squared numbers of a half spectrum sum to the mean square over voxels.

    >>> values = torch.tensor([[[1.0, 3.0, 2.0]]])
    >>> numbers = torch.view_as_real(torch.fft.rfftn(values, dim=(2,))).flatten(2)
    >>> round(float((numbers.square() @ shares_of_power((3,), values)).item() * 3), 4)
    14.0
    """
    last = torch.arange(spatial[-1] // 2 + 1, device=like.device)
    mirrored = torch.where((last == 0) | (2 * last == spatial[-1]), 1.0, 2.0)  # the other half is not stored
    shares = mirrored.to(like.dtype) / math.prod(spatial) ** 2
    return shares.repeat_interleave(2, output_size=2 * len(last)).repeat(math.prod(spatial[:-1]))


def shares_of_variance(spatial: Sequence[int], like: Tensor) -> Tensor:
    """Like `shares_of_power`, without the frequency zero, which is the mean."""
    shares = shares_of_power(spatial, like)
    shares[:2] = 0
    return shares


def _numbers(spectrum: Tensor) -> Tensor:
    return torch.view_as_real(spectrum).flatten(2)


def _squares(numbers: Tensor, shares: Tensor) -> Tensor:
    return numbers.square() @ shares


def _at_least_rounding(variance: Tensor, numbers: Tensor, spatial: Sequence[int]) -> Tensor:
    """The variance plus a bound of the rounding error, so that a constant does not seem to vary."""
    return variance + ROUNDING * (numbers[..., 0] / math.prod(spatial)).square()
