"""Simulated domain shifts of rising strength, applied to raw images (DropGen, "Corruption Analysis")."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.transforms import AdjustContrast, GibbsNoise, RandBiasField
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from torch.nn import functional as F  # noqa: N812

Array = NDArray[Any]


@dataclass(frozen=True)
class Corruption:
    """One kind of shift.

    Attributes:
        apply: ``(image (C, *spatial) float32 without axes of length one, strength, seed) -> the same shape``. All
            channels are changed alike.
        strength: what the number says.
        identity: the strength that changes nothing.
        strengths: the default ones.
    """

    apply: Callable[[Array, float, int], Array]
    strength: str
    identity: float
    strengths: tuple[float, ...]

    def __call__(self, image: Array, strength: float, seed: int) -> Array:
        """The corrupted image, ``(C, *spatial)``, float32; the image itself at the identity."""
        image = image.astype(np.float32)
        if strength == self.identity:
            return image
        thin = tuple(axis for axis, length in enumerate(image.shape) if axis and length == 1)
        return np.expand_dims(self.apply(image.squeeze(thin), strength, seed), thin).astype(np.float32)


def seed_of(case: str, seed: int) -> int:
    """A seed of a case's own, the same for all strengths: curves are of one pattern that grows."""
    return zlib.crc32(f"{case} {seed}".encode())


def _gamma(image: Array, exponent: float, _: int) -> Array:
    return np.stack([np.asarray(AdjustContrast(exponent)(channel[None]))[0] for channel in image])


def _bias_field(image: Array, magnitude: float, seed: int) -> Array:
    low = image.min()
    field = RandBiasField(degree=3, coeff_range=(-magnitude, magnitude), prob=1)
    field.set_random_state(seed)
    return np.asarray(field(image - low)) + low


def _noise(image: Array, fraction: float, seed: int) -> Array:
    low, high = np.percentile(image, (0.5, 99.5))
    return image + fraction * (high - low) * np.random.default_rng(seed).standard_normal(image.shape)


def _blur(image: Array, sigma: float, _: int) -> Array:
    return np.stack([gaussian_filter(channel, sigma) for channel in image])


def _low_resolution(image: Array, factor: float, _: int) -> Array:
    mode = {2: "bilinear", 3: "trilinear"}[image.ndim - 1]
    size = [max(1, round(length / factor)) for length in image.shape[1:]]
    small = F.interpolate(torch.from_numpy(image)[None], size, mode="area")
    return F.interpolate(small, image.shape[1:], mode=mode)[0].numpy()


def _inversion(image: Array, fraction: float, _: int) -> Array:
    low, high = image.min(), image.max()
    threshold = high - fraction * (high - low)
    return np.where(image >= threshold, high + threshold - image, image)


def _gibbs(image: Array, alpha: float, _: int) -> Array:
    return np.asarray(GibbsNoise(alpha)(image))


CORRUPTIONS = {
    "gamma": Corruption(_gamma, "exponent", 1.0, (0.25, 0.5, 1.0, 2.0, 4.0)),
    "bias field": Corruption(_bias_field, "largest coefficient of its logarithm", 0.0, (0.0, 0.1, 0.2, 0.4, 0.8)),
    "noise": Corruption(_noise, "standard deviation / intensity range", 0.0, (0.0, 0.05, 0.1, 0.2, 0.4)),
    "blur": Corruption(_blur, "sigma, voxels", 0.0, (0.0, 0.5, 1.0, 1.5, 2.0)),
    "low resolution": Corruption(_low_resolution, "times coarser", 1.0, (1.0, 1.5, 2.0, 3.0, 4.0)),
    "inversion": Corruption(_inversion, "brightest part of the range, inverted", 0.0, (0.0, 0.25, 0.5, 0.75, 1.0)),
    "gibbs": Corruption(_gibbs, "k-space left out", 0.0, (0.0, 0.3, 0.5, 0.7, 0.85)),
}
