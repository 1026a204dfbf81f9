"""Simulated domain shifts of increasing strength, applied to raw images.

They follow the section "Corruption Analysis" of the DropGen paper: Diaz et al., "Why Invariance is Not Enough for
Biomedical Domain Generalization and How to Fix It", 2026, https://arxiv.org/abs/2604.02564.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from torch.nn import functional as F  # noqa: N812

from nnunet_dg.extras import require

Array = NDArray[Any]


@dataclass(frozen=True)
class Corruption:
    """One kind of shift.

    Attributes:
        apply: ``(image, strength, seed, voxel) -> image``, where ``image`` is ``(C, *spatial)``, float32, without axes
            of length one, and ``voxel`` is the spacing of each axis relative to the smallest one. Intensity ranges are
            computed per channel; spatial patterns are the same for all channels.
        strength: Description of what the strength measures.
        identity: Strength that leaves the image unchanged.
        strengths: Default strengths.
    """

    apply: Callable[[Array, float, int, list[float]], Array]
    strength: str
    identity: float
    strengths: tuple[float, ...]

    def __call__(self, image: Array, strength: float, seed: int, spacing: Sequence[float] | None = None) -> Array:
        """The corrupted image ``(C, *spatial)``, float32. At the identity, the image is unchanged.

        Args:
            image: ``(C, *spatial)``.
            strength: Strength of the corruption, in the unit that ``self.strength`` describes.
            seed: Seed of random patterns.
            spacing: Voxel size along each spatial axis; by default equal.
        """
        image = image.astype(np.float32)
        if strength == self.identity:
            return image
        thin = tuple(axis for axis, length in enumerate(image.shape) if axis and length == 1)
        thick = [mm for axis, mm in enumerate(spacing or [1.0] * (image.ndim - 1), 1) if axis not in thin]
        voxel = [mm / min(thick) for mm in thick]
        return np.expand_dims(self.apply(image.squeeze(thin), strength, seed, voxel), thin).astype(np.float32)


def seed_of(case: str, seed: int) -> int:
    """A seed for one case. All strengths use the same one, so that a single pattern grows along a curve."""
    return zlib.crc32(f"{case} {seed}".encode())


def _range(image: Array, low: float = 0, high: float = 100) -> tuple[Array, Array]:
    """A lower and an upper percentile per channel, each ``(C, 1, ...)``."""
    lower, upper = np.percentile(image, (low, high), axis=tuple(range(1, image.ndim)), keepdims=True)
    return lower, upper


def _gamma(image: Array, exponent: float, seed: int, voxel: list[float]) -> Array:
    require("report", "Gamma correction")
    from monai.transforms import AdjustContrast

    return np.stack([np.asarray(AdjustContrast(exponent)(channel[None]))[0] for channel in image])


def _bias_field(image: Array, magnitude: float, seed: int, voxel: list[float]) -> Array:
    require("report", "A bias field")
    from monai.transforms import RandBiasField

    low, _ = _range(image)
    field = RandBiasField(degree=3, coeff_range=(-magnitude, magnitude), prob=1)
    field.set_random_state(seed)
    return np.asarray(field(image - low)) + low


def _noise(image: Array, fraction: float, seed: int, voxel: list[float]) -> Array:
    low, high = _range(image, 0.5, 99.5)
    return image + fraction * (high - low) * np.random.default_rng(seed).standard_normal(image.shape)


def _blur(image: Array, sigma: float, seed: int, voxel: list[float]) -> Array:
    return np.stack([gaussian_filter(channel, [sigma / v for v in voxel]) for channel in image])


def _low_resolution(image: Array, factor: float, seed: int, voxel: list[float]) -> Array:
    mode = {2: "bilinear", 3: "trilinear"}[image.ndim - 1]
    size = [max(1, round(length / max(1, factor / v))) for length, v in zip(image.shape[1:], voxel, strict=True)]
    small = F.interpolate(torch.from_numpy(image)[None], size, mode="area")
    return F.interpolate(small, image.shape[1:], mode=mode)[0].numpy()


def _inversion(image: Array, fraction: float, seed: int, voxel: list[float]) -> Array:
    low, high = _range(image)
    threshold = high - fraction * (high - low)
    return np.where(image >= threshold, high + threshold - image, image)


def _gibbs(image: Array, alpha: float, seed: int, voxel: list[float]) -> Array:
    require("report", "Gibbs ringing")
    from monai.transforms import GibbsNoise

    return np.asarray(GibbsNoise(alpha)(image))


CORRUPTIONS = {
    "gamma": Corruption(_gamma, "exponent", 1.0, (0.25, 0.5, 1.0, 2.0, 4.0)),
    "bias field": Corruption(_bias_field, "largest coefficient of its logarithm", 0.0, (0.0, 0.1, 0.2, 0.4, 0.8)),
    "noise": Corruption(_noise, "standard deviation / intensity range", 0.0, (0.0, 0.05, 0.1, 0.2, 0.4)),
    "blur": Corruption(_blur, "sigma, voxels of the finest axis", 0.0, (0.0, 0.5, 1.0, 1.5, 2.0)),
    "low resolution": Corruption(_low_resolution, "times the finest spacing", 1.0, (1.0, 1.5, 2.0, 3.0, 4.0)),
    "inversion": Corruption(_inversion, "brightest part of the range, inverted", 0.0, (0.0, 0.25, 0.5, 0.75, 1.0)),
    "gibbs": Corruption(_gibbs, "k-space left out", 0.0, (0.0, 0.3, 0.5, 0.7, 0.85)),
}
