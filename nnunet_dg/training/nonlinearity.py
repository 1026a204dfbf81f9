"""The last non-linearity of a stage of nnU-Net's encoders."""

from __future__ import annotations

from dynamic_network_architectures.building_blocks.residual import BasicBlockD, BottleneckD, StackedResidualBlocks
from dynamic_network_architectures.building_blocks.simple_conv_blocks import ConvDropoutNormReLU, StackedConvBlocks
from torch import nn

from nnunet_dg.errors import SettingsError


def last_nonlinearity(stage: nn.Module) -> nn.Module:
    """The last non-linearity of an encoder stage, which follows the stage's last norm.

    In PlainConvUNet, its input is the output of the last norm. In ResidualEncoderUNet, it follows the addition of the
    last block, so its input is the sum of the last norm's output and the skip connection.

    Args:
        stage: Stage of the encoder.

    Raises:
        SettingsError: The stage has no non-linearity after its last norm, or consists of other blocks.
    """
    block = _last_block(stage)
    found = None
    if isinstance(block, BasicBlockD):
        found = block.nonlin2
    elif isinstance(block, BottleneckD):
        found = block.nonlin3
    elif isinstance(block, ConvDropoutNormReLU) and hasattr(block, "nonlin"):
        found = block.all_modules[-1] if block.all_modules[-1] is block.nonlin else None
    if isinstance(found, nn.Module):  # a residual block without non-linearity has a function
        return found
    raise SettingsError(
        f"at 'pre-activation' needs encoder stages that end with a norm and a non-linearity; the planned network's "
        f"stage ends with {type(block).__name__} without them in this order. Set at to 'stage'."
    )


def _last_block(stage: nn.Module) -> nn.Module:
    while isinstance(stage, (nn.Sequential, StackedConvBlocks, StackedResidualBlocks)):
        if isinstance(stage, StackedConvBlocks):
            stage = stage.convs
        elif isinstance(stage, StackedResidualBlocks):
            stage = stage.blocks
        else:
            stage = stage[-1]
    return stage
