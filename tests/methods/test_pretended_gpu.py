"""The pretended GPU of the tests finds what makes the host wait for a real one."""

import pytest
import torch
from pretended_gpu import GPU, pretended_gpu
from torch.nn import functional as F

from nnunet_dg.tensors import to_device

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a real GPU")

WAITING = {
    "item": lambda x: x.sum().item(),
    "float": lambda x: float(x[0]),
    "decision": lambda x: "yes" if (x > 1).any() else "no",
    "tolist": lambda x: x.tolist(),
    "cpu": lambda x: x.cpu(),
    "numpy": lambda x: x.cpu().numpy(),
    "not blocking to the CPU": lambda x: x.to("cpu", non_blocking=True),
    "boolean index": lambda x: x[x > 1],
    "assigned boolean index": lambda x: x.__setitem__(x > 1, x[:1]),
    "nonzero": lambda x: (x > 1).nonzero(),
    "masked_select": lambda x: x.masked_select(x > 1),
    "unique": lambda x: x.unique(),
    "bincount": lambda x: x.long().bincount(minlength=9),
    "repeat_interleave": lambda x: torch.repeat_interleave(x.long()),
    "a list as index": lambda x: x[[1, 0]],
    "an index of the CPU": lambda x: x[torch.tensor([1, 0])],
    "a tensor of the CPU": lambda x: x + torch.tensor([1.0, 2.0, 3.0]).to(GPU),
    "not blocking, not pinned": lambda x: x + torch.ones(3).to(GPU, non_blocking=True),
    "pinned, blocking": lambda x: x + torch.ones(3).pin_memory().to(GPU),
    "a new tensor": lambda x: x + torch.tensor([1.0, 2.0, 3.0], device=GPU),
    "a new tensor like another": lambda x: x.new_tensor([1.0, 2.0]),
    "copied into": lambda x: x.copy_(torch.ones(3)),
}
NOT_WAITING = {
    "to_device": lambda x: x + to_device(torch.tensor([1.0, 2.0, 3.0]), GPU),
    "to_device, on the device": lambda x: to_device(x, GPU),
    "index": lambda x: x[x.argsort()],
    "masked_fill": lambda x: x.masked_fill(x > 1, 0),
    "where": lambda x: torch.where(x > 1, x, 0),
    "a number of the CPU": lambda x: x * torch.tensor(2.0),
    "random numbers": lambda x: x + torch.rand(3, device=GPU),
    "dtype": lambda x: x.double().to(GPU),
    "gradient": lambda x: torch.autograd.grad(F.relu(x.requires_grad_()).sum(), x),
    "the CPU's own": lambda x: torch.rand(3)[torch.rand(3) > 0.5].sum().item(),
}


def waits(call):
    with pretended_gpu() as gpu:
        x = to_device(torch.tensor([0.0, 1.0, 2.0]), GPU)
        assert not gpu.waits
        call(x)
        return dict(gpu.waits)


@pytest.mark.parametrize("name", WAITING)
def test_an_operation_that_waits_is_counted_once_at_its_place(name):
    ((place, number),) = waits(WAITING[name]).items()
    assert number == 1
    assert place.startswith("methods/test_pretended_gpu.py:")


@pytest.mark.parametrize("name", NOT_WAITING)
def test_other_operations_are_not_counted(name):
    assert waits(NOT_WAITING[name]) == {}


def test_values_are_those_of_the_cpu():
    with pretended_gpu():
        x = torch.arange(6.0, device=GPU).reshape(2, 3)
        x[0].add_(1)
        assert x.device == GPU
        assert x.tolist() == [[1, 2, 3], [3, 4, 5]]
