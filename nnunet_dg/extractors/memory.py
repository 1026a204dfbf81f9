"""Peak memory of a computation, determined without running it."""

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
    """The peak of the numbers that an extractor holds in memory for an image of ``shape`` ``(B, 1, *spatial)``.

    It is counted with PyTorch's fake tensors, which have shapes but no content. Weights are not counted.
    """
    extractor = deepcopy(extractor)
    extractor.has_weights = True  # fake tensors need none
    with FakeTensorMode(allow_non_fake_inputs=True):
        image = torch.empty(shape)
        with LiveMemory() as memory:
            extractor(image)
    return memory.peak // image.element_size()


class LiveMemory(TorchDispatchMode):
    """Context manager that counts the bytes of the tensors that operations create and that have not been freed.

    A storage that several views share is counted once.

    Attributes:
        now: Current number of bytes.
        peak: Largest number of bytes so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._sizes: dict[int, int] = {}

    def count(self, tensors: Any) -> None:
        """Add existing tensors, in any nesting of lists and dicts."""
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
