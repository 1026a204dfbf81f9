"""Reading features inside the network that nnU-Net planned, without changing it or its state dict."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_dg.dropgen import DropGenNetwork
from nnunet_dg.errors import HostError
from nnunet_dg.host import unwrap
from nnunet_dg.tensors import Statistics, statistics
from nnunet_dg.tinymig import OwnStatistics, modulate

MOST_EARLIER = 8  # samples whose statistics a modulation remembers, where a step has one sample


class Tap:
    """The last features that went into, or came out of, a module while it was training. With their gradient.

    Made before the network runs for the first time: `torch.compile` then compiles the hook with it.

    Args:
        module: any module; hooks are no part of its state dict.
        at: ``"input"`` or ``"output"``.
    """

    def __init__(self, module: nn.Module, at: str) -> None:
        self._features: Tensor | None = None
        if at == "input":
            module.register_forward_pre_hook(self._before)
        else:
            module.register_forward_hook(self._after)

    def take(self) -> Tensor:
        """The features of the last forward pass, once; ``(B, channels, *spatial)``.

        Raises:
            RuntimeError: there was none in training mode since the last call.
        """
        features, self._features = self._features, None
        if features is None:
            raise RuntimeError("No features: the network was not run in training mode since they were last taken.")
        return features

    def _before(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if module.training:
            self._features = inputs[0]

    def _after(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if module.training:
            self._features = output


class Modulation:
    """Gives what comes out of a module other statistics (UFDM), between `begin` and `end`.

    Made before the network runs for the first time, as a `Tap`, and after the taps of the same module. With
    `torch.compile` there are two graphs, with and without.

    Args:
        module: Any module that returns ``(B, A, *spatial)``.
        own: How the features' own statistics are changed; None: `begin` is told the statistics.
    """

    def __init__(self, module: nn.Module, own: OwnStatistics | None = None) -> None:
        self.own = own
        self._given: Statistics | None = None
        self._active = False
        self._single: Statistics | None = None
        self._earlier: deque[Statistics] = deque(maxlen=MOST_EARLIER)
        module.register_forward_hook(self._after)

    def begin(self, given: Statistics | None = None) -> None:
        """From now on. Mean and deviation, ``(B, A)`` each; None where the features' own are changed."""
        if self.own is not None and self._earlier:
            given = self._earlier[int(torch.randint(len(self._earlier), ()))]
        self._given, self._active = given, True

    def end(self) -> None:
        """From now on, features stay what they are. A single sample's statistics are remembered for later ones."""
        if self._single is not None:
            self._earlier.append(self._single)
        self._given, self._active, self._single = None, False, None

    def _after(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        if not self._active:
            return None
        if self.own is not None:
            if self.own.partners and len(output) == 1:
                self._single = statistics(output.detach())
            return modulate(output, *self.own.draw(output, self._given), detached=self.own.detached)
        if self._given is None:
            raise RuntimeError("No statistics: this modulation has none of its own, and 'begin' was told none.")
        return modulate(output, *self._given)


class UnknownNetworkError(HostError, NotImplementedError):
    """The plans' network is not one whose features we know how to read."""


def planned_network(network: nn.Module) -> Any:
    """The encoder-decoder that nnU-Net planned, inside whatever it and we wrap around it.

    Raises:
        UnknownNetworkError: It is not one of nnU-Net's U-Nets.
    """
    network = unwrap(network)
    if isinstance(network, DropGenNetwork):
        network = network.network
    encoder, decoder = getattr(network, "encoder", None), getattr(network, "decoder", None)
    if not (hasattr(encoder, "stages") and hasattr(decoder, "seg_layers")):
        raise UnknownNetworkError(
            f"Features are read from nnU-Net's PlainConvUNet and ResidualEncoderUNet; the plans' network is a "
            f"{type(network).__name__}. Use plans of one of those."
        )
    return network


def tap_penultimate(network: nn.Module) -> Tap:
    """The input of the last segmentation layer, at full resolution."""
    return Tap(planned_network(network).decoder.seg_layers[-1], "input")


def tap_encoder(network: nn.Module, stage: int) -> Tap:
    """The output of one of the encoder's stages; -1 is the bottleneck."""
    return Tap(planned_network(network).encoder.stages[stage], "output")


def stage_grids(patch_size: Sequence[int], strides: Sequence[Any]) -> list[tuple[int, ...]]:
    """The spatial shape of what comes out of each encoder stage, from the patch and the stages' strides."""
    grids, grid = [], tuple(patch_size)
    for stride in strides:
        steps = (stride,) * len(grid) if isinstance(stride, int) else stride
        grid = tuple(-(-size // step) for size, step in zip(grid, steps, strict=True))
        grids.append(grid)
    return grids
