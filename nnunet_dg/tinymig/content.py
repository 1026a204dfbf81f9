"""FDCE: learned filters on amplitude and phase, and a weight per channel from the phase.

TinyMIG (ICML 2025), eq. 5-11.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nnunet_dg.tensors import wide

BRANCH_CUT = 1e-4 - math.pi  # a negative real frequency has phase pi, not minus pi where rounding made it so

NOTHING = 1e-12  # an amplitude of float32 rounding


class FrequencyContentEnhancement(nn.Module):
    """``(B, channels, *spatial_shape)`` -> the same shape, in float32 also under autocast.

    The filters hold one logit per frequency, shared by the channels, and start at one; amplitude and phase are
    multiplied by their sigmoid. The channel refiner squeezes the filtered phase spectrum to its mean and excites it to
    one weight per channel. The spectrum of a real feature is kept by half; in the planes that this half shares with its
    mirror image the filters are tied, see `hermitian`, so that the result is the same on all devices.

    Args:
        channels: Channels of the feature.
        spatial_shape: Spatial shape of the feature, two or three sizes.
        amplitude: Filter the amplitude (FDCE-A). False is an ablation of the paper's table 6.
        phase: Filter the phase (FDCE-P). False is an ablation, too.
        refine: Weigh the channels. False is an ablation, too. A weight per channel has no effect on an alignment that
            is free of scale.
        reduction: Reduction of the squeeze and excitation.

    Raises:
        ValueError: A feature of another shape.
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
            spectrum, phase = self.filtered(torch.fft.rfftn(wide(feature), dim=axes))
            enhanced = torch.fft.irfftn(spectrum, s=self.shape[1:], dim=axes)
            if self.refiner is None:
                return enhanced
            weights = self.refiner(phase.mean(axes))
            return enhanced * weights.reshape(*weights.shape, *[1] * len(axes))

    def filtered(self, spectrum: Tensor) -> tuple[Tensor, Tensor]:
        """A half spectrum ``(B, channels, *frequencies)`` with filtered amplitude and phase, and that phase."""
        spatial = self.shape[1:]
        amplitude = spectrum.abs()
        phase = spectrum.masked_fill(amplitude < NOTHING, 0).angle()  # which has no finite gradient there
        phase = torch.where(phase < BRANCH_CUT, phase + 2 * math.pi, phase)
        if self.amplitude_filter is not None:
            amplitude = amplitude * hermitian(self.amplitude_filter.sigmoid(), spatial)
        if self.phase_filter is not None:
            phase = phase * hermitian(self.phase_filter.sigmoid(), spatial)
        return hermitian(torch.polar(amplitude, phase), spatial), phase


def hermitian(half: Tensor, spatial_shape: Sequence[int]) -> Tensor:
    """A half spectrum that is one of a real signal: its self-mirrored planes are averaged with their mirror images.

    These planes are index 0 and, for an even size, the last index of the last axis. In them the value at ``-k`` must be
    the conjugate of the one at ``k``, where k are the frequencies of the other axes. Otherwise the inverse of the real
    Fourier transform is undefined (cuFFT); CPUs compute what they compute after this average.

    Args:
        half: ``(..., *frequencies)``, real or complex, as `torch.fft.rfftn` has it.
        spatial_shape: Spatial shape of the signal.

    Returns:
        The same shape and dtype.
    """
    axes = tuple(range(1 - len(spatial_shape), 0))

    def tied(plane: Tensor) -> Tensor:
        mirrored = plane.flip(axes).roll((1,) * len(axes), axes)
        return ((plane + mirrored.conj()) / 2).unsqueeze(-1)

    size = spatial_shape[-1]
    if size == 1:
        return tied(half[..., 0])
    if size % 2:
        return torch.cat([tied(half[..., 0]), half[..., 1:]], -1)
    return torch.cat([tied(half[..., 0]), half[..., 1:-1], tied(half[..., -1])], -1)
