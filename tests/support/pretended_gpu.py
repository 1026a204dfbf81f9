"""A pretended GPU: tensors that are on the CPU but say that they are on a GPU, to count what waits for it.

Values are computed, so that a step takes the same decisions as on a GPU. For PyTorch's own code below Python, which
cannot find a driver, the tensors are on the device "meta".
"""

import sys
from collections import Counter
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

GPU = torch.device("cuda", 0)
aten = torch.ops.aten
WAITING = {  # the result, or its shape, depends on values that are on the device
    aten._local_scalar_dense, aten.is_nonzero, aten.equal, aten.nonzero, aten.argwhere, aten.masked_select,
    aten._unique, aten._unique2, aten.unique_dim, aten.unique_consecutive, aten.unique_dim_consecutive, aten.bincount,
}  # fmt: skip
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_, aten._unsafe_index}


class OnGPU(torch.Tensor):
    """A tensor on the pretended GPU, with the values of ``near``."""

    @staticmethod
    def __new__(cls, near):
        shape, strides, offset = near.shape, near.stride(), near.storage_offset()
        return torch.Tensor._make_wrapper_subclass(
            cls, shape, strides=strides, storage_offset=offset, dtype=near.dtype, device="meta"
        )

    def __init__(self, near):
        self.near = near

    @property
    def device(self):
        return GPU

    @property
    def is_cuda(self):
        return True

    def tolist(self):
        return self.cpu().tolist()

    def new_tensor(self, data, dtype=None):
        return torch.tensor(data, dtype=dtype or self.dtype, device=GPU)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise RuntimeError(f"{func} is called outside the pretended GPU")


class PretendedGPU(TorchDispatchMode):
    """Runs operations of tensors on the pretended GPU, and counts those that make the host wait.

    Attributes:
        waits: Number of waits at each place, ``"folder/file:line operation"``.
    """

    def __init__(self):
        super().__init__()
        self.waits = Counter()
        self.pinned = {}  # tensors by their id

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, packet = kwargs or {}, func.overloadpacket
        if packet is aten.is_pinned:
            return id(args[0]) in self.pinned
        if packet is aten._pin_memory:
            result = args[0].clone()
            self.pinned[id(result)] = result
            return result
        if self.makes_wait(packet, args, kwargs):
            self.waits[place(packet)] += 1
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, OnGPU)]
        own = {id(x.near): x for x in tensors}  # operations in place return the same tensor
        near_args, near_kwargs = tree_map(lambda x: x.near if isinstance(x, OnGPU) else x, (args, kwargs))
        if "device" in kwargs:
            near_kwargs["device"] = torch.device("cpu")
        result = func(*near_args, **{key: value for key, value in near_kwargs.items() if key != "pin_memory"})
        if packet is aten.copy_:
            return args[0]
        if not (bool(tensors) if kwargs.get("device") is None else on_gpu(kwargs["device"])):
            return result
        return tree_map(lambda x: own[id(x)] if id(x) in own else as_on_gpu(x), result)

    def makes_wait(self, packet, args, kwargs):
        """Whether the host waits for the device in an operation."""
        if packet in (aten._to_copy, aten.copy_):
            source = args[1] if packet is aten.copy_ else args[0]
            device = args[0].device if packet is aten.copy_ else kwargs.get("device") or source.device
            if on_gpu(device) == isinstance(source, OnGPU):
                return False
            without_waiting = kwargs.get("non_blocking") or (packet is aten.copy_ and args[2:] == (True,))
            return not (on_gpu(device) and without_waiting and id(source) in self.pinned)
        if not (args and isinstance(args[0], OnGPU)):
            return False
        if packet is aten.repeat_interleave:
            return kwargs.get("output_size") is None
        if packet in INDEXING:
            indices = [index for index in args[1] if index is not None]
            return any(not isinstance(i, OnGPU) or i.dtype in (torch.bool, torch.uint8) for i in indices)
        return packet in WAITING


def on_gpu(device):
    return torch.device(device).type in ("cuda", "meta")


def as_on_gpu(x):
    return OnGPU(x) if isinstance(x, torch.Tensor) else x


def place(packet):
    """The innermost place outside PyTorch and this file from which an operation is called."""
    frame = sys._getframe(2)
    while "/torch/" in frame.f_code.co_filename or frame.f_code.co_filename == __file__:
        frame = frame.f_back
    return f"{'/'.join(frame.f_code.co_filename.split('/')[-2:])}:{frame.f_lineno} {packet.__name__}"


@contextmanager
def pretended_gpu():
    """Inside this context, the device "cuda" is the pretended GPU. Not for machines with a GPU."""
    with ExitStack() as stack:
        stack.enter_context(patch.object(torch.cuda, "_lazy_init", lambda: None))
        stack.enter_context(patch.object(torch.cuda, "_initialized", True))
        stack.callback(torch._C._set_only_lift_cpu_tensors, torch._C._only_lift_cpu_tensors())
        torch._C._set_only_lift_cpu_tensors(True)  # so that torch.tensor(..., device="cuda") is seen as a copy
        yield stack.enter_context(PretendedGPU())
