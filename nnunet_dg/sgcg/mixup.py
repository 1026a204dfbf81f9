"""Random amplitude mixup: low frequencies get a mixture of their own amplitude and that of another sample.

Zhou, Qi, Shi: Generalizable Medical Image Segmentation via Random Amplitude Mixup and Domain-Specific Image Restoration
(RAM-DSIR), ECCV 2022, https://arxiv.org/abs/2208.03901.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nnunet_dg.tensors import wide


def random_amplitude_mixup(image: Tensor, partner: Tensor, ratio: Tensor, half_width: float = 0.1) -> Tensor:
    """The image with ``ratio * own + (1 - ratio) * partner's`` amplitude in its lowest frequencies; its phase is kept.

    The mixed frequencies are at most ``floor(half_width * shortest side)`` from zero along each axis. The result is
    clipped to the image's own range, per sample and channel. It is computed in at least float32, without gradient.

    The reference mixes non-negative intensities, so that the zero frequency (the mean) has phase 0. The mean of a
    z-scored patch may be negative. Image and partner are therefore shifted by a common offset, the smaller of their
    minima per sample and channel, before the transform, and the result is shifted back.

    Args:
        image: Images, ``(B, C, *spatial)``, with any range and any number of spatial axes.
        partner: Images of the same shape, for example of another domain.
        ratio: Share of the image's own amplitude, ``(B,)``, in [0, 1]; 1 is the identity.
        half_width: Half-width of the frequency window as a fraction of the shortest side, in [0, 0.5]; default 0.1.

    Raises:
        ValueError: The shapes differ, or half_width is outside [0, 0.5].

    >>> image, partner = torch.tensor([[[[1.0, 3.0]]]]), torch.tensor([[[[2.0, 2.0]]]])
    >>> random_amplitude_mixup(image, partner, ratio=torch.ones(1))  # 1 is the identity
    tensor([[[[1., 3.]]]])
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
        # the transform is linear, so adding the change of a few frequencies is cheaper than transforming all back
        result = _from_low_frequencies(change, image.shape[2:]).add_(own)
        return result.clamp_(low, high).to(image.dtype)


def random_ratio(size: int, device: torch.device) -> Tensor:
    """Ratios ``(size,)``, each drawn from 0.1, 0.2, ... 1.

    >>> ratio = random_ratio(100, torch.device("cpu"))
    >>> ratio.min() >= 0.1, ratio.max() <= 1
    (tensor(True), tensor(True))
    """
    return torch.randint(1, 11, (size,), device=device) / 10


class Partners(nn.Module):
    """Chooses a random partner for each sample, from another domain if one has been seen.

    Candidates are the samples of the batch and the last earlier sample of each domain, so that a batch of a single
    domain has partners as well. If only one domain has been seen, the partner is another sample of the batch or, for a
    batch of one, the last earlier sample. One sample per domain is remembered and saved in checkpoints, in DDP those of
    the first device.
    """

    def __init__(self) -> None:
        super().__init__()
        self._last: dict[int, Tensor] = {}

    def of(self, images: Tensor, domains: Tensor) -> Tensor:
        """The partner of each sample, ``(B, C, *spatial)``; without candidates, a sample is its own partner.

        Args:
            images: Images, ``(B, C, *spatial)``.
            domains: Domain of each sample, ``(B,)``, integers, preferably on the CPU, where their values are read.
        """
        numbers = domains.tolist()
        samples = [*images.unbind(), *self._last.values()]
        chosen = [self._choose(i, [*numbers, *self._last], len(numbers)) for i in range(len(numbers))]
        partners = torch.stack([samples[j] for j in chosen])
        for domain, i in {domain: i for i, domain in enumerate(numbers)}.items():
            self._last[domain] = images[i].detach().clone()
        return partners

    def get_extra_state(self) -> dict[int, Tensor]:
        """The last sample of each domain, for checkpoints."""
        return dict(self._last)

    def set_extra_state(self, state: dict[int, Tensor]) -> None:
        """Restore the last sample of each domain."""
        self._last = dict(state)

    @staticmethod
    def _choose(i: int, domains: Sequence[int], in_batch: int) -> int:
        foreign = [j for j, domain in enumerate(domains) if domain != domains[i]]
        others = [j for j in range(in_batch) if j != i]
        candidates = foreign or others or [*range(in_batch, len(domains))] or [i]
        return candidates[int(torch.randint(len(candidates), ()))]


def _reach(spatial: Sequence[int], half_width: float) -> int:
    return math.floor(half_width * min(spatial))


def _change_of_spectrum(own: Tensor, other: Tensor, offset: Tensor, ratio: Tensor, reach: int) -> Tensor:
    """The difference between the mixed and the original spectrum, within the window."""
    spectrum, partner = (_low_frequencies(x - offset, reach) for x in (own, other))
    amplitude = spectrum.abs()
    phase = torch.where(amplitude > 0, spectrum.sgn(), 1)  # a zero amplitude gets phase 0
    ratio = ratio.to(amplitude).reshape(-1, *[1] * (own.ndim - 1))
    return phase * ((1 - ratio) * (partner.abs() - amplitude))


def _low_frequencies(x: Tensor, reach: int) -> Tensor:
    """`torch.fft.rfftn` over the spatial axes, within the window: other frequencies are dropped after each axis."""
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
    """Indices of the frequencies -reach ... reach along an axis in the output of `torch.fft.fft`."""
    reach = min(reach, size // 2)
    first = max(size - reach, reach + 1)  # the highest frequency of an even size occurs only once
    return torch.cat([torch.arange(reach + 1, device=device), torch.arange(first, size, device=device)])
