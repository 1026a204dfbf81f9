"""Restoring the original image from what the encoder made of its amplitude-mixed twin (RAM-DSIR, ECCV 2022)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from nnunet_dg.extractors.base import minmax


class DomainBatchNorm(nn.Module):
    """Batch norm with the statistics of, and an affine map for, each domain by itself. For training only.

    ``(B, C, *spatial)`` and the domain of each sample, ``(B,)`` integers -> the same shape. There are no running
    statistics, for there is no inference; the affine maps are one parameter, so that none is without a gradient.

    Args:
        num_channels: C.
        num_domains: how many.
    """

    def __init__(self, num_channels: int, num_domains: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_domains, num_channels))
        self.bias = nn.Parameter(torch.zeros(num_domains, num_channels))

    def forward(self, x: Tensor, domains: Tensor) -> Tensor:
        result = torch.empty_like(x)
        for domain in domains.unique():
            members = domains == domain
            group = F.batch_norm(x[members], None, None, self.weight[domain], self.bias[domain], training=True)
            result[members] = group.to(result.dtype)
        return result


class RestorationDecoder(nn.Module):
    """From the bottleneck back to the image: upsample, convolve, `DomainBatchNorm`, per stage; tanh at the end.

    ``(B, features_per_stage[-1], *bottleneck)`` and the domains ``(B,)`` -> ``(B, image_channels, *spatial)``, in
    [-1, 1].

    Args:
        features_per_stage: of the encoder, from the first stage to the bottleneck.
        strides: of the encoder's stages, one number per axis; the first is the stem's.
        image_channels: what is restored.
        num_domains: see `DomainBatchNorm`.
    """

    def __init__(
        self,
        features_per_stage: Sequence[int],
        strides: Sequence[Sequence[int]],
        image_channels: int,
        num_domains: int,
    ) -> None:
        super().__init__()
        dims = len(strides[0])
        convolution = nn.Conv2d if dims == 2 else nn.Conv3d
        self.mode = "bilinear" if dims == 2 else "trilinear"
        widths = list(reversed(features_per_stage))
        self.strides = [tuple(float(s) for s in stride) for stride in reversed(strides)]
        targets = [*widths[1:], widths[-1]]  # the stem's stride, if it has one, is undone as well
        self.convolutions = nn.ModuleList(
            convolution(n_in, n_out, 3, padding=1) for n_in, n_out in zip(widths, targets, strict=True)
        )
        self.norms = nn.ModuleList(DomainBatchNorm(width, num_domains) for width in targets)
        self.to_image = convolution(widths[-1], image_channels, 1)

    def forward(self, bottleneck: Tensor, domains: Tensor) -> Tensor:
        x = bottleneck
        for stride, convolution, norm in zip(self.strides, self.convolutions, self.norms, strict=True):
            if any(s > 1 for s in stride):
                x = F.interpolate(x, scale_factor=stride, mode=self.mode)
            x = F.leaky_relu(norm(convolution(x), domains), 0.01)
        return self.to_image(x).tanh()


def restoration_loss(restored: Tensor, image: Tensor) -> Tensor:
    """Mean squared difference to the image, min-maxed to [-1, 1] per sample and channel, which is where tanh ends."""
    return F.mse_loss(restored.float(), 2 * minmax(image) - 1)
