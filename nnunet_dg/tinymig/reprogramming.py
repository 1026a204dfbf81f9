"""FRM: residual blocks that bring a teacher's feature to the width and grid of the student's.

TinyMIG: Transferring Generalization from Vision Foundation Models to Single-Domain Medical Imaging, ICML 2025,
https://proceedings.mlr.press/v267, section 3.3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

CONVOLUTIONS = {2: nn.Conv2d, 3: nn.Conv3d}
NORMS = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
MODES = {2: "bilinear", 3: "trilinear"}
POOLINGS: dict[int, Callable[..., Tensor]] = {2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}


def resize(x: Tensor, shape: Sequence[int]) -> Tensor:
    """``(B, A, *any) -> (B, A, *shape)``: averages along axes that shrink and interpolates along axes that grow."""
    shape, dims = tuple(shape), len(shape)
    smaller = tuple(min(a, b) for a, b in zip(x.shape[2:], shape, strict=True))
    if smaller != tuple(x.shape[2:]):
        x = POOLINGS[dims](x, smaller)
    return x if smaller == shape else F.interpolate(x, shape, mode=MODES[dims])


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with instance norm, and a skip connection with a 1x1 convolution if the width changes."""

    def __init__(self, dims: int, n_in: int, n_out: int) -> None:
        super().__init__()
        convolution, norm = CONVOLUTIONS[dims], NORMS[dims]
        self.body = nn.Sequential(
            convolution(n_in, n_out, 3, padding=1), norm(n_out, affine=True), nn.LeakyReLU(0.01, inplace=True),
            convolution(n_out, n_out, 3, padding=1), norm(n_out, affine=True),
        )  # fmt: skip
        self.skip = nn.Identity() if n_in == n_out else convolution(n_in, n_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.body(x) + self.skip(x), 0.01, inplace=True)


class FeatureReprogramming(nn.Module):
    """``(B, n_in, *any)`` -> ``(B, n_out, *spatial)``. The first block, which changes the width, uses the coarser grid.

    Args:
        n_in: Number of channels of the teacher's feature.
        n_out: Number of channels of the student's feature.
        spatial: Spatial shape in which both are compared, two or three sizes.
        blocks: Number of residual blocks; default 2.
    """

    def __init__(self, n_in: int, n_out: int, spatial: Sequence[int], blocks: int = 2) -> None:
        super().__init__()
        self.spatial = tuple(spatial)
        widths = [n_in, *[n_out] * blocks]
        self.blocks = nn.Sequential(*(ResidualBlock(len(self.spatial), a, b) for a, b in pairwise(widths)))

    def forward(self, feature: Tensor) -> Tensor:
        first, *others = self.blocks
        coarse = feature.shape[2:].numel() < math.prod(self.spatial)
        x = first(feature) if coarse else feature  # cheaper: the many channels of a teacher on its few tokens
        x = resize(x, self.spatial)
        for block in others if coarse else self.blocks:
            x = block(x)
        return x
