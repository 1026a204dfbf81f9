"""How much memory a computation holds, without computing anything."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nnunet_dg.extractors.base import FrozenExtractor


def peak_numbers(extractor: FrozenExtractor, shape: tuple[int, ...]) -> int:
    """The most numbers that are alive at once while an image of ``shape`` ``(B, 1, *spatial)`` goes through.

    Counted on PyTorch's fake tensors, which have shapes and no content. Weights are not counted.
    """
    extractor = deepcopy(extractor)
    extractor.has_weights = True  # nothing is computed
    with FakeTensorMode(allow_non_fake_inputs=True):
        image = torch.empty(shape)
        with LiveMemory() as memory:
            extractor(image)
    return memory.peak // image.element_size()


class LiveMemory(TorchDispatchMode):
    """While it is entered, adds up the bytes of the tensors that operations make, and takes off what is freed.

    Views share their storage, which counts once.

    Attributes:
        now: bytes that are alive.
        peak: the most that were.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._sizes: dict[int, int] = {}

    def count(self, tensors: Any) -> None:
        """Add tensors that were there before, in any nesting of lists and dicts."""
        for tensor in tree_leaves(tensors):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())

    def __torch_dispatch__(self, operation: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operation(*args, **kwargs or {})
        self.count(result)
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._free, key)

    def _free(self, key: int) -> None:
        self.now -= self._sizes.pop(key)
