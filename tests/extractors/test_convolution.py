"""The convolution of extractors agrees with PyTorch's, and single samples on CPUs take oneDNN's."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from nnunet_dg.extractors import build_extractor
from nnunet_dg.extractors.anatomix import Anatomix
from nnunet_dg.extractors.convolution import convolved

PLAIN = {2: F.conv2d, 3: F.conv3d}


def operands(dims, batch=1, dtype=torch.float32):
    torch.manual_seed(0)
    x = torch.randn(batch, 5, *[9, 7, 6][:dims], dtype=dtype)
    return x, torch.randn(4, 5, *[3] * dims, dtype=dtype), torch.randn(4, dtype=dtype)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("with_bias", [True, False])
def test_agrees_with_pytorch_in_float64(dims, batch, with_bias):
    x, weight, bias = operands(dims, batch)
    bias = bias if with_bias else None
    with torch.no_grad():
        result = convolved(x, weight, bias)
        expected = PLAIN[dims](x.double(), weight.double(), None if bias is None else bias.double())
    torch.testing.assert_close(result.double(), expected, atol=2e-5, rtol=0)


def test_memory_formats_agree():
    x, weight, bias = operands(3)
    with torch.no_grad():
        last = convolved(x.to(memory_format=torch.channels_last_3d), weight, bias)
        torch.testing.assert_close(last, convolved(x, weight, bias), atol=2e-5, rtol=0)


def test_float64_stays_float64_and_autocast_narrows():
    x, weight, bias = operands(3, dtype=torch.float64)
    with torch.no_grad():
        assert convolved(x, weight, bias).dtype == torch.float64
        with torch.autocast("cpu", torch.bfloat16):
            assert convolved(x.float(), weight.float(), bias.float()).dtype == torch.bfloat16


def test_gradients_are_those_of_pytorch():
    x, weight, bias = (tensor.requires_grad_() for tensor in operands(3))
    own = torch.autograd.grad(convolved(x, weight, bias).square().sum(), (x, weight, bias))
    expected = torch.autograd.grad(F.conv3d(x, weight, bias).square().sum(), (x, weight, bias))
    torch.testing.assert_close(own, expected)


def test_fake_tensors_have_the_right_shape():
    with FakeTensorMode(), torch.no_grad():
        assert convolved(torch.empty(1, 2, 8, 8, 8), torch.empty(3, 2, 3, 3, 3)).shape == (1, 3, 6, 6, 6)


@pytest.fixture(params=["synthetic", "anatomix"])
def extractor(request, anatomix_weights):
    if request.param == "synthetic":
        return build_extractor("synthetic", spatial_dims=3)
    extractor = Anatomix()
    extractor.load_published(anatomix_weights)
    return extractor


def test_extractors_do_not_take_the_slow_convolution_for_a_single_sample(extractor):
    x = torch.rand(1, 1, 32, 32, 32)
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        extractor(x)
    operations = {event.name for event in profiled.events()}
    assert "aten::mkldnn_convolution" in operations
    assert not any("slow_conv3d" in operation for operation in operations)


def test_a_sample_has_the_same_features_alone_as_in_a_batch(extractor):
    x = torch.rand(2, 1, 24, 20, 32)
    torch.testing.assert_close(extractor(x[:1]), extractor(x)[:1], atol=5e-5, rtol=0)
