"""anatomix: the 3-D U-Net whose features DropGen uses (Dey et al., ICLR 2025), for inference only.

What the published network computes, with two savings: batch norm is folded into the convolutions when the published
file is loaded, and with ``layer="penultimate"`` nothing after that layer exists.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from nnunet_dg.extractors.base import FrozenExtractor

LAYERS = ("penultimate", "final")


@dataclass(frozen=True)
class Variant:
    """One published architecture. Without batch norm it has instance norm (eps 1e-2, no parameters)."""

    width: int
    poolings: int
    batch_norm: bool
    average_pooling: bool
    trilinear_upsampling: bool


VARIANTS = {
    "anatomix": Variant(16, 4, batch_norm=True, average_pooling=False, trilinear_upsampling=False),
    "anatomix-dev": Variant(32, 5, batch_norm=False, average_pooling=True, trilinear_upsampling=True),
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


class Anatomix(FrozenExtractor):
    """Frozen anatomix features, ``(B, 1, X, Y, Z)`` -> ``(B, out_channels, X, Y, Z)``.

    Args:
        variant: ``"anatomix"`` (16 channels) or ``"anatomix-dev"`` (32 channels).
        layer: ``"penultimate"``, the raw output of the first convolution of the last decoder block (what the DropGen
            paper uses), or ``"final"``, the network's output.

    Raises:
        ValueError: unknown variant or layer.
    """

    def __init__(self, variant: str = "anatomix", layer: str = "penultimate") -> None:
        super().__init__()
        if variant not in VARIANTS:
            raise ValueError(f"variant must be one of {', '.join(VARIANTS)}; got {variant!r}.")
        if layer not in LAYERS:
            raise ValueError(f"layer must be one of {', '.join(LAYERS)}; got {layer!r}.")
        self.variant = VARIANTS[variant]
        self.layer = layer
        self.out_channels = width = self.variant.width
        self.multiple = 2**self.variant.poolings

        widths = [width * 2**level for level in range(self.variant.poolings + 1)]
        self.encoder = nn.ModuleList([self._block(1, width, depth=3), *(self._block(w // 2, w) for w in widths[1:])])
        self.decoder = nn.ModuleList(self._block(3 * w, w) for w in reversed(widths[:-1]))
        if layer == "final":
            self.decoder[-1].append(Layer(width, width))
        else:
            self.decoder[-1] = nn.Sequential(Layer(3 * width, width))
        self.freeze()

    def _block(self, channels: int, width: int, depth: int = 2) -> nn.Sequential:
        inputs = [channels] + [width] * (depth - 1)
        return nn.Sequential(*(Layer(n, width, not self.variant.batch_norm, activation=True) for n in inputs))

    def features(self, x: Tensor) -> Tensor:
        """Raw features ``(B, d, X, Y, Z)`` of ``(B, 1, X, Y, Z)`` in [0, 1], sizes multiples of ``2**poolings``."""
        pool = F.avg_pool3d if self.variant.average_pooling else F.max_pool3d
        mode = "trilinear" if self.variant.trilinear_upsampling else "nearest"
        skips = []
        for level, block in enumerate(self.encoder):
            x = block(pool(x, 2) if level else x)
            skips.append(x)
        skips.pop()
        for block in self.decoder:
            x = block(torch.cat([skips.pop(), F.interpolate(x, scale_factor=2, mode=mode)], dim=1))
        return x

    def load_published(self, weights: Mapping[str, Tensor]) -> None:
        """Take the weights of the published file and fold its batch norm.

        Args:
            weights: ``{"model.<index>.<name>": tensor}``, every entry of the published file and no other.

        Raises:
            ValueError: an entry is missing, unexpected or of another shape.
        """
        if problems := layout_problems(self.variant, weights):
            raise ValueError(f"not the published network: {problems}.")
        layers = [module for module in self.modules() if isinstance(module, Layer)]
        for layer, (index, *_) in zip(layers, published_convolutions(self.variant), strict=False):
            published = {key.split(".")[-1]: value for key, value in weights.items() if key.startswith(f"model.{index}.")}
            norm = {key.split(".")[-1]: value for key, value in weights.items() if key.startswith(f"model.{index + 1}.")}
            published.setdefault("bias", torch.zeros(layer.out_channels))
            layer.load_state_dict(fold(**published, norm=norm) if norm and layer.activation else published)
        self.has_weights = True


def fold(weight: Tensor, bias: Tensor, norm: Mapping[str, Tensor], eps: float = 1e-5) -> dict[str, Tensor]:
    """A convolution ``(O, I, 3, 3, 3)`` and the eval-mode batch norm after it as one convolution, computed in float64."""
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
        for n_in, n_out in zip(channels, channels[1:], strict=False):
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
    problems = [f"{key} is missing" for key in expected if key not in weights]
    problems += [f"{key} does not belong there" for key in weights if key not in expected]
    for key, shape in expected.items():
        if key in weights and tuple(weights[key].shape) != shape:
            problems.append(f"{key} has shape {tuple(weights[key].shape)} instead of {shape}")
    more = f", and {len(problems) - 3} more differences" if len(problems) > 3 else ""
    return ", ".join(problems[:3]) + more
