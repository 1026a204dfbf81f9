"""Features before the last non-linearity of an encoder stage, in nnU-Net's networks."""

import pytest
import torch
from planned_networks import built
from torch.nn.functional import leaky_relu

from nnunet_dg.errors import SettingsError
from nnunet_dg.hooks import Change
from nnunet_dg.trainers.nnUNetTrainerDropGen import nnUNetTrainerDropGen_MIND
from nnunet_dg.training.nonlinearity import last_nonlinearity
from nnunet_dg.training.student import planned_network

X = torch.rand(2, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))


NARROW = {"features_per_stage": [4, 8, 16]}


def network_of(kind):
    if kind == "dropgen":
        return built(nnUNetTrainerDropGen_MIND, **NARROW)
    if kind == "bottleneck":
        return built(residual=True, bottleneck_channels=[2, 4, 8], **NARROW)
    return built(residual=kind == "residual", **NARROW)


def recorded(module, side):
    """The list to which a module's inputs or outputs are appended."""
    tensors = []
    module.register_forward_hook(lambda _, inputs, output: tensors.append((inputs[0], output)[side].clone()))
    return tensors


@pytest.mark.parametrize("kind", ["plain", "residual", "bottleneck", "dropgen"])
@pytest.mark.parametrize("index", [0, 1])
def test_the_output_of_a_stage_is_the_non_linearity_of_the_changed_features(kind, index):
    network = network_of(kind)
    keys = list(network.state_dict())
    stage, given = planned_network(network).encoder.stages[index], []
    outputs = recorded(stage, 1)
    change = Change(last_nonlinearity(stage), lambda z: (given.append(z.clone()), 2 * z - 1)[1], at="input")
    torch.manual_seed(0)
    network(X)
    torch.manual_seed(0)
    with change:
        network(X)
    (plain, changed), (features,) = outputs, given
    torch.testing.assert_close(plain, leaky_relu(features, 0.01))
    torch.testing.assert_close(changed, leaky_relu(2 * features - 1, 0.01))
    assert list(network.state_dict()) == keys
    with change:
        network.eval()(X)  # changes act in training mode only
    assert len(given) == 1


def test_in_a_plain_stage_the_features_are_the_output_of_the_last_norm():
    network = network_of("plain")
    block = network.encoder.stages[1][0].convs[-1]
    norms, given = recorded(block.norm, 1), []
    Change(last_nonlinearity(network.encoder.stages[1]), lambda z: (given.append(z.clone()), z)[1], True, "input")
    network(X)
    assert torch.equal(given[0], norms[0])


def test_in_a_residual_stage_the_features_are_the_sum_with_the_skip_connection():
    network = network_of("residual")
    blocks = network.encoder.stages[1].blocks
    assert len(blocks) == 2
    inputs, branches, given = recorded(blocks[-1], 0), recorded(blocks[-1].conv2, 1), []
    Change(last_nonlinearity(network.encoder.stages[1]), lambda z: (given.append(z.clone()), z)[1], True, "input")
    network(X)
    torch.testing.assert_close(given[0], branches[0] + inputs[0])


@pytest.mark.parametrize("residual", [False, True])
def test_instance_norm_removes_a_mean_at_the_output_but_not_before_the_non_linearity(residual):
    def effect(module, at):
        """Deviation of the logits' change inside the patch, relative to that of the logits."""
        with torch.no_grad():
            plain = network(x)[0]
            with Change(module, lambda z: z + shift, at=at):
                difference = network(x)[0] - plain
        inside = (..., *[slice(10, -10)] * 3)
        return float(difference[inside].std() / plain[inside].std())

    network = built(residual=residual, **NARROW)
    for module in network.modules():
        if isinstance(module, torch.nn.InstanceNorm3d):
            torch.nn.init.ones_(module.weight)  # nnU-Net sets that of a residual block's last norm to 0 at first
    stage = network.encoder.stages[0]
    torch.manual_seed(0)
    x, shift = torch.rand(1, 1, 32, 32, 32), torch.randn(1, 4, 1, 1, 1)
    assert effect(stage, "output") < 0.5 * effect(last_nonlinearity(stage), "input")


@pytest.mark.parametrize(
    "options", [{"nonlin_first": True}, {"nonlin": None, "nonlin_kwargs": None}, {"residual": True, "nonlin": None}]
)
def test_stages_that_do_not_end_with_a_norm_and_a_non_linearity_are_refused(options):
    stage = built(**NARROW, **options).encoder.stages[0]
    with pytest.raises(
        SettingsError, match=r"at 'pre-activation' needs .* ends with \w+ without them.*Set at to 'stage'"
    ):
        last_nonlinearity(stage)
