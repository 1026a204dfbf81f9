import pytest
import torch
from nnunet_dg.trainers.nnUNetTrainerDropGen import nnUNetTrainerDropGen_MIND
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from on_noise import plans
from torch import nn

from nnunet_dg.nnunet.taps import planned_network, tap_encoder, tap_penultimate

RESIDUAL = "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"


def built(trainer=nnUNetTrainer, residual=False, deep_supervision=True):
    manager = plans(16)
    configuration = manager.get_configuration("3d_fullres")
    if residual:
        architecture = configuration.configuration["architecture"]
        architecture["network_class_name"] = RESIDUAL
        architecture["arch_kwargs"]["n_blocks_per_stage"] = architecture["arch_kwargs"].pop("n_conv_per_stage")
    torch.manual_seed(0)
    return trainer.build_network_architecture(manager, configuration, 1, 3, deep_supervision).train()


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("deep_supervision", [False, True])
@pytest.mark.parametrize(
    ("trainer", "residual"), [(nnUNetTrainer, False), (nnUNetTrainer, True), (nnUNetTrainerDropGen_MIND, False)]
)
def test_reads_what_makes_the_logits_and_the_bottleneck(trainer, residual, deep_supervision, compiled):
    network = built(trainer, residual, deep_supervision)
    keys = list(network.state_dict())
    run = torch.compile(network, backend="aot_eager") if compiled else network
    penultimate, bottleneck = tap_penultimate(run), tap_encoder(run, -1)
    for _ in range(2):
        output = run(torch.rand(2, 1, 16, 16, 16))
        features, deepest = penultimate.take(), bottleneck.take()
        logits = planned_network(run).decoder.seg_layers[-1](features)
        torch.testing.assert_close(logits, output[0] if deep_supervision else output)
        encoder = planned_network(run).encoder
        assert deepest.shape[1] == encoder.output_channels[-1]
        assert deepest.requires_grad
    assert list(network.state_dict()) == keys
    features.sum().backward()
    assert planned_network(run).encoder.stages[0].parameters().__next__().grad is not None


def test_holds_nothing_at_inference_and_gives_features_once():
    network = built()
    penultimate = tap_penultimate(network)
    network.eval()(torch.rand(1, 1, 16, 16, 16))
    with pytest.raises(RuntimeError, match="not run in training mode"):
        penultimate.take()
    network.train()(torch.rand(1, 1, 16, 16, 16))
    penultimate.take()
    with pytest.raises(RuntimeError, match="not run in training mode"):
        penultimate.take()


def test_other_networks_are_refused_by_name():
    with pytest.raises(NotImplementedError, match=r"PlainConvUNet and ResidualEncoderUNet.*is a Sequential"):
        planned_network(nn.Sequential())
