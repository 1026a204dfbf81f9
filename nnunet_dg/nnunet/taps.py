"""Reading features inside the network that nnU-Net planned, without changing it or its state dict."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from nnunet_dg.dropgen import DropGenNetwork
from nnunet_dg.nnunet.unwrap import unwrap


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


def planned_network(network: nn.Module) -> Any:
    """The encoder-decoder that nnU-Net planned, inside whatever it and we wrap around it.

    Raises:
        NotImplementedError: it is not one of nnU-Net's U-Nets.
    """
    network = unwrap(network)
    if isinstance(network, DropGenNetwork):
        network = network.network
    encoder, decoder = getattr(network, "encoder", None), getattr(network, "decoder", None)
    if not (hasattr(encoder, "stages") and hasattr(decoder, "seg_layers")):
        raise NotImplementedError(
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
