"""Fine-tuning anatomix for segmentation, which the DropGen paper compares with freezing it.

S. Diaz, P. Golland, E. Adalsteinsson, N. Dey, Why Invariance is Not Enough for Biomedical Domain Generalization and How
to Fix It, 2026, https://arxiv.org/abs/2604.02564, appendix B. The network is that of N. Dey et al., Learning
General-Purpose Biomedical Volume Representations using Randomized Synthesis, ICLR 2025,
https://arxiv.org/abs/2411.02372.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from nnunet_dg.errors import DimensionError, SettingsError
from nnunet_dg.extractors import load_weights
from nnunet_dg.extractors.anatomix_unet import AnatomixUNet
from nnunet_dg.extractors.base import check_size
from nnunet_dg.method import Inputs, Method, Paper, choice, text
from nnunet_dg.outside import Outside
from nnunet_dg.tensors import minmax


@dataclass(frozen=True)
class AnatomixFinetune(Method):
    """anatomix, with one more 1x1x1 convolution, is the network that is trained. It is 3-D only.

    N. Dey et al., Learning General-Purpose Biomedical Volume Representations using Randomized Synthesis, ICLR 2025,
    https://arxiv.org/abs/2411.02372. It sees each patch scaled to [0, 1]. There is no deep supervision. The one-hot
    channels of a cascade's previous stage enter the last convolution.

    Attributes:
        train: Part that is trained next to the last convolution: ``"all"``, or ``"decoder"``, with the encoder and the
            statistics of its batch norm frozen.
        initial: First weights: ``"published"``, those of anatomix.pth, or ``"random"``, a control without pretraining.
        weights: Checkpoint file in the layout of anatomix.pth; None: the published file. It is read only when a
            training starts.

    Raises:
        SettingsError: A setting has a value that is not accepted. The message names the setting.
    """

    key: ClassVar[str] = "anatomix_finetune"
    slot: ClassVar[str] = "network"
    changes_network: ClassVar[bool] = True
    deep_supervision: ClassVar[bool] = False
    paper: ClassVar[Paper] = Paper(
        "Learning general-purpose biomedical volume representations using randomized synthesis",
        "Neel Dey, Benjamin Billot, Hallee E. Wong, Clinton J. Wang, Mengwei Ren, P. Ellen Grant, Adrian V. Dalca, "
        "Polina Golland",
        "International Conference on Learning Representations (ICLR)",
        2025,
        "https://arxiv.org/abs/2411.02372",
    )

    train: str = choice("all", "decoder")
    initial: str = choice("published", "random")
    weights: str | None = text(None, "the path of a file, or null")

    def check(self) -> None:
        """Refuse weights that are not read."""
        if self.initial == "random" and self.weights is not None:
            raise SettingsError("initial 'random' does not read weights: leave weights unset, or initial 'published'.")

    def build_network(self, build: Callable[[int], nn.Module], inputs: Inputs) -> AnatomixSegmenter:
        """anatomix and the last convolution, in place of the planned network. It has no published weights yet."""
        if len(inputs.patch_size) != 3:
            raise DimensionError(
                f"anatomix is 3-D only, but this configuration is {len(inputs.patch_size)}-D. Train a 3-D "
                f"configuration, such as 3d_fullres, or another trainer."
            )
        check_size(inputs.patch_size)
        anatomix = AnatomixUNet(inputs.image_channels, frozen_encoder=self.train == "decoder")
        return AnatomixSegmenter(anatomix, inputs.channels - inputs.image_channels, inputs.outputs, inputs.outside)

    def prepare_network(self, network: nn.Module, log: Callable[[str], None]) -> None:
        """Load the published weights, unless a checkpoint contained others, and log their source.

        Raises:
            WeightsError: The weights are missing and cannot be fetched, or they are damaged or of another model.
        """
        for module in network.modules():
            if isinstance(module, AnatomixUNet):
                if module.has_weights or self.initial == "random":
                    log("anatomix: " + ("weights from the checkpoint" if module.has_weights else "random weights"))
                else:
                    log(f"anatomix: weights from {load_weights(module, 'anatomix', self.weights)}")


class AnatomixSegmenter(nn.Module):
    """``head(cat(anatomix(minmax(x)), rest))``, with x the image channels and rest a cascade's previous stage.

    ``(B, C + R, X, Y, Z)`` -> logits ``(B, K, X, Y, Z)``.

    Args:
        anatomix: Network for the C image channels.
        rest: Number of channels of the previous stage, R.
        outputs: Number of segmentation heads, K.
        outside: Meaning of exact zeros in the image channels; they become black.
    """

    def __init__(self, anatomix: AnatomixUNet, rest: int, outputs: int, outside: Outside) -> None:
        super().__init__()
        self.anatomix, self.outside = anatomix, outside
        self.head = nn.Conv3d(anatomix.out_channels + rest, outputs, 1)

    @property
    def decoder(self) -> nn.Module:
        """anatomix' decoder. nnU-Net toggles deep supervision on it, which has no effect."""
        return self.anatomix.decoder

    def forward(self, x: Tensor) -> Tensor:
        channels = self.anatomix.image_channels
        image = minmax(self.outside.to_minimum(x[:, :channels])).to(x.dtype)
        features = self.anatomix(image)
        logits: Tensor = self.head(torch.cat([features, x[:, channels:].to(features.dtype)], dim=1))
        return logits
