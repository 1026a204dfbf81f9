"""The U-Net of the DropGen paper: max pooling, nearest upsampling, and batch norm.

S. Diaz, P. Golland, E. Adalsteinsson, N. Dey, Why Invariance is Not Enough for Biomedical Domain Generalization and How
to Fix It, 2026, https://arxiv.org/abs/2604.02564, appendix C.3. Table 15 there lists three convolutions at every level
of the encoder and more channels in the decoder; the 36.9 M parameters that the paper states are those of two
convolutions below full resolution and of the decoder here, as in anatomix' U-Net.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from dynamic_network_architectures.building_blocks.plain_conv_encoder import PlainConvEncoder
from dynamic_network_architectures.building_blocks.simple_conv_blocks import StackedConvBlocks
from dynamic_network_architectures.initialization.weight_init import InitWeights_He
from torch import Tensor, nn

WIDTH, POOLINGS = 20, 5
MULTIPLE = 2**POOLINGS  # of which patch sizes are multiples
ARCHITECTURE: dict[str, Any] = {  # as in nnU-Net's plans, in 3-D
    "network_class_name": "nnunet_dg.dropgen.paper_network.MaxPoolUNet",
    "arch_kwargs": {
        "n_stages": POOLINGS + 1,
        "features_per_stage": [WIDTH * 2**level for level in range(POOLINGS + 1)],
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [[3, 3, 3]] * (POOLINGS + 1),
        "strides": [[1, 1, 1], *[[2, 2, 2]] * POOLINGS],
        "n_conv_per_stage": [3, *[2] * POOLINGS],
        "n_conv_per_stage_decoder": [2] * POOLINGS,
        "conv_bias": False,
        "norm_op": "torch.nn.modules.batchnorm.BatchNorm3d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.ReLU",
        "nonlin_kwargs": {"inplace": True},
    },
    "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
}


class MaxPoolUNet(nn.Module):
    """A U-Net of nnU-Net's blocks, with max pooling and nearest upsampling in place of convolutions with a stride.

    ``(B, input_channels, *spatial)`` -> logits ``(B, num_classes, *spatial)``; a list under deep supervision. Sizes are
    multiples of the product of the strides. The arguments are those of nnU-Net's ``PlainConvUNet``.
    """

    def __init__(
        self,
        input_channels: int,
        n_stages: int,
        features_per_stage: Sequence[int],
        conv_op: Any,
        kernel_sizes: Any,
        strides: Any,
        n_conv_per_stage: Sequence[int],
        num_classes: int,
        n_conv_per_stage_decoder: Sequence[int],
        deep_supervision: bool = False,
        **blocks: Any,
    ) -> None:
        super().__init__()
        self.encoder = PlainConvEncoder(
            input_channels, n_stages, list(features_per_stage), conv_op, kernel_sizes, strides, list(n_conv_per_stage),
            return_skips=True, pool="max", **blocks,
        )  # fmt: skip
        self.decoder = NearestDecoder(self.encoder, num_classes, n_conv_per_stage_decoder, deep_supervision, blocks)

    def forward(self, x: Tensor) -> Any:
        return self.decoder(self.encoder(x))

    @staticmethod
    def initialize(module: nn.Module) -> None:
        """He's initialization for ReLU, which nnU-Net applies to every module."""
        InitWeights_He(0)(module)

    def compute_conv_feature_map_size(self, input_size: Sequence[int]) -> int:
        """The number of elements of the feature maps of one sample, for nnU-Net's memory estimate."""
        sizes, size = [], list(input_size)
        for stride in self.encoder.strides:
            size = [n // step for n, step in zip(size, stride, strict=True)]
            sizes.append(size)
        elements = 0
        for size, stage in zip(sizes, self.encoder.stages, strict=True):
            elements += int(stage[-1].compute_conv_feature_map_size(size))
        blocks: Any = self.decoder.stages
        for size, width, block in zip(reversed(sizes[:-1]), self.encoder.output_channels[:0:-1], blocks, strict=True):
            elements += int(block.compute_conv_feature_map_size(size)) + width * prod(size)  # with the upsampled ones
        return elements


class NearestDecoder(nn.Module):
    """Each stage upsamples, appends the skip and convolves.

    Args:
        encoder: Encoder that returns its skips.
        num_classes: Number of segmentation heads.
        n_conv_per_stage: Number of convolutions of each stage, from the bottleneck on.
        deep_supervision: Whether the logits of all stages are returned, from full resolution on.
        blocks: Options of nnU-Net's convolutional blocks.
    """

    def __init__(
        self,
        encoder: PlainConvEncoder,
        num_classes: int,
        n_conv_per_stage: Sequence[int],
        deep_supervision: bool,
        blocks: dict[str, Any],
    ) -> None:
        super().__init__()
        self.deep_supervision = deep_supervision
        widths = list(encoder.output_channels)
        self.upsampling = nn.ModuleList(nn.Upsample(scale_factor=tuple(s)) for s in reversed(encoder.strides[1:]))
        self.stages = nn.ModuleList(
            StackedConvBlocks(n, encoder.conv_op, below + skip, skip, kernel, 1, **blocks)
            for n, below, skip, kernel in zip(
                n_conv_per_stage, widths[:0:-1], widths[-2::-1], encoder.kernel_sizes[-2::-1], strict=True
            )
        )
        self.seg_layers = nn.ModuleList(encoder.conv_op(width, num_classes, 1) for width in widths[-2::-1])

    def forward(self, skips: list[Tensor]) -> Any:
        x, outputs = skips[-1], []
        for upsample, stage, head, skip in zip(
            self.upsampling, self.stages, self.seg_layers, reversed(skips[:-1]), strict=True
        ):
            x = stage(torch.cat([skip, upsample(x)], dim=1))
            if self.deep_supervision:
                outputs.append(head(x))
        return outputs[::-1] if self.deep_supervision else self.seg_layers[-1](x)
