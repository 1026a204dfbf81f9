"""anatomix, the 3-D U-Net whose features DropGen uses, for inference only.

Dey et al., "Learning General-Purpose Biomedical Volume Representations using Randomized Synthesis", ICLR 2025,
https://arxiv.org/abs/2411.02372. The authors publish these files at https://github.com/neel-dey/anatomix and as
``neeldey/anatomix`` on the Hugging Face hub:

* ``anatomix.pth``, the network of the paper (6 M parameters): extractor ``anatomix``.
* ``anatomix-dev.pth`` of July 2026, a larger network (94 M parameters): extractor ``anatomix-dev``. Its authors
  recommend voxelwise normalization of its features. The file of the same name of May 2026 is a smaller network, and is
  not supported.
* ``anatomix-dev-vit.pth``, a Vision Transformer, which is not supported.

The features are those of the published network, computed with three savings. Batch norm is folded into the convolutions
when the published file is loaded. With ``layer="penultimate"``, later layers are not built. A convolution of a
nearest-upsampled feature is computed from the feature before upsampling (`NearestMerge`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from nnunet_dg.extractors.base import FrozenExtractor
from nnunet_dg.extractors.convolution import convolved
from nnunet_dg.extractors.plausible import implausible
from nnunet_dg.tensors import channels_last

LAYERS = ("penultimate", "final")


@dataclass(frozen=True)
class Variant:
    """One published architecture. Variants without batch norm have instance norm (eps 1e-2, no parameters).

    Attributes:
        file: Name of the published file.
        normalize: Default normalization of the features, see `FrozenExtractor`.
        width: Number of channels at full resolution.
        poolings: Number of pooling layers.
        batch_norm: Whether convolutions are followed by batch norm instead of instance norm.
        average_pooling: Whether pooling is by average instead of maximum.
        trilinear_upsampling: Whether upsampling is trilinear instead of nearest.
    """

    file: str
    normalize: str
    width: int
    poolings: int
    batch_norm: bool
    average_pooling: bool
    trilinear_upsampling: bool


VARIANTS = {
    "anatomix": Variant(
        "anatomix.pth", "instance", 16, 4, batch_norm=True, average_pooling=False, trilinear_upsampling=False
    ),
    "anatomix-dev": Variant(
        "anatomix-dev.pth", "voxelwise", 32, 5, batch_norm=False, average_pooling=True, trilinear_upsampling=True
    ),
}


class Layer(nn.Conv3d):
    """A 3x3x3 convolution with reflect padding, followed by optional instance norm and ReLU."""

    def __init__(self, channels: int, width: int, instance_norm: bool = False, activation: bool = False) -> None:
        super().__init__(channels, width, kernel_size=3, padding=1, padding_mode="reflect")
        self.instance_norm = instance_norm
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        x = reflected(x, self)
        if self.instance_norm:
            x = F.instance_norm(x, eps=1e-2)
        return F.relu_(x) if self.activation else x

    def load_kernel(self, weight: Tensor, bias: Tensor) -> None:
        """Load a published (or folded) kernel ``(O, I, 3, 3, 3)`` and bias ``(O,)``."""
        self.load_state_dict({"weight": weight, "bias": bias})


def reflected(x: Tensor, convolution: nn.Conv3d) -> Tensor:
    """The 3x3x3 convolution of ``(B, C, X, Y, Z)`` with reflect padding."""
    return convolved(F.pad(x, [1] * 6, mode="reflect"), convolution.weight, convolution.bias)


class TrilinearMerge(Layer):
    """The first layer of a decoder block: a convolution of the skip concatenated with the upsampled feature."""

    def forward(self, skip: Tensor, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(torch.cat([skip, F.interpolate(x, scale_factor=2, mode="trilinear")], dim=1))


class NearestMerge(nn.Module):
    """Like `TrilinearMerge` with nearest upsampling, computed without upsampling.

    Nearest upsampling repeats each voxel. So at an output voxel, those of the 27 weights that read the same voxel of
    ``x`` can be added, and 8 sums remain. This is a transposed convolution with stride 2 whose 4x4x4 kernel is the
    3x3x3 kernel summed over the 8 positions in a 2x2x2 cube. Reflect padding of ``upsample(x)`` becomes replicate
    padding of ``x``. The result is the same with less than a third of the arithmetic.
    """

    def __init__(self, skip: int, below: int, width: int, activation: bool) -> None:
        super().__init__()
        self.skip = nn.Conv3d(skip, width, kernel_size=3, padding=1, padding_mode="reflect")
        self.below = nn.ConvTranspose3d(below, width, kernel_size=4, stride=2, padding=3, bias=False)
        self.activation = activation

    def forward(self, skip: Tensor, x: Tensor) -> Tensor:
        x = reflected(skip, self.skip).add_(self.below(F.pad(x, [1] * 6, mode="replicate")))
        return F.relu_(x) if self.activation else x

    def load_kernel(self, weight: Tensor, bias: Tensor) -> None:
        """Load a published (or folded) kernel ``(O, skip + below, 3, 3, 3)`` and bias ``(O,)``."""
        skip, below = weight.split([self.skip.in_channels, self.below.in_channels], dim=1)
        self.skip.load_state_dict({"weight": skip, "bias": bias})
        kernel = below.transpose(0, 1).flip(2, 3, 4)
        corners = product((0, 1), repeat=3)
        self.below.load_state_dict(
            {"weight": sum(F.pad(kernel, [z, 1 - z, y, 1 - y, x, 1 - x]) for x, y, z in corners)}
        )


class DecoderBlock(nn.Sequential):
    """A merge of the skip and the feature from below, followed by further layers."""

    def forward(self, skip: Tensor, x: Tensor) -> Tensor:  # type: ignore[override]
        merge, *layers = self
        x = merge(skip, x)
        for layer in layers:
            x = layer(x)
        return x


class Anatomix(FrozenExtractor):
    """Frozen anatomix features, ``(B, 1, X, Y, Z)`` -> ``(B, out_channels, X, Y, Z)``.

    Args:
        variant: ``"anatomix"`` (16 channels, ``anatomix.pth``) or ``"anatomix-dev"`` (32 channels, ``anatomix-dev.pth``
            of July 2026).
        layer: ``"penultimate"``, the raw output of the first convolution of the last decoder block, as in the DropGen
            paper, or ``"final"``, the network's output.

    Raises:
        ValueError: Unknown variant or layer.
    """

    layer_index: nn.Parameter  # stored in the state dict, to recognize a checkpoint for another layer

    def __init__(self, variant: str = "anatomix", layer: str = "penultimate") -> None:
        super().__init__()
        if variant not in VARIANTS:
            raise ValueError(f"variant must be one of {', '.join(VARIANTS)}; got {variant!r}.")
        if layer not in LAYERS:
            raise ValueError(f"layer must be one of {', '.join(LAYERS)}; got {layer!r}.")
        self.variant = VARIANTS[variant]
        self.layer = layer
        self.normalize = self.variant.normalize
        self.out_channels = width = self.variant.width
        self.multiple = 2**self.variant.poolings

        norm = not self.variant.batch_norm
        widths = [width * 2**level for level in range(self.variant.poolings + 1)]
        self.encoder = nn.ModuleList()
        for i, w in enumerate(widths):
            inputs = [1, w, w] if i == 0 else [w // 2, w]
            self.encoder.append(nn.Sequential(*(Layer(n, w, norm, activation=True) for n in inputs)))
        self.decoder = nn.ModuleList()
        for w in reversed(widths[1:-1]):
            self.decoder.append(DecoderBlock(self._merge(w), Layer(w, w, norm, activation=True)))
        if layer == "penultimate":
            self.decoder.append(DecoderBlock(self._merge(width, raw=True)))
        else:
            last = Layer(width, width, norm, activation=True)
            self.decoder.append(DecoderBlock(self._merge(width), last, Layer(width, width)))
        self.freeze()
        # not a buffer, which DDP would broadcast in the first forward pass, waiting for processes without cases
        self.layer_index = nn.Parameter(torch.tensor(LAYERS.index(layer)), requires_grad=False)

    def _merge(self, width: int, raw: bool = False) -> nn.Module:
        if self.variant.trilinear_upsampling:
            return TrilinearMerge(3 * width, width, instance_norm=not raw, activation=not raw)
        return NearestMerge(skip=width, below=2 * width, width=width, activation=not raw)

    def features(self, x: Tensor) -> Tensor:
        """Raw features ``(B, d, X, Y, Z)`` of ``(B, 1, X, Y, Z)`` in [0, 1]. Sizes are multiples of ``2**poolings``."""
        pool = F.avg_pool3d if self.variant.average_pooling else F.max_pool3d
        if self.variant.batch_norm and x.device.type == "cpu" and not torch.is_grad_enabled():
            x = channels_last(x)  # faster, but not with TinyMIG's adapters, whose instance norm changes the format back
        skips = []
        for level, block in enumerate(self.encoder):
            x = block(pool(x, 2) if level else x)
            skips.append(x)
        skips.pop()
        for block in self.decoder:
            x = block(skips.pop(), x)
        return x

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        own, given = LAYERS.index(self.layer), state_dict.get(f"{prefix}layer_index")
        super()._load_from_state_dict(state_dict, prefix, *args)
        if given is not None and int(given) != own:
            error_msgs: list[str] = args[-1]
            error_msgs.append(f"The checkpoint has anatomix for layer {LAYERS[int(given)]!r}, not {self.layer!r}.")
            self.layer_index.fill_(own)
            self.has_weights = False

    def load_published(self, weights: Mapping[str, Tensor]) -> None:
        """Load the weights of the published file, and fold its batch norm into the convolutions.

        Args:
            weights: ``{"model.<index>.<name>": tensor}`` with exactly the entries of the published file.

        Raises:
            ValueError: An entry is missing, unexpected, has another shape, or is not a plausible weight.
        """
        if problems := layout_problems(self.variant, weights):
            raise ValueError(f"It is not the published network: {problems}.")
        if problem := implausible(weights):
            raise ValueError(f"{problem}.")
        layers = [module for module in self.modules() if isinstance(module, (Layer, NearestMerge))]
        for layer, (index, *_) in zip(layers, published_convolutions(self.variant), strict=False):
            published = {
                key.split(".")[-1]: value for key, value in weights.items() if key.startswith(f"model.{index}.")
            }
            norm = {
                key.split(".")[-1]: value for key, value in weights.items() if key.startswith(f"model.{index + 1}.")
            }
            published.setdefault("bias", torch.zeros(published["weight"].shape[0]))
            if norm and layer.activation:
                published = fold(published["weight"], published["bias"], norm)
            layer.load_kernel(published["weight"], published["bias"])
        self.has_weights = True


def fold(weight: Tensor, bias: Tensor, norm: Mapping[str, Tensor], eps: float = 1e-5) -> dict[str, Tensor]:
    """Fold the batch norm (in eval mode) after a convolution ``(O, I, 3, 3, 3)`` into it, computed in float64."""
    scale = norm["weight"].double() / (norm["running_var"].double() + eps).sqrt()
    shift = norm["bias"].double() + (bias.double() - norm["running_mean"].double()) * scale
    return {"weight": (weight.double() * scale.view(-1, 1, 1, 1, 1)).float(), "bias": shift.float()}


def published_convolutions(variant: Variant) -> Iterator[tuple[int, int, int, bool]]:
    """``(index, in, out, is normalized)`` of the convolutions of the published network, which is a flat sequence.

    Each convolution is followed by its norm and activation. Between blocks is one pooling or upsampling.
    """
    widths = [variant.width * 2**level for level in range(variant.poolings + 1)]
    blocks = [[1, *[widths[0]] * 3]]
    blocks += [[w // 2, w, w] for w in widths[1:]]
    blocks += [[3 * w, w, w] for w in reversed(widths[:-1])]
    index = 0
    for channels in blocks:
        for n_in, n_out in pairwise(channels):
            yield index, n_in, n_out, True
            index += 3
        index += 1
    yield index - 1, widths[0], widths[0], False


def published_layout(variant: Variant) -> dict[str, tuple[int, ...]]:
    """``{key: shape}`` of the published file."""
    layout: dict[str, tuple[int, ...]] = {}
    for index, n_in, n_out, normalized in published_convolutions(variant):
        layout[f"model.{index}.weight"] = (n_out, n_in, 3, 3, 3)
        if not variant.batch_norm:
            layout[f"model.{index}.bias"] = (n_out,)
        elif normalized:
            for name in ("weight", "bias", "running_mean", "running_var"):
                layout[f"model.{index + 1}.{name}"] = (n_out,)
            layout[f"model.{index + 1}.num_batches_tracked"] = ()
    return layout


def layout_problems(variant: Variant, weights: Mapping[str, Tensor]) -> str:
    """A description of how ``weights`` differ from the layout of the published file; empty if they do not."""
    expected = published_layout(variant)
    if {key: tuple(value.shape) for key, value in weights.items()} == expected:
        return ""
    if known := _known(weights):
        return f"it is {known}; use {variant.file}"
    problems = [f"{key} is missing" for key in expected if key not in weights]
    problems += [f"{key} is unexpected" for key in weights if key not in expected]
    for key, shape in expected.items():
        if key in weights and tuple(weights[key].shape) != shape:
            problems.append(f"{key} has shape {tuple(weights[key].shape)} instead of {shape}")
    more = f", and {len(problems) - 3} more differences" if len(problems) > 3 else ""
    return ", ".join(problems[:3]) + more


def _known(weights: Mapping[str, Tensor]) -> str:
    """The name of the other published network that ``weights`` belong to; empty if unknown."""
    shapes = {key: tuple(value.shape) for key, value in weights.items()}
    for name, variant in VARIANTS.items():
        if shapes == published_layout(variant):
            return f"{variant.file}, which is for extractor '{name}'"
    if any(".attn." in f".{key}" or key.startswith(("patch_embed.", "down_projection.")) for key in weights):
        return "a Vision Transformer, like anatomix-dev-vit.pth, which is not supported"
    if shapes.get("model.0.weight") == (20, 1, 3, 3, 3):
        return "the anatomix-dev.pth of May 2026, which its authors replaced in July 2026"
    return ""
