"""Batch norm of groups of samples."""

from itertools import product

import pytest
import torch

from nnunet_dg.group_norm import batch_norm_of_groups
from nnunet_dg.tensors import modulate

EPS = 1e-5


@pytest.mark.parametrize("groups", [[0, 1], [0, 0, 1, 0], [0, 0]])
def test_the_gradient_is_that_of_finite_differences(groups):
    torch.manual_seed(0)
    groups = torch.tensor(groups)
    x = (3 * torch.randn(len(groups), 2, 3, 2) + 5).double().requires_grad_()
    weight, bias = (torch.randn(2, 2, dtype=torch.double, requires_grad=True) for _ in range(2))

    def normalized(x, weight, bias):
        return batch_norm_of_groups(x, weight[groups], bias[groups], groups, EPS)[0]

    assert torch.autograd.gradcheck(normalized, (x, weight, bias))


def test_mean_and_variance_are_those_of_each_samples_group():
    torch.manual_seed(0)
    x, groups = torch.randn(4, 3, 5, 6, 2) + 4, torch.tensor([1, 0, 1, 1])
    weight, bias = torch.ones(4, 3), torch.zeros(4, 3)
    _, mean, variance = batch_norm_of_groups(x, weight.requires_grad_(), bias, groups, EPS)
    assert not mean.requires_grad
    assert not variance.requires_grad
    for sample in range(4):
        group = x[groups == groups[sample]]
        torch.testing.assert_close(mean[sample], group.mean((0, 2, 3, 4)))
        torch.testing.assert_close(variance[sample], group.var((0, 2, 3, 4), correction=0))


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("formats", list(product((torch.contiguous_format, torch.channels_last_3d), repeat=2)))
@pytest.mark.parametrize("norm", ["groups", "modulate"])
def test_any_memory_format_of_the_feature_and_its_gradient_gives_the_same(norm, formats, batch):
    torch.manual_seed(0)
    x, incoming = torch.randn(2, batch, 4, 3, 5, 6).double()
    weight, bias = torch.rand(2, batch, 4).double()

    def step(x, incoming):
        inputs = [x.requires_grad_(), weight.clone().requires_grad_(), bias.clone().requires_grad_()]
        y = (
            modulate(x, *inputs[:0:-1])
            if norm == "modulate"
            else batch_norm_of_groups(*inputs, torch.arange(batch), EPS)[0]
        )
        return torch.autograd.grad(y, inputs, incoming)

    expected = step(x.clone(), incoming)
    changed = step(*(tensor.clone(memory_format=layout) for tensor, layout in zip((x, incoming), formats, strict=True)))
    for ours, theirs in zip(changed, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_second_derivatives_are_refused_instead_of_being_wrong():
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    y = batch_norm_of_groups(x, torch.ones(2, 3), torch.zeros(2, 3), torch.tensor([0, 1]), EPS)[0]
    (gradient,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_channels_far_from_zero_keep_their_digits():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    near, far = (
        batch_norm_of_groups(x + shift, torch.ones(2, 3), torch.zeros(2, 3), torch.arange(2), EPS)[0]
        for shift in (0.0, 1024.0)
    )
    torch.testing.assert_close(far, near, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_compiled_it_gives_the_same(dtype):
    torch.manual_seed(0)
    values = torch.randn(3, 4, 6, 6, 6) + 2
    groups, weight, bias = torch.tensor([0, 1, 0]), torch.randn(3, 4), torch.randn(3, 4)
    incoming = torch.randn(values.shape, dtype=dtype)

    def step(norm):
        inputs = [values.to(dtype).requires_grad_(), weight.clone().requires_grad_(), bias.clone().requires_grad_()]
        y = norm(*inputs)
        return y, *torch.autograd.grad(y, inputs, incoming)

    def norm(x, weight, bias):
        return batch_norm_of_groups(x, weight, bias, groups, EPS)[0]

    torch._dynamo.reset()
    tolerance = 1e-4 if dtype == torch.float32 else 1e-2
    for plain, compiled in zip(step(norm), step(torch.compile(norm, fullgraph=True)), strict=True):
        assert compiled.dtype == plain.dtype
        torch.testing.assert_close(compiled, plain, atol=tolerance, rtol=tolerance)
