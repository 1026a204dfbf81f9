"""Bottleneck adapters: the few parameters of a frozen teacher that train.

TinyMIG (ICML 2025), section 3.3. They run in parallel to a block's MLP, or to the last convolution block of a level,
and their scaled output is added to its output, as in AdaptFormer (Chen et al., NeurIPS 2022, eq. 3).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from nnunet_dg.tinymig.reprogramming import CONVOLUTIONS, NORMS, resize

SCALE = 0.5
LEAST_WIDTH = 4


def hidden_width(width: int, chosen: int | None) -> int:
    """Hidden width of an adapter: ``chosen``, or a quarter of the block's ``width``, at least `LEAST_WIDTH`."""
    return max(width // 4, LEAST_WIDTH) if chosen is None else chosen


class TokenAdapter(nn.Module):
    """``0.5 * up(gelu(down(x)))`` of an MLP's input ``(..., width)``, which is normalized. Initialized to zero."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        _start_at_zero(self.body[-1])

    def forward(self, x: Tensor, shape: Sequence[int] | None = None) -> Tensor:
        """What to add to the output of the MLP. ``shape`` is not used: tokens keep their number."""
        added: Tensor = SCALE * self.body(x)
        return added


class ConvolutionalAdapter(nn.Module):
    """The same on feature maps, ``(B, n_in, *any) -> (B, n_out, *shape)``: instance norm and 1x1 convolutions."""

    def __init__(self, dims: int, n_in: int, n_out: int, hidden: int) -> None:
        super().__init__()
        convolution = CONVOLUTIONS[dims]
        norm = NORMS[dims](n_in, affine=True)
        self.body = nn.Sequential(norm, convolution(n_in, hidden, 1), nn.GELU(), convolution(hidden, n_out, 1))
        _start_at_zero(self.body[-1])

    def forward(self, x: Tensor, shape: Sequence[int]) -> Tensor:
        """What to add to the output of the convolution block, whose spatial shape is ``shape``."""
        added: Tensor = SCALE * self.body(resize(x, shape))
        return added


def _start_at_zero(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
