"""Batch norm of groups of samples."""

import pytest
import torch

from nnunet_dg.group_norm import batch_norm_of_groups

EPS = 1e-5


def share_of(groups):
    same = (groups[:, None] == groups).double()
    return same / same.sum(1, keepdim=True)


@pytest.mark.parametrize("groups", [[0, 1], [0, 0, 1, 0], [0, 0]])
def test_the_gradient_is_that_of_finite_differences(groups):
    torch.manual_seed(0)
    groups = torch.tensor(groups)
    x = (3 * torch.randn(len(groups), 2, 3, 2) + 5).double().requires_grad_()
    weight, bias = (torch.randn(2, 2, dtype=torch.double, requires_grad=True) for _ in range(2))

    def normalized(x, weight, bias):
        return batch_norm_of_groups(x, weight[groups], bias[groups], share_of(groups), EPS)[0]

    assert torch.autograd.gradcheck(normalized, (x, weight, bias))


def test_mean_and_variance_are_those_of_each_samples_group():
    torch.manual_seed(0)
    x, groups = torch.randn(4, 3, 5, 6, 2) + 4, torch.tensor([1, 0, 1, 1])
    weight, bias = torch.ones(4, 3), torch.zeros(4, 3)
    _, mean, variance = batch_norm_of_groups(x, weight, bias, share_of(groups).float(), EPS)
    for sample in range(4):
        group = x[groups == groups[sample]]
        torch.testing.assert_close(mean[sample], group.mean((0, 2, 3, 4)))
        torch.testing.assert_close(variance[sample], group.var((0, 2, 3, 4), correction=0))


def test_channels_far_from_zero_keep_their_digits():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    near, far = (
        batch_norm_of_groups(x + shift, torch.ones(2, 3), torch.zeros(2, 3), torch.eye(2), EPS)[0]
        for shift in (0.0, 1024.0)
    )
    torch.testing.assert_close(far, near, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_compiled_it_gives_the_same(dtype):
    torch.manual_seed(0)
    values = torch.randn(3, 4, 6, 6, 6) + 2
    share, weight, bias = share_of(torch.tensor([0, 1, 0])).float(), torch.randn(3, 4), torch.randn(3, 4)
    incoming = torch.randn(values.shape, dtype=dtype)

    def step(norm):
        inputs = [values.to(dtype).requires_grad_(), weight.clone().requires_grad_(), bias.clone().requires_grad_()]
        y = norm(*inputs)
        return y, *torch.autograd.grad(y, inputs, incoming)

    def norm(x, weight, bias):
        return batch_norm_of_groups(x, weight, bias, share, EPS)[0]

    torch._dynamo.reset()
    tolerance = 1e-4 if dtype == torch.float32 else 1e-2
    for plain, compiled in zip(step(norm), step(torch.compile(norm, fullgraph=True)), strict=True):
        assert compiled.dtype == plain.dtype
        torch.testing.assert_close(compiled, plain, atol=tolerance, rtol=tolerance)
