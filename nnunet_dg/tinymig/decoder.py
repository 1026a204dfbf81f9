"""The teacher's light segmentation decoder. Through it, the labels train the adapters and the reprogramming."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from nnunet_dg.tinymig.reprogramming import CONVOLUTIONS, MODES, resize


class TeacherDecoder(nn.Module):
    """Features from fine to coarse, each ``(B, widths[i], *spatial_i)`` -> logits ``(B, outputs, *patch)``.

    A 1x1 convolution brings each feature to a common width. Starting from the coarsest, the sum is upsampled and added
    to the next finer feature. A 3x3 convolution and a segmentation layer follow at half the resolution of the patch,
    and the logits are upsampled.

    Args:
        widths: Number of channels of each feature, from fine to coarse.
        outputs: Number of segmentation heads.
        patch: Spatial shape of the logits, two or three sizes.
    """

    def __init__(self, widths: Sequence[int], outputs: int, patch: Sequence[int]) -> None:
        super().__init__()
        convolution = CONVOLUTIONS[len(patch)]
        self.patch = tuple(patch)
        self.half_grid = tuple(-(-size // 2) for size in patch)
        self.mode = MODES[len(patch)]
        self.lateral = nn.ModuleList(convolution(width, widths[0], 1) for width in widths)
        self.smooth = convolution(widths[0], widths[0], 3, padding=1)
        self.segmentation = convolution(widths[0], outputs, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        x: Tensor = self.lateral[-1](features[-1])
        for lateral, feature in zip(reversed(self.lateral[:-1]), reversed(features[:-1]), strict=True):
            x = F.interpolate(x, feature.shape[2:], mode=self.mode) + lateral(feature)
        x = F.leaky_relu(self.smooth(resize(x, self.half_grid)), 0.01, inplace=True)
        return F.interpolate(self.segmentation(x), self.patch, mode=self.mode)
