"""The paper's U-Net: its size, agreement with a plain implementation, and its use by nnU-Net and by methods."""

import pydoc

import pytest
import torch
from helpers import set_nnunets_folders
from on_noise import initialized
from small_trainers import CPU, batch, planned, step
from torch import nn
from torch.nn import functional as F

from nnunet_dg.baselines.mixstyle import MixStyle
from nnunet_dg.dropgen.paper_network import ARCHITECTURE, MaxPoolUNet
from nnunet_dg.training.trainer import MethodsTrainer

NETWORK = "nnunet_dg.dropgen.paper_network.MaxPoolUNet"


def options(**changes):
    named = ARCHITECTURE["_kw_requires_import"]
    kwargs = ARCHITECTURE["arch_kwargs"] | changes
    return {k: pydoc.locate(v) if k in named and v is not None else v for k, v in kwargs.items()}


def small(dims=3, **changes):
    few = {
        "n_stages": 3,
        "features_per_stage": [4, 8, 16],
        "conv_op": f"torch.nn.modules.conv.Conv{dims}d",
        "norm_op": f"torch.nn.modules.batchnorm.BatchNorm{dims}d",
        "kernel_sizes": [[3] * dims] * 3,
        "strides": [[1] * dims, [2] * dims, [2] * (dims - 1) + [1]],
        "n_conv_per_stage": [3, 2, 2],
        "n_conv_per_stage_decoder": [2, 2],
    }
    return MaxPoolUNet(2, num_classes=3, **options(**few | changes))


def test_it_has_the_36_9_million_parameters_of_the_paper():
    with torch.device("meta"):
        network = MaxPoolUNet(17, num_classes=16, **options())
    assert sum(parameter.numel() for parameter in network.parameters()) == pytest.approx(36.9e6, abs=0.05e6)


@pytest.mark.parametrize("dims", [2, 3])
def test_agrees_with_a_plain_implementation(dims):
    torch.manual_seed(0)
    network = small(dims, deep_supervision=True).train()
    network.apply(network.initialize)
    convolve, pool = {2: (F.conv2d, F.max_pool2d), 3: (F.conv3d, F.max_pool3d)}[dims]

    def block(x, convolutions):
        for layer in convolutions:
            x = F.relu(F.batch_norm(convolve(x, layer.conv.weight, padding=1), None, None, training=True))
        return x

    x = data = torch.randn(2, 2, *[16] * dims)
    skips, outputs = [], []
    for stride, stage in zip(network.encoder.strides, network.encoder.stages, strict=True):
        x = block(pool(x, stride), stage[-1].convs)
        skips.append(x)
    skips.pop()
    for stride, stage, head in zip(
        network.encoder.strides[:0:-1], network.decoder.stages, network.decoder.seg_layers, strict=True
    ):
        for axis, factor in enumerate(stride, 2):
            x = x.repeat_interleave(factor, dim=axis)
        x = block(torch.cat([skips.pop(), x], 1), stage.convs)
        outputs.insert(0, convolve(x, head.weight, head.bias))
    actual = network(data)
    assert len(actual) == len(outputs) == 2
    for one, other in zip(actual, outputs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    network.decoder.deep_supervision = False
    torch.testing.assert_close(network(data), outputs[0], rtol=1e-4, atol=1e-4)


def test_the_memory_estimate_counts_the_outputs_of_convolutions_and_upsampling():
    network, counted = small().eval(), []
    for module in network.modules():
        if isinstance(module, (nn.Conv3d, nn.Upsample)) and module not in network.decoder.seg_layers:
            module.register_forward_hook(lambda module, args, output: counted.append(output.numel()))
    network(torch.rand(1, 2, 16, 16, 16))
    assert network.compute_conv_feature_map_size((16, 16, 16)) == sum(counted)


def test_methods_read_and_change_its_features(tmp_path, monkeypatch):
    set_nnunets_folders(monkeypatch, tmp_path)

    class Trainer(MethodsTrainer):
        methods = (MixStyle(p=1.0),)

    content = planned()
    architecture = content["configurations"]["3d_fullres"]["architecture"]
    architecture["network_class_name"] = NETWORK
    trainer = initialized(Trainer, content, CPU)
    assert trainer.student.widths == [4, 8, 16]
    assert trainer.student.grids == [(16, 16, 16), (8, 8, 8), (4, 4, 4)]
    assert trainer.student.penultimate_width == 4
    assert type(trainer.network) is MaxPoolUNet
    losses = [float(step(trainer, batch(trainer), seed)["loss"]) for seed in range(3)]
    assert all(torch.isfinite(torch.tensor(losses)))
