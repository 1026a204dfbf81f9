"""How much an extractor holds in memory while it computes, without computing anything."""

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
        with _Alive() as alive:
            extractor(image)
    return alive.peak // image.element_size()


class _Alive(TorchDispatchMode):
    """Adds up the bytes of storages that operations make, and takes them off when they are freed."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.sizes: dict[int, int] = {}

    def __torch_dispatch__(self, operation: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operation(*args, **kwargs or {})
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self.sizes:
            self.sizes[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._free, key)

    def _free(self, key: int) -> None:
        self.now -= self.sizes.pop(key)
