"""DropGen around any segmentation network: stable features next to the image, with channel dropout in training.

S. Diaz, P. Golland, E. Adalsteinsson, N. Dey, Why Invariance is Not Enough for Biomedical Domain Generalization and How
to Fix It, 2026, https://arxiv.org/abs/2604.02564, section 3.1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nnunet_dg.dropgen.dropout import ChannelDropout, StructuredDropout
from nnunet_dg.dropgen.fusion import SqueezeExcitation
from nnunet_dg.extractors import FrozenExtractor, create_extractor, load_weights
from nnunet_dg.extractors import weights as weight_files
from nnunet_dg.extractors.base import check_size
from nnunet_dg.method import AroundPlanned
from nnunet_dg.outside import Outside
from nnunet_dg.tensors import channels_last, is_channels_last, minmax

if TYPE_CHECKING:
    from nnunet_dg.dropgen.method import DropGen


class DropGenNetwork(AroundPlanned):
    """``network(cat(dropout(fusion(cat(x, s))), rest))`` with ``s`` the frozen features of the image channels ``x``.

    The input is ``(B, C + R, *spatial)``: C image channels, then R other channels (the one-hot prediction of a
    cascade's previous stage), which get no features and are never dropped. The output is that of ``network`` for
    ``(B, C + C * d + R, *spatial)``, a list under deep supervision. The extractor never trains. It is in the state
    dict, so that a checkpoint is complete.

    nnU-Net sets voxels outside the subject to zero, which is the mean of the image. For the extractor, voxels that
    `outside` finds are set to the minimum of their sample and channel instead. The image channels of the network are
    not changed.

    Args:
        network: Segmentation network that takes `num_combined_channels` + R channels.
        extractor: Frozen feature extractor; None: the network sees the image only.
        dropout: `ChannelDropout`, `StructuredDropout` or the identity.
        num_image_channels: Number of image channels, C.
        settings: Settings, of which combine, inputs and image_scaling are used.
        outside: Meaning of exact zeros in the image channels; None: ordinary intensities.
        fusion: `SqueezeExcitation`; None: the image and its features are only concatenated.
    """

    def __init__(
        self,
        network: nn.Module,
        extractor: FrozenExtractor | None,
        dropout: nn.Module,
        num_image_channels: int,
        settings: DropGen,
        outside: Outside | None = None,
        fusion: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.extractor = extractor
        self.dropout = dropout
        self.num_image_channels = num_image_channels
        self.settings = settings
        self.outside = outside or Outside.nowhere(num_image_channels)
        self.fusion = fusion or nn.Identity()

    def forward(self, x: Tensor) -> Any:
        image, rest = x[:, : self.num_image_channels], x[:, self.num_image_channels :]
        z = self.dropout(self.fusion(self.combine(image)))
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
            dtype = s.dtype  # under autocast the features and the network's input are in half precision
            # a convolution of C + d channels is faster in this format, above all its backward pass
            trains_on_cpu = self.training and image.device.type == "cpu" and image.ndim == 5
            if trains_on_cpu or is_channels_last(parts[-1]):
                parts = [channels_last(part) for part in parts]
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
        start = f"{prefix}extractor."
        expected = {start + k: v.shape for k, v in self.extractor.state_dict().items()} if self.extractor else {}
        saved = {k: v.shape for k, v in state_dict.items() if k.startswith(start)}
        if not any(k.startswith(f"{prefix}network.") for k in state_dict):
            error_msgs.append(
                "This is not a DropGen checkpoint: it has no 'network.*' weights. Use the trainer that wrote it."
            )
        elif expected != saved:
            error_msgs.append(
                f"This checkpoint was trained with another extractor. The plans say extractor "
                f"'{self.settings.extractor}', layer '{self.settings.layer}' ({len(expected)} tensors); the checkpoint "
                f"has {len(saved)} tensors of an extractor. Use the plans.json, the trainer and the version "
                f"of nnunet-dg with which it was trained."
            )


def num_combined_channels(settings: DropGen, num_image_channels: int, num_features: int) -> int:
    """Number of channels after `DropGenNetwork.combine`: C for the image, and C * d (or d if averaged) for features."""
    image = num_image_channels if settings.sees_image else 0
    return image + num_features * (1 if settings.combine == "mean" else num_image_channels)


def extractor_of(settings: DropGen, spatial_dims: int) -> FrozenExtractor | None:
    """The extractor that ``settings`` name, without weights; None if the network sees no features.

    Raises:
        DimensionError: It does not exist for ``spatial_dims``. This error is also a NotImplementedError.
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
    """The network that ``settings`` describe. Its extractor has no weights yet.

    Args:
        settings: Settings, see `DropGen`.
        build_network: Function that builds the segmentation network for a number of input channels.
        num_input_channels: Number of input channels of the resulting network, C + R.
        num_image_channels: Number of image channels, C, which come first.
        patch_size: Patch size of the configuration, two or three sizes.
        outside: Meaning of exact zeros in the image channels; None: ordinary intensities.

    Raises:
        DimensionError: The extractor does not exist in this dimension. This error is also a NotImplementedError.
        ValueError: The patch is too small for features.

    >>> from nnunet_dg.dropgen import DropGen
    >>> def planned(channels):
    ...     return nn.Conv3d(channels, 2, 1)
    >>> network = build_dropgen_network(DropGen(extractor="mind"), planned, 1, 1, patch_size=(16, 16, 16))
    >>> network(torch.rand(1, 1, 16, 16, 16)).shape
    torch.Size([1, 2, 16, 16, 16])
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
    fusion = SqueezeExcitation(combined, settings.squeeze) if settings.fusion == "squeeze-excitation" else None
    return DropGenNetwork(network, extractor, dropout, num_image_channels, settings, outside, fusion)


def load_extractor(network: DropGenNetwork, log: Callable[[str], None]) -> None:
    """Fetch, verify and load the extractor's weights, unless the checkpoint contained them, and log their source.

    Raises:
        WeightsError: The weights are missing and cannot be fetched, or they are damaged or of another model.
    """
    if network.extractor is None or not any(True for _ in network.extractor.parameters()):
        return
    name, weights = network.settings.extractor, network.settings.weights
    if network.extractor.has_weights:
        log(f"Extractor {name}: weights from the checkpoint" + (f"; {weights} is not read" if weights else ""))
        return
    path = load_weights(network.extractor, name, weights)
    origin = "as set" if weights else weight_files.origin(name)
    log(f"Extractor {name}: weights from {path} ({origin})")
