"""Random amplitude mixup: another sample's low frequencies in this one's place (RAM-DSIR, Zhou et al., ECCV 2022)."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def random_amplitude_mixup(image: Tensor, partner: Tensor, ratio: Tensor, half_width: float = 0.1) -> Tensor:
    """The image with ``ratio * own + (1 - ratio) * partner's`` amplitude in its lowest frequencies, its phase kept.

    The window holds the frequencies that are at most ``floor(half_width * shortest side)`` from zero along each axis.
    The result is clipped to the image's own range, per sample and channel. Computed in float32, without gradient.

    Args:
        image: ``(B, C, *spatial)``, any range, any number of spatial axes.
        partner: the same shape; a sample of another domain, for example.
        ratio: ``(B,)``, in [0, 1]; 1 is the identity.
        half_width: fraction of the shortest side.

    Raises:
        ValueError: shapes that differ, or half_width outside [0, 0.5].
    """
    if image.shape != partner.shape:
        raise ValueError(f"image and partner must have the same shape; got {(*image.shape,)} and {(*partner.shape,)}.")
    if not 0 <= half_width <= 0.5:
        raise ValueError(f"half_width must be a fraction of the shortest side in [0, 0.5]; got {half_width!r}.")
    spatial = image.shape[2:]
    axes = tuple(range(2, image.ndim))
    with torch.no_grad(), torch.autocast(image.device.type, enabled=False):
        own, other = (torch.fft.rfftn(x.float(), dim=axes) for x in (image, partner))
        ratio = ratio.to(own.real).reshape(-1, *[1] * (image.ndim - 1))
        amplitude = own.abs()
        mixed = torch.where(
            low_frequencies(spatial, half_width, image.device), ratio * amplitude + (1 - ratio) * other.abs(), amplitude
        )
        result = torch.fft.irfftn(torch.polar(mixed, own.angle()), s=spatial, dim=axes)
        low, high = image.float().amin(axes, keepdim=True), image.float().amax(axes, keepdim=True)
        return result.clamp(low, high).to(image.dtype)


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
        """``(B, C, *spatial)`` and ``(B,)`` -> ``(B, C, *spatial)``; the very first sample, if alone, is its own."""
        earlier = list(self._last)
        of = torch.cat([domains.cpu(), torch.tensor(earlier, dtype=domains.dtype)])
        chosen = []
        for i, domain in enumerate(domains.tolist()):
            foreign = (of != domain).nonzero().flatten().tolist()
            others = [k for k in range(len(images)) if k != i]
            candidates = foreign or others or [*range(len(images), len(of))] or [i]
            j = candidates[int(torch.randint(len(candidates), ()))]
            chosen.append(images[j] if j < len(images) else self._last[earlier[j - len(images)]])
        for image, domain in zip(images, domains.tolist(), strict=True):
            self._last[domain] = image.detach().clone()
        return torch.stack(chosen)


def low_frequencies(spatial: tuple[int, ...], half_width: float, device: torch.device) -> Tensor:
    """Bool, in the layout of `torch.fft.rfftn`: the centred low-frequency window."""
    reach = math.floor(half_width * min(spatial))
    frequencies = [torch.fft.fftfreq(n, 1 / n, device=device) for n in spatial[:-1]]
    frequencies.append(torch.fft.rfftfreq(spatial[-1], 1 / spatial[-1], device=device))
    return torch.stack(torch.meshgrid(*[f.abs() <= reach for f in frequencies], indexing="ij")).all(0)
