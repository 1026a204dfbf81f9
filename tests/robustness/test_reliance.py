import torch
from torch import nn

from nnunet_dg.dropgen import DropGenNetwork, DropGenSettings
from nnunet_dg.extractors import build_extractor
from nnunet_dg.robustness.reliance import zeroed


def test_zeroing_removes_the_image_or_the_features_and_is_undone():
    settings = DropGenSettings(extractor="mind")
    network = DropGenNetwork(nn.Identity(), build_extractor("mind"), nn.Identity(), 1, settings).eval()
    x = torch.cat([torch.randn(1, 1, 8, 8, 8), torch.ones(1, 2, 8, 8, 8)], 1)  # an image and a previous stage
    whole = network(x)
    image, features, rest = whole[:, :1], whole[:, 1:-2], whole[:, -2:]
    assert features.shape[1] == 12
    for part, expected in (
        ("nothing", whole),
        ("image", torch.cat([0 * image, features, rest], 1)),
        ("features", torch.cat([image, 0 * features, rest], 1)),
    ):
        with zeroed(network, part):
            assert torch.equal(network(x), expected)
    assert torch.equal(network(x), whole)
