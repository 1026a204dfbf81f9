"""The teacher's light segmentation decoder, through which the labels train adapters and reprogramming."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from nnunet_dg.tinymig.reprogramming import CONVOLUTIONS, MODES


class TeacherDecoder(nn.Module):
    """Features from fine to coarse, each ``(B, widths[i], *spatial_i)`` -> logits ``(B, outputs, *spatial_0)``.

    From the coarsest on: one 1x1 convolution to a common width, upsampled and added to the next; one 3x3 convolution
    and a segmentation layer at the end.

    Args:
        dims: 2 or 3.
        widths: of the features, from fine to coarse.
        outputs: segmentation heads.
    """

    def __init__(self, dims: int, widths: Sequence[int], outputs: int) -> None:
        super().__init__()
        convolution = CONVOLUTIONS[dims]
        self.mode = MODES[dims]
        self.lateral = nn.ModuleList(convolution(width, widths[0], 1) for width in widths)
        self.smooth = convolution(widths[0], widths[0], 3, padding=1)
        self.segmentation = convolution(widths[0], outputs, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        x: Tensor = self.lateral[-1](features[-1])
        for lateral, feature in zip(reversed(self.lateral[:-1]), reversed(features[:-1]), strict=True):
            x = F.interpolate(x, feature.shape[2:], mode=self.mode) + lateral(feature)
        logits: Tensor = self.segmentation(F.leaky_relu(self.smooth(x), 0.01))
        return logits
