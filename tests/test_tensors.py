"""Operations on tensors that several methods share."""

import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from nnunet_dg.mechanisms.domain_norm import Branches, BranchNorm
from nnunet_dg.sgcg.restoration import DomainBatchNorm
from nnunet_dg.tensors import (
    channels_last,
    instance_norm,
    is_channels_last,
    modulate,
    moments,
    per_channel,
    sortable,
    statistics,
    symmetric_kl,
)


def test_value_computed_by_hand():
    a, b = torch.tensor([[0.0, 0.0]]).reshape(1, 2, 1), torch.tensor([[math.log(3), 0.0]]).reshape(1, 2, 1)
    # p = (1/2, 1/2), q = (3/4, 1/4): sum of (p - q) (log p - log q)
    assert symmetric_kl(a, b).item() == pytest.approx(-0.25 * math.log(2 / 3) + 0.25 * math.log(2))


@pytest.mark.parametrize("spatial", [(3, 4), (2, 3, 4)])
@pytest.mark.parametrize("regions", [False, True])
def test_equals_a_loop_over_voxels(spatial, regions):
    torch.manual_seed(0)
    a, b = torch.randn(2, 3, *spatial), torch.randn(2, 3, *spatial)
    voxels = zip(a.movedim(1, -1).reshape(-1, 3), b.movedim(1, -1).reshape(-1, 3), strict=True)
    total = 0.0
    for u, v in voxels:
        if regions:
            pairs = [([p, 1 - p], [q, 1 - q]) for p, q in zip(u.sigmoid().tolist(), v.sigmoid().tolist(), strict=True)]
        else:
            pairs = [(u.softmax(0).tolist(), v.softmax(0).tolist())]
        for p, q in pairs:
            total += sum(x * math.log(x / y) + y * math.log(y / x) for x, y in zip(p, q, strict=True))
    assert symmetric_kl(a, b, regions).item() == pytest.approx(total / (a.numel() / 3), rel=1e-5)


@pytest.mark.parametrize("regions", [False, True])
def test_is_symmetric_and_zero_only_for_equal_predictions(regions):
    torch.manual_seed(0)
    a, b = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    assert symmetric_kl(a, a, regions) == 0
    torch.testing.assert_close(symmetric_kl(a, b, regions), symmetric_kl(b, a, regions))
    assert symmetric_kl(a, b, regions) > 0


@pytest.mark.parametrize("regions", [False, True])
def test_gradient_flows_into_both_predictions_and_is_finite_for_confident_ones(regions):
    a, b = (torch.randn(1, 3, 2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda a, b: symmetric_kl(a, b, regions), (a, b))
    confident = torch.tensor([[[100.0], [-100.0]]], requires_grad=True)
    symmetric_kl(confident, -confident.detach(), regions).backward()
    assert confident.grad.isfinite().all()


def test_is_computed_in_float32_under_autocast():
    a, b = torch.randn(1, 3, 8), torch.randn(1, 3, 8)
    with torch.autocast("cpu", torch.bfloat16):
        inside = symmetric_kl(a, b)
    torch.testing.assert_close(inside, symmetric_kl(a, b))


def test_sorted_keys_have_the_order_of_groups_then_of_values():
    torch.manual_seed(0)
    values = torch.cat([torch.rand(200), torch.tensor([0.0, -0.0, 1e-30, 3e30])])
    group = torch.randint(200, (204,))
    expected = sorted(range(204), key=lambda i: (group[i].item(), values[i].item()))
    keys, order = sortable(values, group).sort(stable=True)
    assert order.tolist() == expected
    assert torch.equal(keys >> 32, group[order])


@pytest.mark.parametrize("channels", [1, 3])
def test_the_memory_format_changes_neither_values_nor_their_instance_norm(channels):
    torch.manual_seed(0)
    x = torch.randn(2, channels, 6, 5, 4) + 20
    last = channels_last(x)
    assert last.stride() == (120 * channels, 1, 20 * channels, 4 * channels, channels)
    assert torch.equal(last, x)
    assert is_channels_last(last) == (channels > 1)
    torch.testing.assert_close(instance_norm(last), instance_norm(x), rtol=0, atol=1e-5)
    assert is_channels_last(instance_norm(last)) == (channels > 1)


def test_instance_norm_of_a_large_image_has_seven_digits_in_each_memory_format():
    torch.manual_seed(0)
    x = torch.randn(1, 4, 80, 80, 80) + 20
    expected = (x.double() - x.double().mean((2, 3, 4), keepdim=True)) / (
        x.double().var((2, 3, 4), correction=0, keepdim=True) + 1e-5
    ).sqrt()
    for image in (x, channels_last(x)):
        assert (instance_norm(image) - expected).abs().max() < 5e-6


def test_modulation_by_batch_norm_equals_its_formula_with_all_gradients():
    torch.manual_seed(0)
    inputs = [torch.rand(2, 3, *more, dtype=torch.double, requires_grad=True) for more in ((4, 5, 6), (), ())]
    feature, mean, std = inputs
    own_mean, own_std, new_mean, new_std = (per_channel(s, feature) for s in (*statistics(feature), mean, std))
    expected = new_std * (feature - own_mean) / own_std + new_mean
    actual = modulate(*inputs)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)
    weights = torch.randn_like(expected)
    for gradients in zip(*(torch.autograd.grad(x, inputs, weights) for x in (actual, expected)), strict=True):
        torch.testing.assert_close(*gradients, rtol=1e-7, atol=1e-9)


def domain_batch_norm():
    norm, domains = DomainBatchNorm(4, num_domains=2), torch.tensor([0, 1])
    return lambda x: norm(x, domains)


def branch_norm():
    branches = Branches()
    branches.of_sample = torch.tensor([0, 1])
    return BranchNorm(4, branches)


@pytest.fixture(params=["cpu", "cuda"])
def autocast(request):
    """Autocast in float16 on a pretended device. For a GPU that does not exist, PyTorch refuses the usual context."""
    device = request.param
    before = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    torch.set_autocast_enabled(device, True)
    torch.set_autocast_dtype(device, torch.float16)
    with FakeTensorMode(), torch.device(device):
        yield
    torch.set_autocast_enabled(device, before[0])
    torch.set_autocast_dtype(device, before[1])
    torch.clear_autocast_cache()


@pytest.mark.parametrize("norm", [domain_batch_norm, branch_norm])
@pytest.mark.usefixtures("autocast")
def test_norms_of_groups_of_samples_save_one_tensor_of_the_features_size_in_its_dtype(norm):
    saved, x = [], torch.randn(2, 4, 8, 8, dtype=torch.float16, requires_grad=True)

    def save(tensor):
        if tensor.numel() >= x.numel() and not any(tensor is earlier for earlier in saved):
            saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        norm()(x)
    assert [tensor.dtype for tensor in saved] == [torch.float16]


@pytest.mark.parametrize("offset", [0, 40, 1000])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_moments_equal_those_in_float64_also_far_from_zero(dtype, offset):
    x = (torch.randn(2, 3, 6, 5, 4, dtype=torch.float64) + offset).to(dtype)
    centered, rough, mean, variance = moments(x)
    assert centered.dtype == rough.dtype == dtype
    assert mean.dtype == variance.dtype == torch.promote_types(dtype, torch.float32)
    expected = torch.var_mean(x.double(), (2, 3, 4), correction=0)
    tolerance = {torch.float16: 1e-3, torch.float32: 1e-6, torch.float64: 1e-12}[dtype]
    torch.testing.assert_close((variance.double(), mean.double()), expected, rtol=tolerance, atol=tolerance)


def test_variance_of_a_large_volume_is_that_of_float64():
    x = torch.randn(1, 2, 80, 80, 80)
    expected = torch.var_mean(x.double(), (2, 3, 4), correction=0)[0]
    torch.testing.assert_close(moments(x)[3].double(), expected, rtol=1e-6, atol=0)
