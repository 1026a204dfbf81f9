import pytest
import torch
from torch.nn import functional as F

from nnunet_dg.tinymig import FeatureReprogramming
from nnunet_dg.tinymig.adapters import ConvolutionalAdapter, TokenAdapter
from nnunet_dg.tinymig.decoder import TeacherDecoder


@pytest.mark.parametrize("spatial", [(9, 7), (6, 5, 4)])
def test_reprogramming_gives_the_students_width_and_grid(spatial):
    module = FeatureReprogramming(12, 5, spatial)
    x = torch.randn(2, 12, *[4] * len(spatial), requires_grad=True)
    result = module(x)
    assert result.shape == (2, 5, *spatial)
    result.square().mean().backward()
    assert x.grad.abs().max() > 0
    assert all(parameter.grad is not None for parameter in module.parameters())


@pytest.mark.parametrize("given", [(3, 2), (9, 8)])
def test_reprogramming_is_residual_blocks_the_first_on_the_coarser_grid(given):
    torch.manual_seed(0)
    spatial = (6, 4)
    module, x = FeatureReprogramming(3, 5, spatial), torch.randn(2, 3, *given)

    def block(part, x):
        first, norm, _, second, last_norm = part.body
        y = F.conv2d(x, first.weight, first.bias, padding=1)
        y = F.leaky_relu(F.instance_norm(y, weight=norm.weight, bias=norm.bias), 0.01)
        y = F.conv2d(y, second.weight, second.bias, padding=1)
        y = F.instance_norm(y, weight=last_norm.weight, bias=last_norm.bias)
        skip = x if x.shape[1] == 5 else F.conv2d(x, part.skip.weight, part.skip.bias)
        return F.leaky_relu(y + skip, 0.01)

    resized = lambda x: F.interpolate(x, spatial, mode="bilinear")  # noqa: E731
    first, second = module.blocks
    expected = block(second, resized(block(first, x)) if given == (3, 2) else block(first, resized(x)))
    torch.testing.assert_close(module(x), expected)


def test_the_teachers_decoder_adds_what_it_upsamples():
    torch.manual_seed(0)
    module = TeacherDecoder(2, [4, 8, 16], 3)
    features = [torch.randn(2, w, 8 // s, 12 // s) for w, s in ((4, 1), (8, 2), (16, 4))]
    a, b, c = (F.conv2d(f, m.weight, m.bias) for f, m in zip(features, module.lateral, strict=True))
    b = b + F.interpolate(c, (4, 6), mode="bilinear")
    x = F.conv2d(a + F.interpolate(b, (8, 12), mode="bilinear"), module.smooth.weight, module.smooth.bias, padding=1)
    x = F.conv2d(F.leaky_relu(x, 0.01), module.segmentation.weight, module.segmentation.bias)
    torch.testing.assert_close(module(features), x)


@pytest.mark.parametrize(
    ("adapter", "x"),
    [
        (TokenAdapter(8, 2), torch.randn(2, 5, 8)),
        (ConvolutionalAdapter(2, 8, 2), torch.randn(2, 8, 4, 4)),
        (ConvolutionalAdapter(3, 8, 2), torch.randn(2, 8, 4, 4, 4)),
    ],
)
def test_adapters_begin_as_the_identity_and_learn(adapter, x):
    assert torch.equal(adapter(x), x)
    optimizer = torch.optim.SGD(adapter.parameters(), 0.1)
    for _ in range(2):  # the first step moves the last layer alone
        adapter(x).square().mean().backward()
        optimizer.step()
    assert not torch.equal(adapter(x), x)
    assert all(parameter.grad.abs().max() > 0 for parameter in adapter.parameters())


@pytest.mark.parametrize("grids", [[(16, 12), (8, 6), (4, 3)], [(8, 8, 6), (4, 4, 3)]])
def test_the_teachers_decoder_gives_logits_on_the_finest_grid(grids):
    widths = [4, 8, 16][: len(grids)]
    features = [torch.randn(2, w, *grid) for w, grid in zip(widths, grids, strict=True)]
    module = TeacherDecoder(len(grids[0]), widths, 3)
    logits = module(features)
    assert logits.shape == (2, 3, *grids[0])
    logits.square().mean().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())
