"""Bottleneck adapters: the few trainable parameters in a frozen teacher.

TinyMIG: Transferring Generalization from Vision Foundation Models to Single-Domain Medical Imaging, ICML 2025,
https://proceedings.mlr.press/v267, section 3.3. An adapter runs in parallel to a block's MLP, or to the last
convolution block of a level, and its scaled output is added to that module's output, as in S. Chen et al., AdaptFormer:
Adapting Vision Transformers for Scalable Visual Recognition, NeurIPS 2022, https://arxiv.org/abs/2205.13535, eq. 3.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from nnunet_dg.tinymig.reprogramming import CONVOLUTIONS, NORMS, resize

SCALE = 0.5
LEAST_WIDTH = 4


def hidden_width(width: int, chosen: int | None) -> int:
    """Hidden width of an adapter: ``chosen`` or, if None, a quarter of ``width`` and at least `LEAST_WIDTH`."""
    return max(width // 4, LEAST_WIDTH) if chosen is None else chosen


class TokenAdapter(nn.Module):
    """``0.5 * up(gelu(down(x)))`` of the normalized input ``(..., width)`` of an MLP. It is initialized to zero."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        _start_at_zero(self.body[-1])

    def forward(self, x: Tensor, shape: Sequence[int] | None = None) -> Tensor:
        """The tensor to add to the output of the MLP. ``shape`` is not used, since the number of tokens is kept."""
        added: Tensor = SCALE * self.body(x)
        return added


class ConvolutionalAdapter(nn.Module):
    """An adapter of feature maps, ``(B, n_in, *any) -> (B, n_out, *shape)``: instance norm and 1x1 convolutions."""

    def __init__(self, dims: int, n_in: int, n_out: int, hidden: int) -> None:
        super().__init__()
        convolution = CONVOLUTIONS[dims]
        norm = NORMS[dims](n_in, affine=True)
        self.body = nn.Sequential(norm, convolution(n_in, hidden, 1), nn.GELU(), convolution(hidden, n_out, 1))
        _start_at_zero(self.body[-1])

    def forward(self, x: Tensor, shape: Sequence[int]) -> Tensor:
        """The tensor to add to the output of the convolution block, whose spatial shape is ``shape``."""
        added: Tensor = SCALE * self.body(resize(x, shape))
        return added


def _start_at_zero(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
