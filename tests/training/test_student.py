"""Reading and changing features inside nnU-Net's networks, plain, compiled, and inside DropGen's network."""

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from planned_networks import built
from torch import nn

from nnunet_dg.hooks import Change, Tap
from nnunet_dg.step import stage_grids
from nnunet_dg.tensors import statistics
from nnunet_dg.tinymig import OWN_STATISTICS, OwnStatistics, modulate
from nnunet_dg.tinymig.style import Style
from nnunet_dg.trainers.nnUNetTrainerDropGen import nnUNetTrainerDropGen_MIND
from nnunet_dg.training.student import planned_network


def tap_encoder(network, stage):
    return Tap(planned_network(network).encoder.stages[stage], "output")


def tap_penultimate(network):
    return Tap(planned_network(network).decoder.seg_layers[-1], "input")


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("deep_supervision", [False, True])
@pytest.mark.parametrize(
    ("trainer", "residual"), [(nnUNetTrainer, False), (nnUNetTrainer, True), (nnUNetTrainerDropGen_MIND, False)]
)
def test_taps_read_the_penultimate_features_and_the_bottleneck(trainer, residual, deep_supervision, compiled):
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


def test_taps_read_nothing_at_inference_and_return_features_once():
    network = built()
    penultimate = tap_penultimate(network)
    network.eval()(torch.rand(1, 1, 16, 16, 16))
    with pytest.raises(RuntimeError, match="has not run in training mode"):
        penultimate.take()
    network.train()(torch.rand(1, 1, 16, 16, 16))
    penultimate.take()
    with pytest.raises(RuntimeError, match="has not run in training mode"):
        penultimate.take()


def test_other_networks_are_refused_by_name():
    with pytest.raises(NotImplementedError, match=r"network is a Sequential.*PlainConvUNet and ResidualEncoderUNet"):
        planned_network(nn.Sequential())


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("own", [None, OwnStatistics(lambda x, earlier: (x.mean((2, 3, 4)) + 1, x.std((2, 3, 4)) * 2))])
def test_later_layers_see_the_change_only_inside_its_block(compiled, own):
    network = built()
    keys = list(network.state_dict())
    run = torch.compile(network, backend="aot_eager") if compiled else network
    tap = tap_encoder(run, 0)
    style = Style(own)
    change = Change(network.encoder.stages[0], style)
    after = tap_encoder(run, 0)
    x = torch.rand(2, 1, 16, 16, 16)
    compilations = []
    for step in range(3):
        plain = run(x)[0]
        feature = tap.take()
        torch.testing.assert_close(after.take(), feature)
        new = own.draw(feature, None) if own else (torch.full((2, 32), float(step)), torch.full((2, 32), step + 2.0))
        style.begin(None if own else new)
        with change:
            styled = run(x)[0]
        style.end()
        torch.testing.assert_close(after.take(), modulate(feature, *new), atol=1e-4, rtol=1e-4)
        assert not torch.allclose(styled, plain)
        torch.testing.assert_close(run(x)[0], plain)
        compilations.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert compilations[1] == compilations[2]  # other statistics do not trigger a new compilation
    assert list(network.state_dict()) == keys


@pytest.mark.parametrize("compiled", [False, True])
def test_the_partner_of_a_single_sample_is_one_of_the_eight_before_it(compiled):
    network = built()
    run = torch.compile(network, backend="aot_eager") if compiled else network
    tap = tap_encoder(run, 0)
    style = Style(OWN_STATISTICS["crossnorm"])
    change = Change(network.encoder.stages[0], style)
    after = tap_encoder(run, 0)
    earlier, graphs = [], []
    for step in range(12):
        style.begin()
        with change:
            run((1 + step) * torch.rand(1, 1, 16, 16, 16) ** (1 + step))
        style.end()
        own, styled = tap.take(), after.take()
        if step == 0:
            torch.testing.assert_close(styled, own, atol=1e-4, rtol=1e-4)
        else:
            mean, std = statistics(styled)
            assert any(
                torch.allclose(mean, m, atol=1e-4) and torch.allclose(std, s, atol=1e-3) for m, s in earlier[-8:]
            )
        earlier.append(statistics(own.detach()))
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert graphs[1] == graphs[-1]  # other partners do not trigger a new compilation


def test_a_style_without_statistics_raises_an_error():
    network = built()
    with Change(network.encoder.stages[0], Style()), pytest.raises(RuntimeError, match="There are no statistics"):
        network(torch.rand(1, 1, 16, 16, 16))


def test_a_change_is_off_after_an_exception_and_in_eval_mode():
    network, x = built(), torch.rand(1, 1, 16, 16, 16)
    change = Change(network.encoder.stages[0], lambda feature: 2 * feature)
    plain, evaluated = network(x)[0], network.eval()(x)[0]
    with pytest.raises(ZeroDivisionError), change:
        1 / 0  # noqa: B018
    torch.testing.assert_close(network.train()(x)[0], plain, rtol=0, atol=0)
    with change:
        assert not torch.equal(network(x)[0], plain)
        torch.testing.assert_close(network.eval()(x)[0], evaluated, rtol=0, atol=0)


def test_a_change_that_is_always_on_stays_on_after_a_block():
    network, x = built(), torch.rand(1, 1, 16, 16, 16)
    plain = network(x)[0]
    change = Change(network.encoder.stages[0], lambda feature: 2 * feature, always=True)
    changed = network(x)[0]
    with change:
        pass
    assert not torch.equal(changed, plain)
    torch.testing.assert_close(network(x)[0], changed, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("patch", "strides", "expected"),
    [
        ((16, 16, 16), [[1, 1, 1], [2, 2, 2]], [(16, 16, 16), (8, 8, 8)]),
        ((5, 12), [1, 2, 2], [(5, 12), (3, 6), (2, 3)]),
        ((20, 320, 256), [(1, 1, 1), (1, 2, 2), (2, 2, 2)], [(20, 320, 256), (20, 160, 128), (10, 80, 64)]),
    ],
)
def test_the_grids_of_the_stages_follow_from_patch_and_strides(patch, strides, expected):
    assert stage_grids(patch, strides) == expected
