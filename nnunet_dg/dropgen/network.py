"""DropGen around any segmentation network: stable features beside the image, dropped channel by channel in training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nnunet_dg.dropgen.dropout import ChannelDropout, StructuredDropout
from nnunet_dg.extractors import FrozenExtractor, create_extractor, load_weights
from nnunet_dg.extractors import weights as room
from nnunet_dg.extractors.base import check_size
from nnunet_dg.method import AroundPlanned
from nnunet_dg.outside import Outside
from nnunet_dg.tensors import minmax

if TYPE_CHECKING:
    from nnunet_dg.dropgen.method import DropGen


class DropGenNetwork(AroundPlanned):
    """``network(cat(dropout(cat(x, s)), rest))`` with ``s`` the frozen features of the image channels ``x``.

    Input ``(B, C + R, *spatial)``: C image channels, then R channels that are no image (a cascade's previous stage as
    one-hot), which get no features and are never dropped. Output: whatever ``network`` returns for
    ``(B, C + C * d + R, *spatial)``, a list under deep supervision. The extractor is in the state dict, so a checkpoint
    is complete; it never trains.

    The extractor sees the image with the minimum of each sample and channel where `outside` finds no subject: zero,
    which nnU-Net leaves there, is the mean of the image. The image channels stay as nnU-Net made them.

    Args:
        network: takes `num_combined_channels` + R channels.
        extractor: frozen features, or None for the image alone.
        dropout: `ChannelDropout`, `StructuredDropout` or the identity.
        num_image_channels: C.
        settings: for combine, inputs and image_scaling.
        outside: what exact zeros mean in the image channels; None: ordinary intensities.
    """

    def __init__(
        self,
        network: nn.Module,
        extractor: FrozenExtractor | None,
        dropout: nn.Module,
        num_image_channels: int,
        settings: DropGen,
        outside: Outside | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.extractor = extractor
        self.dropout = dropout
        self.num_image_channels = num_image_channels
        self.settings = settings
        self.outside = outside or Outside.nowhere(num_image_channels)

    def forward(self, x: Tensor) -> Any:
        image, rest = x[:, : self.num_image_channels], x[:, self.num_image_channels :]
        z = self.dropout(self.combine(image))
        return self.network(torch.cat([z, rest], dim=1) if rest.shape[1] else z)

    def combine(self, image: Tensor) -> Tensor:
        """The image, its features, or both: ``(B, C, *spatial)`` -> ``(B, num_combined_channels, *spatial)``."""
        seen = self.outside.to_minimum(image)
        minmaxed = self.settings.image_scaling == "minmax"
        parts = [minmax(seen) if minmaxed else image] if self.settings.sees_image else []
        dtype = image.dtype
        if self.extractor is not None:
            s = self.extractor(seen.flatten(0, 1).unsqueeze(1)).unflatten(0, image.shape[:2])
            parts.append(s.mean(dim=1) if self.settings.combine == "mean" else s.flatten(1, 2))
            dtype = s.dtype  # under autocast the features are in half precision, as the network's input will be
        return torch.cat([part.to(dtype) for part in parts], dim=1)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        extractor = f"{prefix}extractor."
        mine = {extractor + k: v.shape for k, v in self.extractor.state_dict().items()} if self.extractor else {}
        theirs = {k: v.shape for k, v in state_dict.items() if k.startswith(extractor)}
        if not any(k.startswith(f"{prefix}network.") for k in state_dict):
            error_msgs.append("This is no DropGen checkpoint: it holds no 'network.*'. Use the trainer that wrote it.")
        elif mine != theirs:
            error_msgs.append(
                f"This checkpoint was trained with another extractor. The plans say extractor "
                f"'{self.settings.extractor}', layer '{self.settings.layer}' ({len(mine)} tensors); the checkpoint "
                f"holds {len(theirs)} tensors of an extractor. Use the plans.json and the trainer it was trained with."
            )


def num_combined_channels(settings: DropGen, num_image_channels: int, num_features: int) -> int:
    """Channels after `DropGenNetwork.combine`: C for the image, and C * d (or d for their mean) for the features."""
    image = num_image_channels if settings.sees_image else 0
    return image + num_features * (1 if settings.combine == "mean" else num_image_channels)


def extractor_of(settings: DropGen, spatial_dims: int) -> FrozenExtractor | None:
    """The extractor that ``settings`` name, still without weights; None where the network sees no features.

    Raises:
        DimensionError: it does not exist for ``spatial_dims``; also a NotImplementedError.
    """
    if not settings.sees_features:
        return None
    return create_extractor(
        settings.extractor,
        layer=settings.layer,
        scaling=settings.extractor_scaling,
        spatial_dims=spatial_dims,
        architecture=settings.architecture,
        normalize=settings.normalize,
    )


def build_dropgen_network(
    settings: DropGen,
    build_network: Callable[[int], nn.Module],
    num_input_channels: int,
    num_image_channels: int,
    patch_size: Sequence[int],
    outside: Outside | None = None,
) -> DropGenNetwork:
    """The network that ``settings`` describe, its extractor still without weights.

    Args:
        settings: see `DropGen`.
        build_network: makes the segmentation network for a number of input channels.
        num_input_channels: C + R, what the whole takes.
        num_image_channels: C, the first of them.
        patch_size: of the configuration, two axes or three.
        outside: see `DropGenNetwork`.

    Raises:
        DimensionError: the extractor does not exist for so many axes; also a NotImplementedError.
        ValueError: the patch is too small for features.
    """
    extractor = extractor_of(settings, len(patch_size))
    if extractor is not None:
        check_size(patch_size)
    dropout: nn.Module = nn.Identity()
    if settings.sees_image and settings.sees_features:
        structured = settings.masking == "structured"
        dropout = StructuredDropout(settings.p, num_image_channels) if structured else ChannelDropout(settings.p)
    combined = num_combined_channels(settings, num_image_channels, extractor.out_channels if extractor else 0)
    network = build_network(combined + num_input_channels - num_image_channels)
    return DropGenNetwork(network, extractor, dropout, num_image_channels, settings, outside)


def load_extractor(network: DropGenNetwork, log: Callable[[str], None]) -> None:
    """Fetch, verify and load the extractor's weights, unless a checkpoint has brought them already; log which.

    Raises:
        WeightsError: they are missing and cannot be fetched, or are not what they should be.
    """
    if network.extractor is None or not any(True for _ in network.extractor.parameters()):
        return
    name, given = network.settings.extractor, network.settings.weights
    if network.extractor.has_weights:
        log(f"Extractor {name}: weights from the checkpoint" + (f"; {given} is not read" if given else ""))
        return
    path = load_weights(network.extractor, name, given)
    log(f"Extractor {name}: weights from {path} ({'as set' if given else room.state(room.published(name))})")
