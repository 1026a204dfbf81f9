"""Squeeze-and-excitation over image and features: values of the specification, a naive loop, properties, gradients."""

import pytest
import torch
from torch import nn

from nnunet_dg.dropgen import DropGen, build_dropgen_network
from nnunet_dg.dropgen.fusion import SqueezeExcitation
from nnunet_dg.errors import SettingsError
from nnunet_dg.tensors import instance_norm

Z = torch.tensor([[[1.0, 3], [-2, 2], [0, 4]]])


def example():
    """The layers of example SE-1, with one hidden unit."""
    fusion = SqueezeExcitation(3)
    first, _, second, _ = fusion.gate
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[1.0, 0.5, -1.0]]))
        first.bias.fill_(0.5)
        second.weight.copy_(torch.tensor([[1.0], [-1.0], [0.0]]))
        second.bias.copy_(torch.tensor([0.0, 0.0, 1.0]))
    return fusion


def test_hand_value():
    """Example SE-1: the means are 2, 0 and 2."""
    expected = [[0.622459, 1.867378], [-0.755081, 0.755081], [0, 2.924234]]
    torch.testing.assert_close(example()(Z)[0], torch.tensor(expected), rtol=0, atol=1e-6)


def test_instance_normalized_channels_have_the_same_weights_for_every_image():
    """Example SE-2: all means are 0."""
    fusion = example()
    gates = []
    for image in (Z, torch.randn(1, 3, 50)):
        z = instance_norm(image)
        gates.append((fusion(z) / z).mean(2))
    torch.testing.assert_close(gates[0], gates[1])
    torch.testing.assert_close(gates[0], torch.tensor([[0.5, -0.5, 1.0]]).sigmoid(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("spatial", [(5, 4), (3, 4, 2)])
@pytest.mark.parametrize("squeeze", ["mean", "std"])
def test_agrees_with_a_loop(spatial, squeeze):
    torch.manual_seed(0)
    fusion = SqueezeExcitation(5, squeeze).requires_grad_(False)
    first, second = fusion.gate[0], fusion.gate[2]
    assert first.out_features == 2
    z = torch.randn(3, 5, *spatial)
    out = fusion(z)
    for sample in range(3):
        s = []
        for channel in range(5):
            values = z[sample, channel].flatten().tolist()
            mean = sum(values) / len(values)
            variance = sum((v - mean) ** 2 for v in values) / len(values)
            s.append(mean if squeeze == "mean" else variance**0.5)
        hidden = [max(0.0, float(first.bias[j] + sum(first.weight[j, c] * s[c] for c in range(5)))) for j in range(2)]
        for channel in range(5):
            logit = second.bias[channel] + sum(second.weight[channel, j] * hidden[j] for j in range(2))
            torch.testing.assert_close(out[sample, channel], z[sample, channel] * torch.sigmoid(logit))


def test_gradients_are_right_and_finite_on_constant_input():
    torch.manual_seed(0)
    for squeeze in ("mean", "std"):
        fusion = SqueezeExcitation(4, squeeze).double()
        z = torch.randn(2, 4, 3, 3, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(fusion, z)
        constant = torch.ones(1, 4, 3, 3, dtype=torch.float64, requires_grad=True)
        fusion(constant).sum().backward()
        assert torch.isfinite(constant.grad).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_keeps_the_dtype_and_squeezes_in_float32(dtype):
    """The sum of squares over a patch would overflow in half precision."""
    fusion = SqueezeExcitation(4, "std")
    z = (1000 * torch.randn(1, 4, 24, 24, 24)).to(dtype)
    out = fusion(z)
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), fusion(z.float()), rtol=1e-2, atol=1e-2)


class Recorder(nn.Module):
    """A segmentation network that returns its input."""

    def __init__(self, channels):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, z):
        return z * self.weight


def build(**settings):
    return build_dropgen_network(DropGen(extractor="mind", **settings), Recorder, 3, 1, (8, 8, 8))


def test_the_network_weights_image_and_features_in_training_and_at_inference():
    torch.manual_seed(0)
    net, plain = build(fusion="squeeze-excitation", p=0.0), build(p=0.0)
    x = torch.rand(2, 3, 8, 8, 8)
    for mode in (True, False):
        z = plain.train(mode)(x)
        expected = torch.cat([net.fusion(z[:, :13]), z[:, 13:]], 1)  # the previous stage of a cascade is not weighted
        torch.testing.assert_close(net.train(mode)(x), expected)
        assert not torch.allclose(expected[:, :13], z[:, :13], atol=1e-2)
    net(x).square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in net.fusion.parameters())
    assert [key for key in net.state_dict() if key.startswith("fusion")]


def test_the_dropout_may_be_combined_with_the_fusion():
    torch.manual_seed(0)
    z = build(fusion="squeeze-excitation", p=0.5).train()(torch.rand(20, 3, 8, 8, 8) + 1)
    assert 0.3 < (z[:, :13].flatten(2).abs().sum(2) == 0).float().mean() < 0.7


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fusion": "se"}, "fusion must be one of concat, squeeze-excitation; got 'se'"),
        ({"squeeze": "max"}, "squeeze must be one of mean, std; got 'max'"),
        ({"inputs": "features", "masking": "structured"}, "masking 'structured' has no effect with inputs 'features'"),
        ({"p": 0.0, "masking": "structured"}, "masking 'structured' has no effect with p 0"),
        ({"inputs": "features", "image_scaling": "minmax"}, "image_scaling 'minmax' has no effect with inputs"),
        ({"squeeze": "std"}, "squeeze 'std' is used by fusion 'squeeze-excitation' only"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(SettingsError, match=message):
        DropGen(**settings)
