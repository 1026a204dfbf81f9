"""A plain implementation of the published anatomix, with batch norm and all layers.

It is the reference for testing and timing the extractor, which folds batch norm and stops at the penultimate layer.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_dg.extractors.anatomix import VARIANTS, published_layout


class PlainAnatomix(nn.Module):
    """``(B, 1, X, Y, Z)`` in [0, 1] -> ``{"penultimate": ..., "final": ...}``, both raw."""

    def __init__(self, weights: Mapping[str, Tensor], poolings: int = 4, dev: bool = False) -> None:
        super().__init__()
        self.weights, self.poolings, self.dev = dict(weights), poolings, dev

    def convolution(self, x: Tensor, index: int) -> Tensor:
        x = F.pad(x, (1,) * 6, mode="reflect")
        return F.conv3d(x, self.weights[f"model.{index}.weight"], self.weights.get(f"model.{index}.bias"))

    def unit(self, x: Tensor, index: int) -> Tensor:
        x = self.convolution(x, index)
        if self.dev:
            return F.relu(F.instance_norm(x, eps=1e-2))
        mean, var, weight, bias = (
            self.weights[f"model.{index + 1}.{name}"] for name in ("running_mean", "running_var", "weight", "bias")
        )
        return F.relu(F.batch_norm(x, mean, var, weight, bias))

    @torch.no_grad()
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        index, skips = 0, []
        for level in range(self.poolings + 1):
            if level > 0:
                x = F.avg_pool3d(x, 2) if self.dev else F.max_pool3d(x, 2)
                index += 1
            for _ in range(3 if level == 0 else 2):
                x = self.unit(x, index)
                index += 3
            skips.append(x)
        skips.pop()
        for _ in range(self.poolings):
            x = F.interpolate(x, scale_factor=2, mode="trilinear" if self.dev else "nearest")
            index += 1
            x = torch.cat([skips.pop(), x], dim=1)
            penultimate = self.convolution(x, index) if not skips else x
            x = self.unit(self.unit(x, index), index + 3)
            index += 6
        return {"penultimate": penultimate, "final": self.convolution(x, index)}


def random_weights(variant: str = "anatomix", seed: int = 0) -> dict[str, Tensor]:
    """Random weights in the layout of the published file, chosen so that every part of the network has an effect."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for key, shape in published_layout(VARIANTS[variant]).items():
        noise = torch.randn(shape, generator=generator)
        if key.endswith("num_batches_tracked"):
            weights[key] = torch.tensor(1)
        elif key.endswith("running_var") or (len(shape) == 1 and key.endswith("weight")):
            weights[key] = 0.5 + noise.abs()
        elif len(shape) == 1:
            weights[key] = 0.1 * noise
        else:
            weights[key] = noise * (2 / (shape[1] * 27)) ** 0.5
    return weights
