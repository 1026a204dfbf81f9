"""Random amplitude mixup: low frequencies take their amplitude from another sample.

Zhou, Qi, Shi: Generalizable Medical Image Segmentation via Random Amplitude Mixup and Domain-Specific Image Restoration
(RAM-DSIR), ECCV 2022, https://arxiv.org/abs/2208.03901.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from nnunet_dg.tensors import wide


def random_amplitude_mixup(image: Tensor, partner: Tensor, ratio: Tensor, half_width: float = 0.1) -> Tensor:
    """The image with ``ratio * own + (1 - ratio) * partner's`` amplitude in its lowest frequencies; its phase is kept.

    The window holds the frequencies that are at most ``floor(half_width * shortest side)`` from zero along each axis.
    The result is clipped to the image's own range, per sample and channel. Computed in float32, without gradient.

    The reference mixes intensities that are not negative, so that the zero frequency (the mean) has phase 0. Z-scored
    patches have means of either sign. Image and partner are therefore shifted by a common offset, the smaller of their
    minima per sample and channel, before the transform, and the result is shifted back.

    Args:
        image: ``(B, C, *spatial)``, any range, any number of spatial axes.
        partner: Same shape; for example a sample of another domain.
        ratio: ``(B,)``, in [0, 1]; 1 is the identity.
        half_width: Fraction of the shortest side, in [0, 0.5].

    Raises:
        ValueError: The shapes differ, or half_width is outside [0, 0.5].
    """
    if image.shape != partner.shape:
        raise ValueError(f"image and partner must have the same shape; got {(*image.shape,)} and {(*partner.shape,)}.")
    if not 0 <= half_width <= 0.5:
        raise ValueError(f"half_width must be a fraction of the shortest side in [0, 0.5]; got {half_width!r}.")
    axes = tuple(range(2, image.ndim))
    with torch.no_grad(), torch.autocast(image.device.type, enabled=False):
        own, other = wide(image), wide(partner)
        low, high = own.amin(axes, keepdim=True), own.amax(axes, keepdim=True)
        offset = torch.minimum(low, other.amin(axes, keepdim=True))
        change = _change_of_spectrum(own, other, offset, ratio, _reach(image.shape[2:], half_width))
        # the transform is linear: adding the change of a few frequencies is cheaper than transforming all of them back
        result = _from_low_frequencies(change, image.shape[2:]).add_(own)
        return result.clamp_(low, high).to(image.dtype)


def random_ratio(size: int, device: torch.device) -> Tensor:
    """``(size,)`` ratios, each one of 0.1, 0.2, ... 1."""
    return torch.randint(1, 11, (size,), device=device) / 10


class Partners:
    """For each sample another one at random, of another domain if any has been seen.

    Candidates are the samples of the batch and the last one of each domain before it, so that a batch of one domain has
    partners as well. With a single domain it is another sample of the batch, or if there is none, the last one before
    it. The memory is one sample per domain; it is in no checkpoint.
    """

    def __init__(self) -> None:
        self._last: dict[int, Tensor] = {}

    def of(self, images: Tensor, domains: Tensor) -> Tensor:
        """Partners, ``(B, C, *spatial)``; the very first sample is its own partner if it is the only one.

        Args:
            images: ``(B, C, *spatial)``.
            domains: Of each sample, ``(B,)``, integers, best on the CPU: their values are needed there.
        """
        numbers = domains.tolist()
        samples = [*images.unbind(), *self._last.values()]
        chosen = [self._choose(i, [*numbers, *self._last], len(numbers)) for i in range(len(numbers))]
        partners = torch.stack([samples[j] for j in chosen])
        for domain, i in {domain: i for i, domain in enumerate(numbers)}.items():
            self._last[domain] = images[i].detach().clone()
        return partners

    @staticmethod
    def _choose(i: int, domains: Sequence[int], in_batch: int) -> int:
        foreign = [j for j, domain in enumerate(domains) if domain != domains[i]]
        others = [j for j in range(in_batch) if j != i]
        candidates = foreign or others or [*range(in_batch, len(domains))] or [i]
        return candidates[int(torch.randint(len(candidates), ()))]


def _reach(spatial: Sequence[int], half_width: float) -> int:
    return math.floor(half_width * min(spatial))


def _change_of_spectrum(own: Tensor, other: Tensor, offset: Tensor, ratio: Tensor, reach: int) -> Tensor:
    """What mixing adds to the image's spectrum, in the window only."""
    spectrum, partner = (_low_frequencies(x - offset, reach) for x in (own, other))
    amplitude = spectrum.abs()
    phase = torch.where(amplitude > 0, spectrum.sgn(), 1)  # the phase of zero is 0
    ratio = ratio.to(amplitude).reshape(-1, *[1] * (own.ndim - 1))
    return phase * ((1 - ratio) * (partner.abs() - amplitude))


def _low_frequencies(x: Tensor, reach: int) -> Tensor:
    """`torch.fft.rfftn` over the spatial axes, of the window only: axis by axis, dropping the rest at once."""
    spectrum = torch.fft.rfft(x, dim=-1)[..., : reach + 1]
    for axis in range(x.ndim - 2, 1, -1):
        rows = _rows(x.shape[axis], reach, x.device)
        spectrum = torch.fft.fft(spectrum, dim=axis).index_select(axis, rows)
    return spectrum


def _from_low_frequencies(spectrum: Tensor, spatial: Sequence[int]) -> Tensor:
    """The inverse of `_low_frequencies` for a spectrum that is zero outside the window."""
    reach = spectrum.shape[-1] - 1
    for axis, size in enumerate(spatial[:-1], 2):
        shape = list(spectrum.shape)
        shape[axis] = size
        full = spectrum.new_zeros(shape).index_copy_(axis, _rows(size, reach, spectrum.device), spectrum)
        spectrum = torch.fft.ifft(full, dim=axis)
    return torch.fft.irfft(spectrum, n=spatial[-1], dim=-1)


def _rows(size: int, reach: int, device: torch.device) -> Tensor:
    """Where `torch.fft.fft` has the frequencies -reach ... reach of an axis."""
    reach = min(reach, size // 2)
    negative = range(max(size - reach, reach + 1), size)  # the highest frequency of an even size is there once
    return torch.tensor([*range(reach + 1), *negative], device=device)
