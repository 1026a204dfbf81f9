"""Channel dropout in every block: values of the specification, a naive loop, and where nnU-Net's networks drop."""

import pytest
import torch
from helpers import set_nnunets_folders
from on_noise import initialized
from small_trainers import CPU, batch, planned, step
from torch import nn

from nnunet_dg.baselines.channel_dropout import ChannelDropout, ChannelDropoutTraining, drop_channels
from nnunet_dg.errors import SettingsError
from nnunet_dg.method import Student
from nnunet_dg.training.trainer import MethodsTrainer

Z = torch.tensor([[[1.0, 2], [3, 4], [5, 6]]])


def test_hand_value():
    """Example DROP-1: the first and third of three channels are kept."""
    for seed in range(200):
        torch.manual_seed(seed)
        out = drop_channels(Z, 0.5)
        if (out.abs().sum(2) > 0).tolist() == [[True, False, True]]:
            assert out.tolist() == [[[2, 4], [0, 0], [10, 12]]]
            return
    pytest.fail("no seed keeps these channels")


class Trained(Student):
    """A student in plain PyTorch."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    module = loss = full_resolution_loss = classes = domains = agreed = scaled = log = None
    domain_names = training_domains = pretrained = None


@pytest.mark.parametrize("dims", [2, 3])
def test_agrees_with_a_loop_over_the_blocks(dims):
    """Every block's output but the logits is ``activation(convolution(x))``, with whole channels zeroed or doubled."""
    torch.manual_seed(0)
    convolution = {2: nn.Conv2d, 3: nn.Conv3d}[dims]
    layers = [
        convolution(1, 8, 1),
        nn.LeakyReLU(inplace=True),
        convolution(8, 16, 1),
        nn.LeakyReLU(),
        convolution(16, 3, 1),
    ]
    network = nn.Sequential(*layers).train()
    ChannelDropoutTraining(ChannelDropout(p=0.5), Trained(network))
    seen = []
    for layer in layers[1::2]:
        layer.register_forward_hook(lambda module, args, output: seen.append(output))
    x = torch.rand(6, 1, *[4] * dims)
    logits = network(x)
    for i, output in enumerate(seen):
        plain = nn.functional.leaky_relu(layers[2 * i](x))
        dropped = 0
        for sample in range(6):
            for channel in range(output.shape[1]):
                actual, undropped = output[sample, channel], plain[sample, channel]
                if undropped.abs().sum() == 0:
                    continue
                is_dropped = bool((actual == 0).all())
                dropped += is_dropped
                torch.testing.assert_close(actual, 0 * undropped if is_dropped else 2 * undropped)
        assert 0.3 < dropped / (6 * output.shape[1]) < 0.7
        x = output
    torch.testing.assert_close(logits, layers[-1](x))


def test_channels_and_samples_are_dropped_independently_and_the_mean_is_kept():
    torch.manual_seed(0)
    out = drop_channels(torch.ones(4000, 2, 2, 2, 2), 0.25)
    kept = (out[:, :, 0, 0, 0] > 0).float()
    assert kept.mean().item() == pytest.approx(0.75, abs=0.02)
    assert kept.prod(1).mean().item() == pytest.approx(0.75**2, abs=0.02)
    assert out.mean().item() == pytest.approx(1, abs=0.03)


def test_the_gradient_is_the_mask():
    z = torch.rand(3, 4, 5, 5, dtype=torch.float64, requires_grad=True)
    out = drop_channels(z, 0.5)
    out.sum().backward()
    torch.testing.assert_close(z.grad, out.detach() / z.detach())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_keeps_the_dtype(dtype):
    out = drop_channels(torch.ones(40, 4, 2, 2, dtype=dtype), 0.5)
    assert out.dtype == dtype
    assert out.unique().tolist() == [0, 2]


@pytest.fixture
def make(tmp_path, monkeypatch):
    set_nnunets_folders(monkeypatch, tmp_path)

    def make(*listed, residual=False):
        class Trainer(MethodsTrainer):
            methods = listed

        content = planned()
        if residual:
            architecture = content["configurations"]["3d_fullres"]["architecture"]
            architecture["network_class_name"] = "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"
            network = architecture["arch_kwargs"]
            network["n_blocks_per_stage"] = network.pop("n_conv_per_stage")
        torch.manual_seed(0)
        return initialized(Trainer, content, CPU)

    return make


@pytest.mark.parametrize(("residual", "blocks"), [(False, 6 + 4), (True, 1 + 2 * 6 + 4)])
def test_every_block_of_nnunets_networks_is_changed_in_training_only(make, residual, blocks):
    """A residual network has a stem, and residual blocks have a non-linearity in the middle and one at the end."""
    network = make(ChannelDropout(p=0.99), residual=residual).network
    found = [module for module in network.modules() if isinstance(module, nn.LeakyReLU)]
    outputs = {}
    for module in found:
        module.register_forward_hook(lambda module, args, output: outputs.setdefault(module, []).append(output))
    data = torch.randn(2, 1, 16, 16, 16)
    network.train()(data)
    network.eval()(data)
    assert len(found) == len(outputs) == blocks
    for training, evaluation in outputs.values():
        assert (training == 0).flatten(2).all(2).float().mean() > 0.7
        assert not (evaluation == 0).flatten(2).all(2).any()


def test_the_network_compiles_to_one_graph_in_which_channels_are_dropped(make):
    network = make(ChannelDropout(p=0.5)).network.train()
    torch._dynamo.reset()
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    data = torch.randn(2, 1, 16, 16, 16)
    torch.manual_seed(0)
    expected = network(data)[0]
    torch.manual_seed(0)
    actual = compiled(data)[0]
    other = compiled(data)[0]
    torch._dynamo.reset()
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(other, expected, atol=1e-2)


def test_without_dropout_a_step_equals_nnunets_bit_for_bit(make):
    stepped = [make(), make(ChannelDropout(p=0.0))]
    losses = [step(trainer, batch(trainer))["loss"] for trainer in stepped]
    assert float(losses[0]) == float(losses[1])
    plain, other = (trainer.network.state_dict() for trainer in stepped)
    assert all(torch.equal(plain[key], other[key]) for key in plain)


@pytest.mark.parametrize("p", [1.0, -0.1, "half", True, None])
def test_p_outside_the_interval_is_refused(p):
    with pytest.raises(SettingsError, match=r"p must be a probability in \[0, 0\.99\]; got"):
        ChannelDropout(p=p)
