"""The modules around the teacher: reprogramming, resizing, decoder and adapters."""

import pytest
import torch
from torch.nn import functional as F

from nnunet_dg.tinymig import FeatureReprogramming
from nnunet_dg.tinymig.adapters import ConvolutionalAdapter, TokenAdapter, hidden_width
from nnunet_dg.tinymig.decoder import TeacherDecoder
from nnunet_dg.tinymig.reprogramming import resize


@pytest.mark.parametrize("spatial", [(9, 7), (6, 5, 4)])
def test_reprogramming_gives_the_students_width_and_grid(spatial):
    module = FeatureReprogramming(12, 5, spatial)
    x = torch.randn(2, 12, *[4] * len(spatial), requires_grad=True)
    result = module(x)
    assert result.shape == (2, 5, *spatial)
    result.square().mean().backward()
    assert x.grad.abs().max() > 0
    assert all(parameter.grad is not None for parameter in module.parameters())


@pytest.mark.parametrize("grid", [(3, 2), (9, 8)])
def test_reprogramming_consists_of_residual_blocks_and_the_first_uses_the_coarser_grid(grid):
    torch.manual_seed(0)
    spatial = (6, 4)
    module, x = FeatureReprogramming(3, 5, spatial), torch.randn(2, 3, *grid)

    def block(part, x):
        first, norm, _, second, last_norm = part.body
        y = F.conv2d(x, first.weight, first.bias, padding=1)
        y = F.leaky_relu(F.instance_norm(y, weight=norm.weight, bias=norm.bias), 0.01)
        y = F.conv2d(y, second.weight, second.bias, padding=1)
        y = F.instance_norm(y, weight=last_norm.weight, bias=last_norm.bias)
        skip = x if x.shape[1] == 5 else F.conv2d(x, part.skip.weight, part.skip.bias)
        return F.leaky_relu(y + skip, 0.01)

    first, second = module.blocks
    if grid == (3, 2):
        expected = block(second, F.interpolate(block(first, x), spatial, mode="bilinear"))
    else:
        expected = block(second, block(first, F.adaptive_avg_pool2d(x, spatial)))
    torch.testing.assert_close(module(x), expected)


@pytest.mark.parametrize(("grid", "shape"), [((8, 12), (8, 12)), ((8, 3), (4, 12)), ((6, 5, 4), (3, 5, 8))])
def test_resizing_averages_along_axes_that_shrink_and_interpolates_along_axes_that_grow(grid, shape):
    x = torch.randn(2, 3, *grid)
    expected = x
    for axis, (n, m) in enumerate(zip(grid, shape, strict=True), 2):
        if m < n:
            expected = expected.unflatten(axis, (m, n // m)).mean(axis + 1)
    mode = "bilinear" if len(shape) == 2 else "trilinear"
    torch.testing.assert_close(resize(x, shape), F.interpolate(expected, shape, mode=mode), rtol=1e-4, atol=1e-5)
    assert resize(x, grid) is x


def test_the_teachers_decoder_adds_upsampled_features_and_segments_at_half_resolution():
    torch.manual_seed(0)
    module = TeacherDecoder([4, 8, 16], 3, (32, 46))
    features = [torch.randn(2, w, 8 // s, 12 // s) for w, s in ((4, 1), (8, 2), (16, 4))]
    a, b, c = (F.conv2d(f, m.weight, m.bias) for f, m in zip(features, module.lateral, strict=True))
    b = b + F.interpolate(c, (4, 6), mode="bilinear")
    x = F.interpolate(a + F.interpolate(b, (8, 12), mode="bilinear"), (16, 23), mode="bilinear")
    x = F.leaky_relu(F.conv2d(x, module.smooth.weight, module.smooth.bias, padding=1), 0.01)
    x = F.conv2d(x, module.segmentation.weight, module.segmentation.bias)
    torch.testing.assert_close(module(features), F.interpolate(x, (32, 46), mode="bilinear"))


@pytest.mark.parametrize(("width", "chosen", "hidden"), [(768, None, 192), (16, None, 4), (6, None, 4), (16, 64, 64)])
def test_adapters_are_a_quarter_as_wide_as_their_block_and_at_least_four(width, chosen, hidden):
    assert hidden_width(width, chosen) == hidden


@pytest.mark.parametrize(
    ("adapter", "x", "shape"),
    [
        (TokenAdapter(8, 2), torch.randn(2, 5, 8), (8,)),
        (ConvolutionalAdapter(2, 8, 8, 2), torch.randn(2, 8, 4, 4), (4, 4)),
        (ConvolutionalAdapter(3, 8, 6, 2), torch.randn(2, 8, 4, 4, 4), (2, 2, 2)),
    ],
)
def test_adapters_are_initialized_to_zero_and_learn(adapter, x, shape):
    assert adapter(x, shape).abs().max() == 0
    optimizer = torch.optim.SGD(adapter.parameters(), 0.1)
    for _ in range(2):  # the first step moves the last layer only
        (adapter(x, shape) + 1).square().mean().backward()
        optimizer.step()
    assert adapter(x, shape).abs().max() > 0
    assert all(parameter.grad.abs().max() > 0 for parameter in adapter.parameters())


def test_adapters_equal_their_formula():
    torch.manual_seed(0)
    tokens, x = TokenAdapter(8, 2), torch.randn(2, 5, 8)
    maps, y = ConvolutionalAdapter(2, 6, 4, 3), torch.randn(2, 6, 8, 4)
    for module in (tokens, maps):
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter)
    down, _, up = tokens.body
    hidden = F.gelu(x @ down.weight.T + down.bias)
    torch.testing.assert_close(tokens(x), 0.5 * (hidden @ up.weight.T + up.bias))
    norm, down, _, up = maps.body
    pooled = F.instance_norm(F.adaptive_avg_pool2d(y, (4, 2)), weight=norm.weight, bias=norm.bias)
    hidden = F.gelu(F.conv2d(pooled, down.weight, down.bias))
    torch.testing.assert_close(maps(y, (4, 2)), 0.5 * F.conv2d(hidden, up.weight, up.bias))


@pytest.mark.parametrize("grids", [[(16, 12), (8, 6), (4, 3)], [(8, 8, 6), (4, 4, 3)]])
def test_the_teachers_decoder_gives_logits_for_the_patch_and_learns(grids):
    widths = [4, 8, 16][: len(grids)]
    features = [torch.randn(2, w, *grid) for w, grid in zip(widths, grids, strict=True)]
    module = TeacherDecoder(widths, 3, grids[0])
    logits = module(features)
    assert logits.shape == (2, 3, *grids[0])
    logits.square().mean().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())
