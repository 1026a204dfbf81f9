"""Reading and replacing features inside a network, without changing the network or its state dict.

Hooks are registered before the network runs for the first time: `torch.compile` then compiles them with it. They act in
training mode only.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Literal

from torch import Tensor, nn


class Tap:
    """The last features that went into, or came out of, a module in training mode, with their gradient.

    Args:
        module: Any module that takes and returns a tensor.
        at: Whether its input or its output is read.
    """

    def __init__(self, module: nn.Module, at: Literal["input", "output"]) -> None:
        self._features: Tensor | None = None
        if at == "input":
            module.register_forward_pre_hook(self._before)
        else:
            module.register_forward_hook(self._after)

    def take(self) -> Tensor:
        """The features of the last forward pass, once: ``(B, channels, *spatial)``.

        Raises:
            RuntimeError: There was none in training mode since the last call.
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


class Change:
    """Replaces what comes out of a module in training mode, always or inside ``with change:``.

    With `torch.compile` there are two graphs, with and without the change.

    Args:
        module: Any module that returns ``(B, A, *spatial)``.
        function: From the module's output to what later layers see, in the same shape.
        always: Whether it is on outside ``with change:`` as well.
    """

    def __init__(self, module: nn.Module, function: Callable[[Tensor], Tensor], always: bool = False) -> None:
        self.function, self.always = function, always
        self._on = always
        module.register_forward_hook(self._after)

    def __enter__(self) -> Change:
        self._on = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._on = self.always

    def _after(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        return self.function(output) if self._on and module.training else None
