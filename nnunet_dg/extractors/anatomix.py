"""anatomix: the 3-D U-Net whose features DropGen uses (Dey et al., ICLR 2025), for inference only.

Learning general-purpose biomedical volume representations using randomized synthesis, arXiv 2411.02372. Its authors
publish, at https://github.com/neel-dey/anatomix and as ``neeldey/anatomix`` on the Hugging Face hub:

* ``anatomix.pth``, the network of the paper (6 M parameters): extractor ``anatomix``;
* ``anatomix-dev.pth`` of July 2026, a larger network (94 M parameters): extractor ``anatomix-dev``. Its features are
  to be normalized voxelwise, as its authors ask. The file of May 2026 by the same name is a smaller network, and
  refused;
* ``anatomix-dev-vit.pth``, a Vision Transformer, which is refused.

What the published network computes, with three savings: batch norm is folded into the convolutions when the published
file is loaded; with ``layer="penultimate"`` nothing after that layer exists; and a convolution of a nearest-upsampled
feature reads the feature before it is upsampled (`NearestMerge`).
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
from nnunet_dg.extractors.plausible import implausible

LAYERS = ("penultimate", "final")


@dataclass(frozen=True)
class Variant:
    """One published architecture. Without batch norm it has instance norm (eps 1e-2, no parameters).

    Attributes:
        file: the name of the published file.
        normalize: what is done to the features unless something else is set, see `FrozenExtractor`.
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
    """A 3x3x3 convolution with reflect padding and what follows it."""

    def __init__(self, channels: int, width: int, instance_norm: bool = False, activation: bool = False) -> None:
        super().__init__(channels, width, kernel_size=3, padding=1, padding_mode="reflect")
        self.instance_norm = instance_norm
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        if self.instance_norm:
            x = F.instance_norm(x, eps=1e-2)
        return F.relu_(x) if self.activation else x

    def take(self, weight: Tensor, bias: Tensor) -> None:
        """Load a published (or folded) kernel ``(O, I, 3, 3, 3)`` and bias ``(O,)``."""
        self.load_state_dict({"weight": weight, "bias": bias})


class TrilinearMerge(Layer):
    """The first layer of a decoder block: a convolution of the skip beside the upsampled feature."""

    def forward(self, skip: Tensor, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(torch.cat([skip, F.interpolate(x, scale_factor=2, mode="trilinear")], dim=1))


class NearestMerge(nn.Module):
    """As `TrilinearMerge` with nearest upsampling, which is never carried out.

    An upsampled voxel repeats its neighbour, so of the 27 weights that meet ``upsample(x)`` at an output voxel, those
    that read the same voxel of ``x`` add up: 8 remain. That is a transposed convolution of stride 2 whose 4x4x4 kernel
    is the 3x3x3 kernel summed over the 8 positions in a 2x2x2 cube. Reflect padding of ``upsample(x)`` is replicate
    padding of ``x``. The same result at less than a third of the arithmetic.
    """

    def __init__(self, skip: int, below: int, width: int, activation: bool) -> None:
        super().__init__()
        self.skip = nn.Conv3d(skip, width, kernel_size=3, padding=1, padding_mode="reflect")
        self.below = nn.ConvTranspose3d(below, width, kernel_size=4, stride=2, padding=3, bias=False)
        self.activation = activation

    def forward(self, skip: Tensor, x: Tensor) -> Tensor:
        x = self.skip(skip).add_(self.below(F.pad(x, [1] * 6, mode="replicate")))
        return F.relu_(x) if self.activation else x

    def take(self, weight: Tensor, bias: Tensor) -> None:
        """Load a published (or folded) kernel ``(O, skip + below, 3, 3, 3)`` and bias ``(O,)``."""
        skip, below = weight.split([self.skip.in_channels, self.below.in_channels], dim=1)
        self.skip.load_state_dict({"weight": skip, "bias": bias})
        kernel = below.transpose(0, 1).flip(2, 3, 4)
        corners = product((0, 1), repeat=3)
        self.below.load_state_dict(
            {"weight": sum(F.pad(kernel, [z, 1 - z, y, 1 - y, x, 1 - x]) for x, y, z in corners)}
        )


class DecoderBlock(nn.Sequential):
    """A merge, which takes the skip as well, and further layers."""

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
        layer: ``"penultimate"``, the raw output of the first convolution of the last decoder block (what the DropGen
            paper uses), or ``"final"``, the network's output.

    Raises:
        ValueError: unknown variant or layer.
    """

    layer_index: nn.Parameter  # in the state dict, so that a checkpoint for another layer is told apart

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
        # no buffer: DDP would broadcast it in the first forward pass, and wait for processes without a case to validate
        self.layer_index = nn.Parameter(torch.tensor(LAYERS.index(layer)), requires_grad=False)

    def _merge(self, width: int, raw: bool = False) -> nn.Module:
        if self.variant.trilinear_upsampling:
            return TrilinearMerge(3 * width, width, instance_norm=not raw, activation=not raw)
        return NearestMerge(skip=width, below=2 * width, width=width, activation=not raw)

    def features(self, x: Tensor) -> Tensor:
        """Raw features ``(B, d, X, Y, Z)`` of ``(B, 1, X, Y, Z)`` in [0, 1], sizes multiples of ``2**poolings``."""
        pool = F.avg_pool3d if self.variant.average_pooling else F.max_pool3d
        skips = []
        for level, block in enumerate(self.encoder):
            x = block(pool(x, 2) if level else x)
            skips.append(x)
        skips.pop()
        for block in self.decoder:
            x = block(skips.pop(), x)
        return x

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        mine, theirs = self.layer_index, state_dict.get(f"{prefix}layer_index")
        super()._load_from_state_dict(state_dict, prefix, *args)
        if theirs is not None and int(theirs) != LAYERS.index(self.layer):
            error_msgs: list[str] = args[-1]
            error_msgs.append(f"The checkpoint holds anatomix for layer {LAYERS[int(theirs)]!r}, not {self.layer!r}.")
            mine.fill_(LAYERS.index(self.layer))
            self.has_weights = False

    def load_published(self, weights: Mapping[str, Tensor]) -> None:
        """Take the weights of the published file and fold its batch norm.

        Args:
            weights: ``{"model.<index>.<name>": tensor}``, every entry of the published file and no other.

        Raises:
            ValueError: an entry is missing, unexpected, of another shape, or no plausible weight.
        """
        if problems := layout_problems(self.variant, weights):
            raise ValueError(f"not the published network: {problems}.")
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
            layer.take(published["weight"], published["bias"])
        self.has_weights = True


def fold(weight: Tensor, bias: Tensor, norm: Mapping[str, Tensor], eps: float = 1e-5) -> dict[str, Tensor]:
    """A convolution ``(O, I, 3, 3, 3)`` and the batch norm after it (eval mode) as one convolution, in float64."""
    scale = norm["weight"].double() / (norm["running_var"].double() + eps).sqrt()
    shift = norm["bias"].double() + (bias.double() - norm["running_mean"].double()) * scale
    return {"weight": (weight.double() * scale.view(-1, 1, 1, 1, 1)).float(), "bias": shift.float()}


def published_convolutions(variant: Variant) -> Iterator[tuple[int, int, int, bool]]:
    """``(index, in, out, is normalised)`` of the convolutions of the published network, which is one flat sequence.

    A convolution is followed by its norm and activation; between blocks stands one pooling or upsampling.
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
    for index, n_in, n_out, normalised in published_convolutions(variant):
        layout[f"model.{index}.weight"] = (n_out, n_in, 3, 3, 3)
        if not variant.batch_norm:
            layout[f"model.{index}.bias"] = (n_out,)
        elif normalised:
            for name in ("weight", "bias", "running_mean", "running_var"):
                layout[f"model.{index + 1}.{name}"] = (n_out,)
            layout[f"model.{index + 1}.num_batches_tracked"] = ()
    return layout


def layout_problems(variant: Variant, weights: Mapping[str, Tensor]) -> str:
    """In words, how ``weights`` differ from the published file's layout; empty if they do not."""
    expected = published_layout(variant)
    if {key: tuple(value.shape) for key, value in weights.items()} == expected:
        return ""
    if known := _known(weights):
        return f"it is {known}; the file to use is {variant.file}"
    problems = [f"{key} is missing" for key in expected if key not in weights]
    problems += [f"{key} does not belong there" for key in weights if key not in expected]
    for key, shape in expected.items():
        if key in weights and tuple(weights[key].shape) != shape:
            problems.append(f"{key} has shape {tuple(weights[key].shape)} instead of {shape}")
    more = f", and {len(problems) - 3} more differences" if len(problems) > 3 else ""
    return ", ".join(problems[:3]) + more


def _known(weights: Mapping[str, Tensor]) -> str:
    """Which other published network ``weights`` are, if any."""
    shapes = {key: tuple(value.shape) for key, value in weights.items()}
    for name, variant in VARIANTS.items():
        if shapes == published_layout(variant):
            return f"{variant.file}, which is extractor '{name}'"
    if any(".attn." in f".{key}" or key.startswith(("patch_embed.", "down_projection.")) for key in weights):
        return "a Vision Transformer, as anatomix-dev-vit.pth is, which is not supported"
    if shapes.get("model.0.weight") == (20, 1, 3, 3, 3):
        return "the anatomix-dev.pth of May 2026, which its authors replaced in July 2026"
    return ""
