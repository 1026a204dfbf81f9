"""What can be set about SgCG, and what is accepted."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class SgCGSettings:
    """Settings of SgCG. The defaults are the method as published, where the paper says.

    Attributes:
        contrast: lambda (eq. 13), the weight of the contrastive loss; 0 leaves it out.
        temperature: tau of the contrastive loss, positive.
        voxels_per_class: so many of each class enter the contrastive loss at each step at most, chosen at random.
        start_epoch: the epoch from which the contrastive loss counts; before it, only the statistics grow.
        max_count: see `ClassStatistics`; null: statistics never forget.
        amplitude_mixup: train on amplitude-mixed images as well (RAM-DSIR). Without it, the contrastive loss is all
            there is beside nnU-Net's own, at little more than nnU-Net's cost.
        half_width: of the window whose amplitudes are mixed, a fraction of the patch's shortest side in [0, 0.5].
        consistency: weight of the symmetric KL divergence between the two predictions; 0 leaves it out.
        restoration: weight of restoring the original image from the mixed one's features; 0 leaves it out.

    Raises:
        ValueError: a value that is not accepted, by name.
    """

    contrast: float = 0.1
    temperature: float = 0.1
    voxels_per_class: int = 4096
    start_epoch: int = 1
    max_count: float | None = None
    amplitude_mixup: bool = True
    half_width: float = 0.1
    consistency: float = 0.5
    restoration: float = 0.1

    def __post_init__(self) -> None:
        for name in ("contrast", "consistency", "restoration"):
            _check(name, getattr(self, name), 0, math.inf)
        _check("temperature", self.temperature, 1e-3, math.inf)
        _check("half_width", self.half_width, 0, 0.5)
        _check("voxels_per_class", self.voxels_per_class, 2, math.inf, int)
        _check("start_epoch", self.start_epoch, 0, math.inf, int)
        if self.max_count is not None:
            _check("max_count", self.max_count, 2, math.inf)
        if not isinstance(self.amplitude_mixup, bool):
            raise ValueError(f"amplitude_mixup must be true or false; got {self.amplitude_mixup!r}.")


def _check(name: str, value: object, low: float, high: float, kind: type = float) -> None:
    number = isinstance(value, int if kind is int else (int, float)) and not isinstance(value, bool)
    if not number or not low <= value <= high or value == math.inf:  # type: ignore[operator]
        what = "a whole number" if kind is int else "a number"
        accepted = f"at least {low}" if high == math.inf else f"in [{low}, {high}]"
        raise ValueError(f"{name} must be {what} {accepted}; got {value!r}.")
