"""FDCE: learned filters of amplitude and phase, and a weight per channel that is computed from the phase.

TinyMIG: Transferring Generalization from Vision Foundation Models to Single-Domain Medical Imaging, ICML 2025,
https://proceedings.mlr.press/v267, eq. 5-11.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nnunet_dg.tensors import per_channel, wide

BRANCH_CUT = 1e-4 - math.pi  # negative real frequencies have phase pi; rounding can turn it into minus pi

NOTHING = 1e-12  # smaller amplitudes are float32 rounding errors


class FrequencyContentEnhancement(nn.Module):
    """Frequency-domain content enhancement: ``(B, channels, *spatial_shape)`` -> the same shape, in at least float32.

    Amplitude and phase are multiplied by the sigmoid of their filters. A filter has one logit per frequency, shared by
    all channels and initialized to one. The channel refiner is a squeeze and excitation: it maps the mean of the
    filtered phase spectrum to one weight per channel. Only half of the spectrum of a real feature is stored. In the
    planes that this half shares with its mirror image the filters are tied, see `hermitian`, so that the result is the
    same on all devices.

    Args:
        channels: Number of channels of the feature.
        spatial_shape: Spatial shape of the feature, two or three sizes.
        amplitude: Whether the amplitude is filtered (FDCE-A); False is an ablation of the paper's table 6.
        phase: Whether the phase is filtered (FDCE-P); False is an ablation of table 6.
        refine: Whether channels are weighted; False is an ablation of table 6. Weights of channels have no effect on an
            alignment that is free of scale.
        reduction: Reduction factor of the squeeze and excitation; default 4.

    Raises:
        ValueError: The feature has another shape.
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
            raise ValueError(f"The feature must have shape (B, {', '.join(map(str, self.shape))}); got "
                             f"{tuple(feature.shape)}.")  # fmt: skip
        axes = tuple(range(2, feature.ndim))
        with torch.autocast(feature.device.type, enabled=False):
            spectrum, phase = self.filtered(torch.fft.rfftn(wide(feature), dim=axes))
            enhanced = torch.fft.irfftn(spectrum, s=self.shape[1:], dim=axes)
            weights = self.channel_weights(phase)
            return enhanced if weights is None else enhanced * per_channel(weights, enhanced)

    def channel_weights(self, phase: Tensor) -> Tensor | None:
        """The weight of each channel, ``(B, channels)``, from the filtered phase; None without a channel refiner."""
        if self.refiner is None:
            return None
        weights: Tensor = self.refiner(phase.mean(tuple(range(2, phase.ndim))))
        return weights

    def filtered(self, spectrum: Tensor) -> tuple[Tensor, Tensor]:
        """The half spectrum ``(B, channels, *frequencies)`` after filtering, and its filtered phase."""
        spatial = self.shape[1:]
        amplitude = spectrum.abs()
        phase = spectrum.masked_fill(amplitude < NOTHING, 0).angle()  # its gradient is not finite at tiny amplitudes
        phase = torch.where(phase < BRANCH_CUT, phase + 2 * math.pi, phase)
        if self.amplitude_filter is not None:
            amplitude = amplitude * hermitian(self.amplitude_filter.sigmoid(), spatial)
        if self.phase_filter is not None:
            phase = phase * hermitian(self.phase_filter.sigmoid(), spatial)
        return hermitian(torch.polar(amplitude, phase), spatial), phase


def hermitian(half: Tensor, spatial_shape: Sequence[int]) -> Tensor:
    """Project a half spectrum onto one of a real signal: average its self-mirrored planes with their mirror images.

    These planes are index 0 and, for an even size, the last index of the last axis. In them, the value at ``-k`` must
    be the conjugate of the value at ``k``, where k are the frequencies of the other axes. Otherwise cuFFT's inverse
    real Fourier transform is undefined. On CPUs, this average does not change the inverse transform.

    Args:
        half: Half spectrum or filter, ``(..., *frequencies)``, real or complex, in the layout of `torch.fft.rfftn`.
        spatial_shape: Spatial shape of the signal.

    Returns:
        A tensor of the same shape and dtype.
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
