import pytest
import torch
from torch import nn

from nnunet_dg.dropgen import DropGenNetwork, DropGenSettings
from nnunet_dg.extractors import build_extractor
from nnunet_dg.robustness.weight_noise import trained_tensors, with_noise


def test_noise_is_relative_seeded_and_only_on_the_named_tensors():
    weights = {"a": torch.full((100, 100), 3.0), "b": torch.randn(50) * 1e-3, "other": torch.ones(5)}
    weights["alias"] = weights["a"]
    tensors = [["a", "alias"], ["b"]]
    noisy = with_noise(weights, tensors, 0.2, 7)
    assert torch.equal(noisy["other"], weights["other"])
    assert torch.equal(noisy["a"], noisy["alias"])
    assert float((noisy["a"] - 3).std()) == pytest.approx(0.6, rel=0.05)
    expected = 0.2 * float(weights["b"].square().mean().sqrt())
    assert float((noisy["b"] - weights["b"]).std()) == pytest.approx(expected, rel=0.4)
    assert torch.equal(noisy["a"], with_noise(weights, tensors, 0.2, 7)["a"])
    assert not torch.equal(noisy["a"], with_noise(weights, tensors, 0.2, 8)["a"])
    assert torch.allclose(with_noise(weights, tensors, 0.4, 7)["a"] - 3, 2 * (noisy["a"] - 3), atol=1e-5)
    assert torch.equal(weights["a"], torch.full((100, 100), 3.0))


class Shared(nn.Module):
    """Like nnU-Net's U-Nets, with one layer under several names in the state dict."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv3d(13, 4, 1), nn.InstanceNorm3d(4, affine=True))
        self.decoder = nn.ModuleDict({"encoder": self.encoder, "head": nn.Conv3d(4, 2, 1)})


@pytest.mark.parametrize("wrapped", [False, True])
def test_trained_weights_get_noise_and_the_extractor_does_not(wrapped):
    network: nn.Module = Shared()
    if wrapped:
        settings = DropGenSettings(extractor="mind")
        network = DropGenNetwork(network, build_extractor("mind"), nn.Identity(), 1, settings)
        network.extractor.register_parameter("frozen", nn.Parameter(torch.ones(3), requires_grad=False))
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    for p in network.parameters():
        assert p.abs().sum() > 0 or p.ndim == 1
    network.load_state_dict(with_noise(network.state_dict(), trained_tensors(network), 0.1, 0))
    changed = {name for name, p in network.named_parameters() if not torch.equal(p, before[name])}
    zero = {name for name, p in before.items() if not p.any()}  # relative noise on zeros is zero
    assert changed == {name for name in before if "frozen" not in name} - zero
    assert len(changed) >= 5
