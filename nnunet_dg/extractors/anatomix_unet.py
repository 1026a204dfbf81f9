"""The published anatomix as a network that trains, with its batch norm, for fine-tuning.

Dey et al., "Learning General-Purpose Biomedical Volume Representations using Randomized Synthesis", ICLR 2025,
https://arxiv.org/abs/2411.02372. `nnunet_dg.extractors.anatomix` computes the same features without gradient and with
batch norm folded into the convolutions.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from nnunet_dg.extractors.anatomix import VARIANTS, layout_problems, published_convolutions
from nnunet_dg.extractors.base import padded
from nnunet_dg.extractors.plausible import implausible

VARIANT = VARIANTS["anatomix"]


class AnatomixUNet(nn.Module):
    """anatomix.pth with batch norm: ``(B, C, X, Y, Z)`` in [0, 1] -> raw features ``(B, 16, X, Y, Z)``.

    The input is padded by replication to a multiple of 16 voxels, and to at least 32; the features are cropped back.
    With several image channels, the first kernel is repeated for each and divided by their number, so that equal
    channels give the features of one.

    Args:
        image_channels: Number of image channels, C.
        frozen_encoder: Whether the encoder, up to the bottleneck, keeps its weights and its batch norm's statistics.

    Attributes:
        has_weights: Whether the published weights or those of a checkpoint have been loaded.
    """

    out_channels = VARIANT.width

    def __init__(self, image_channels: int = 1, frozen_encoder: bool = False) -> None:
        super().__init__()
        self.image_channels, self.frozen_encoder = image_channels, frozen_encoder
        self.has_weights = False
        width = VARIANT.width
        widths = [width * 2**level for level in range(VARIANT.poolings + 1)]
        first = _block([image_channels, width, width, width])
        self.encoder = nn.ModuleList([first, *(_block([w // 2, w, w]) for w in widths[1:])])
        self.decoder = nn.ModuleList([_block([3 * w, w, w]) for w in reversed(widths[:-1])])
        self.last = _convolution(width, width)
        self.encoder.requires_grad_(not frozen_encoder)

    def train(self, mode: bool = True) -> AnatomixUNet:
        """Set the mode; a frozen encoder stays in eval mode."""
        super().train(mode)
        if self.frozen_encoder:
            self.encoder.train(False)
        return self

    def forward(self, x: Tensor) -> Tensor:
        x, crop = padded(x, 2**VARIANT.poolings)
        skips = []
        for level, block in enumerate(self.encoder):
            x = block(F.max_pool3d(x, 2) if level else x)
            skips.append(x)
        skips.pop()
        for block in self.decoder:
            x = block(torch.cat([skips.pop(), F.interpolate(x, scale_factor=2, mode="nearest")], dim=1))
        result: Tensor = self.last(x)[crop]
        return result

    def load_published(self, weights: Mapping[str, Tensor]) -> None:
        """Load the weights of the published file, ``{"model.<index>.<name>": tensor}``.

        Raises:
            ValueError: An entry is missing, unexpected, has another shape, or is not a plausible weight.
        """
        if problems := layout_problems(VARIANT, weights):
            raise ValueError(f"It is not the published network: {problems}.")
        if problem := implausible(weights):
            raise ValueError(f"{problem}.")
        convolutions = [module for module in self.modules() if isinstance(module, nn.Conv3d)]
        norms = iter([module for module in self.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)])
        layout = list(published_convolutions(VARIANT))
        for convolution, (index, *_, normalized) in zip(convolutions, layout, strict=True):
            kernel = weights[f"model.{index}.weight"]
            first = index == 0
            kernel = repeated_for_channels(kernel, self.image_channels) if first else kernel
            convolution.load_state_dict({"weight": kernel})
            if normalized:
                start = f"model.{index + 1}."
                norm = {key.removeprefix(start): value for key, value in weights.items() if key.startswith(start)}
                next(norms).load_state_dict(norm)
        self.has_weights = True

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.has_weights = True


def repeated_for_channels(kernel: Tensor, channels: int) -> Tensor:
    """The kernel of one image channel, ``(O, 1, *size)``, as a kernel of several, ``(O, channels, *size)``.

    >>> repeated_for_channels(torch.tensor([[[1.0, -2.0, 0.5]]]), 2)
    tensor([[[ 0.5000, -1.0000,  0.2500],
             [ 0.5000, -1.0000,  0.2500]]])
    """
    return kernel.repeat(1, channels, *[1] * (kernel.ndim - 2)) / channels


def _block(channels: list[int]) -> nn.Sequential:
    layers = [(_convolution(a, b), nn.BatchNorm3d(b), nn.ReLU(inplace=True)) for a, b in pairwise(channels)]
    return nn.Sequential(*(layer for group in layers for layer in group))


def _convolution(channels: int, width: int) -> nn.Conv3d:
    return nn.Conv3d(channels, width, kernel_size=3, padding=1, padding_mode="reflect", bias=False)
