"""Bottleneck adapters: the few parameters of a frozen teacher that train (TinyMIG, section 3.3)."""

from __future__ import annotations

from torch import Tensor, nn

from nnunet_dg.tinymig.reprogramming import CONVOLUTIONS, NORMS


class TokenAdapter(nn.Module):
    """``x + up(gelu(down(norm(x))))`` on tokens ``(..., width)``; the identity until it has learnt something."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        _start_at_zero(self.body[-1])

    def forward(self, x: Tensor) -> Tensor:
        adapted: Tensor = x + self.body(x)
        return adapted


class ConvolutionalAdapter(nn.Module):
    """The same on a feature map ``(B, width, *spatial)``, by instance norm and 1x1 convolutions."""

    def __init__(self, dims: int, width: int, hidden: int) -> None:
        super().__init__()
        convolution = CONVOLUTIONS[dims]
        norm = NORMS[dims](width, affine=True)
        self.body = nn.Sequential(norm, convolution(width, hidden, 1), nn.GELU(), convolution(hidden, width, 1))
        _start_at_zero(self.body[-1])

    def forward(self, x: Tensor) -> Tensor:
        adapted: Tensor = x + self.body(x)
        return adapted


def _start_at_zero(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
