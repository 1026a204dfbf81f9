"""FDCE: learnt filters on amplitude and phase, and a weight per channel from the phase (TinyMIG, eq. 5-11)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

BRANCH_CUT = 1e-4 - math.pi  # a negative real frequency has phase pi, not minus pi where rounding made it so

NOTHING = 1e-12  # an amplitude of float32 rounding


class FrequencyContentEnhancement(nn.Module):
    """``(B, channels, *spatial_shape)`` -> the same shape, in float32 also under autocast.

    The filters hold one logit per frequency, shared by the channels, and start at one; amplitude and phase are
    multiplied by their sigmoid. The channel refiner squeezes the filtered phase spectrum to its mean and excites it to
    one weight per channel.

    Args:
        channels: of the feature.
        spatial_shape: of the feature, two or three sizes.
        amplitude: filter the amplitude (FDCE-A); off: an ablation of the paper's table 6, as the next two.
        phase: filter the phase (FDCE-P).
        refine: weigh the channels.
        reduction: of the squeeze and excitation.

    Raises:
        ValueError: a feature of another shape.
    """

    def __init__(
        self,
        channels: int,
        spatial_shape: Sequence[int],
        amplitude: bool = True,
        phase: bool = True,
        refine: bool = True,
        reduction: int = 4,
    ) -> None:
        super().__init__()
        self.shape = (channels, *spatial_shape)
        frequencies = (*spatial_shape[:-1], spatial_shape[-1] // 2 + 1)
        self.amplitude_filter = nn.Parameter(torch.ones(frequencies)) if amplitude else None
        self.phase_filter = nn.Parameter(torch.ones(frequencies)) if phase else None
        hidden = max(channels // reduction, 1)
        self.refiner = (
            nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels), nn.Sigmoid())
            if refine
            else None
        )

    def forward(self, feature: Tensor) -> Tensor:
        if tuple(feature.shape[1:]) != self.shape:
            raise ValueError(f"a feature of shape (B, {', '.join(map(str, self.shape))}) was expected; got "
                             f"{tuple(feature.shape)}.")  # fmt: skip
        axes = tuple(range(2, feature.ndim))
        with torch.autocast(feature.device.type, enabled=False):
            spectrum = torch.fft.rfftn(feature.float(), dim=axes)
            spectrum = torch.where(spectrum.abs() < NOTHING, 0, spectrum)  # its phase has no finite gradient
            amplitude, phase = spectrum.abs(), spectrum.angle()
            phase = torch.where(phase < BRANCH_CUT, phase + 2 * math.pi, phase)
            if self.amplitude_filter is not None:
                amplitude = amplitude * self.amplitude_filter.sigmoid()
            if self.phase_filter is not None:
                phase = phase * self.phase_filter.sigmoid()
            filtered = torch.complex(amplitude * phase.cos(), amplitude * phase.sin())
            enhanced = torch.fft.irfftn(filtered, s=self.shape[1:], dim=axes)
            if self.refiner is None:
                return enhanced
            weights = self.refiner(phase.mean(axes))
            return enhanced * weights.reshape(*weights.shape, *[1] * len(axes))
