import pytest
import torch

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
