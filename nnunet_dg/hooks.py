"""Reading and replacing features inside a network, without changing the network or its state dict.

Hooks are registered before the network runs for the first time, so that `torch.compile` includes them. They act in
training mode only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Literal

from torch import Tensor, nn


class Tap:
    """Reads the input or output of a module in its last training-mode pass, with the gradient.

    Args:
        module: Module that takes and returns a tensor.
        at: Side of the module that is read, ``"input"`` or ``"output"``.
    """

    def __init__(self, module: nn.Module, at: Literal["input", "output"]) -> None:
        self._features: Tensor | None = None
        if at == "input":
            module.register_forward_pre_hook(self._before)
        else:
            module.register_forward_hook(self._after)

    def take(self) -> Tensor:
        """Return the features of the last forward pass, ``(B, channels, *spatial)``, and forget them.

        Raises:
            RuntimeError: The network has not run in training mode since the last call.
        """
        features, self._features = self._features, None
        if features is None:
            raise RuntimeError(
                "There are no features to read: the network has not run in training mode since the last call of 'take'."
            )
        return features

    def _before(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if module.training:
            self._features = inputs[0]

    def _after(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if module.training:
            self._features = output


class Change:
    """Replaces the input or output of a module in training mode, either always or inside ``with change:``.

    `torch.compile` compiles two graphs, with and without the change.

    Args:
        module: Module that takes and returns a tensor.
        function: Function from the module's input or output, ``(B, A, *spatial)``, to its replacement, which has the
            same shape.
        always: Whether the change also acts outside ``with change:``; default False.
        at: Side of the module that is replaced, ``"input"`` or ``"output"`` (default).
    """

    def __init__(
        self,
        module: nn.Module,
        function: Callable[[Tensor], Tensor],
        always: bool = False,
        at: Literal["input", "output"] = "output",
    ) -> None:
        self.function, self.always = function, always
        self._on = always
        if at == "input":
            module.register_forward_pre_hook(self._before)
        else:
            module.register_forward_hook(self._after)

    def __enter__(self) -> Change:
        self._on = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._on = self.always

    def _before(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor | None:
        return self.function(inputs[0]) if self._on and module.training else None

    def _after(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        return self.function(output) if self._on and module.training else None


class Replay:
    """Returns given features in place of a module's output, inside ``with replay.of(features):``. Nothing is computed.

    Hooks of the module act on these features as they do on its output. Outside the context the module runs as always.

    Args:
        module: Module that takes and returns a tensor.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module, self._compute = module, module.forward
        self._features: Tensor | None = None
        module.forward = self._forward

    @contextmanager
    def of(self, features: Tensor) -> Iterator[None]:
        """Inside this context, the module returns ``features (B, channels, *spatial)``, with their gradient."""
        self._features = features
        try:
            yield
        finally:
            self._features = None

    def _forward(self, x: Tensor) -> Tensor:
        features: Tensor = self._compute(x) if self._features is None else self._features
        return features


def activations(network: nn.Module) -> list[nn.Module]:
    """The modules of PyTorch's non-linearities in a network."""
    return [module for module in network.modules() if type(module).__module__ == nn.LeakyReLU.__module__]


@contextmanager
def kept_buffers(network: nn.Module) -> Iterator[None]:
    """Inside this context, passes in training mode do not change the running statistics of batch norm.

    They are restored at the end, outside the graph, since other passes of the step may need them for their gradient.
    """
    saved = [(buffer, buffer.clone()) for buffer in network.buffers()]
    try:
        yield
    finally:
        for buffer, before in saved:
            buffer.data.copy_(before)
