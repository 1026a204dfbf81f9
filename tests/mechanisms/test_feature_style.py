"""What the methods that change feature styles share: where and when they act, partners, single samples, and p = 0."""

from functools import partial

import pytest
import torch
from helpers import set_nnunets_folders
from on_noise import initialized
from small_trainers import CPU, batch, planned, step
from styled_features import Net, X, styled

from nnunet_dg.baselines.crossnorm import CrossNorm
from nnunet_dg.baselines.dsu import DSU
from nnunet_dg.baselines.efdm import EFDM
from nnunet_dg.baselines.maxstyle import MaxStyle
from nnunet_dg.baselines.mixstyle import MixStyle
from nnunet_dg.baselines.trid import TriD
from nnunet_dg.errors import SettingsError
from nnunet_dg.mechanisms.feature_style import FeatureStyle
from nnunet_dg.method import Batch
from nnunet_dg.training.catalog import METHODS
from nnunet_dg.training.trainer import MethodsTrainer

STYLES = [cls for cls in METHODS.values() if cls.slot == "feature statistics"]
WITH_PARTNERS = [MixStyle(alpha=1e3), CrossNorm(), EFDM(alpha=None, stages=(0, 1))]
every_style = pytest.mark.parametrize(
    "method", [partial(cls, stages=(0, 1)) for cls in STYLES], ids=[cls.__name__ for cls in STYLES]
)


def trained(methods, tmp_path, monkeypatch, samples=2):
    """A trainer after two steps, and the losses of the steps."""
    set_nnunets_folders(monkeypatch, tmp_path)

    class Trainer(MethodsTrainer):
        pass

    Trainer.methods = methods
    torch.manual_seed(0)
    trainer = initialized(Trainer, planned(dims=2, samples=samples), CPU, "2d")
    trainer.prepare_training()
    return trainer, [step(trainer, batch(trainer, seed), seed) for seed in range(2)]


@pytest.mark.parametrize("method", STYLES)
def test_all_methods_of_the_slot_share_the_mechanism(method):
    assert issubclass(method, FeatureStyle)


@pytest.mark.parametrize("method", [*STYLES, MaxStyle])
def test_with_p_of_zero_the_training_is_nnunets_own_bit_for_bit(method, tmp_path, monkeypatch):
    """No random numbers are drawn either, which would change nnU-Net's augmentation in the same process."""
    plain, losses = trained((), tmp_path, monkeypatch)
    random_state = torch.get_rng_state()
    trainer, own_losses = trained((method(p=0),), tmp_path, monkeypatch)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert [float(loss["loss"]) for loss in losses] == [float(loss["loss"]) for loss in own_losses]
    for key, value in plain.network.state_dict().items():
        assert torch.equal(trainer.network.state_dict()[key], value), key


@every_style
@pytest.mark.parametrize("at", ["stage", "pre-activation"])
def test_the_place_is_a_setting(method, at):
    net = Net()
    method(at=at, stages=(1,)).training_module(net)
    assert net.places == {1: at}


@every_style
def test_a_stage_that_does_not_act_keeps_its_features_bit_for_bit(method):
    net = Net()
    training = method(p=1e-9).training_module(net)
    x = torch.randn(2, 1, 50)
    assert torch.equal(net(x), 6 * x)
    assert training.acts == {0: False, 1: False}


@pytest.mark.parametrize("method", [MixStyle(alpha=1), EFDM(alpha=1), DSU(), TriD(), MaxStyle()])
def test_each_sample_has_its_own_random_numbers(method):
    """They differ between all samples of a pass; for TriD, except for the channels that are changed or not."""
    torch.manual_seed(0)
    draw = method.draw(4, 50)
    assert draw
    assert all(len(numbers.unique(dim=0)) == 4 for numbers in draw)


@every_style
def test_compiled_stages_have_one_graph_and_the_result_of_plain_ones(method):
    """Whether a stage acts, other partners and other random numbers do not trigger a new compilation."""
    torch._dynamo.reset()
    graphs, acting = [], set()

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    net = Net()
    net.widths = (5, 5)
    training = method(stages=(0,)).training_module(net)
    compiled = torch.compile(training.styled, backend=backend, fullgraph=True)
    x = torch.randn(2, 5, 6, 7)
    for seed in range(8):
        torch.manual_seed(seed)
        training.draw(x)
        acting.add(training.acts[0])
        torch.testing.assert_close(compiled(0, x), training.styled(0, x))
    assert acting == {True, False}
    assert len(graphs) == 1


@every_style
def test_stages_act_independently_with_probability_p(method):
    torch.manual_seed(0)
    training = method(p=0.3).training_module(Net())
    acts = []
    for _ in range(1000):
        training.draw(torch.zeros(2, 1, 4, 4))
        acts.append([training.acts[stage] for stage in (0, 1)])
    shares = torch.tensor(acts).float()
    assert (shares.mean(0) - 0.3).abs().max() < 0.05
    assert (shares.prod(1).mean() - 0.09).abs() < 0.03


@every_style
def test_both_stages_change_the_output(method):
    x = torch.cat([torch.randn(1, 1, 40), torch.randn(1, 1, 40) * 5 + 3])
    torch.manual_seed(0)
    both, first = Net(), Net()
    method(p=1.0).training_module(both)
    method(p=1.0, stages=(0,)).training_module(first)
    outputs = torch.stack([torch.stack([net(x) for _ in range(20)]) for net in (both, first)])
    assert (outputs[1] - 6 * x).abs().max() > 1
    assert set(both.changes) == {0, 1}


@every_style
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_kept_and_finite(method, dtype):
    net = Net()
    training = method(p=1.0).training_module(net)
    x = (100 * torch.randn(2, 1, 20, 20)).to(dtype).requires_grad_()
    training.draw(x)
    result = training.styled(0, x)
    assert result.dtype == dtype
    result.float().mean().backward()
    assert torch.isfinite(result).all()
    assert torch.isfinite(x.grad).all()


@every_style
@pytest.mark.parametrize("samples", [1, 2])
def test_gradients_are_finite_on_a_constant_feature(method, samples):
    net = Net()
    training = method(p=1.0).training_module(net)
    for _ in range(2):
        z = torch.ones(samples, 1, 4, 4, requires_grad=True)
        training.draw(z)
        training.styled(0, z).square().sum().backward()
        assert torch.isfinite(z.grad).all()


@pytest.mark.parametrize("method", WITH_PARTNERS, ids=lambda method: method.key)
def test_a_single_sample_gets_values_of_an_earlier_one(method):
    net = Net()
    type(method)(**vars(method) | {"p": 1.0, "stages": (0,)}).training_module(net)
    torch.manual_seed(0)
    first, second = torch.randn(1, 1, 50) + 10, torch.randn(1, 1, 50)
    assert torch.equal(net(first), 6 * first)
    share = 0.5 if method.key == "mixstyle" else 0  # of the own mean; Beta(1000, 1000) is about one half
    assert net(second).mean() == pytest.approx(6 * ((1 - share) * first.mean() + share * second.mean()), abs=2)


@pytest.mark.parametrize("method", WITH_PARTNERS, ids=lambda method: method.key)
def test_earlier_samples_are_remembered_although_stages_do_not_act(method):
    net = Net()
    training = type(method)(**vars(method) | {"p": 1e-9}).training_module(net)
    for _ in range(3):
        net(torch.randn(1, 1, 50))
    training.draw(torch.randn(1, 1, 50))
    assert training.earlier[0].draw() is not None


@pytest.mark.parametrize("method", [MixStyle, partial(EFDM, stages=(0, 1))], ids=["MixStyle", "EFDM"])
@pytest.mark.parametrize(
    ("domains", "given", "expected"),
    [((0, 1, 1), True, {1, 2}), ((0, 0, 1), True, {2}), ((0, 0, 1), False, {1, 2})],
)
def test_partners_are_of_other_domains(method, domains, given, expected):
    training = method(p=1.0, other_domains=given).training_module(Net(domains))
    data = torch.zeros(3, 1, 4, 4)
    training.augment(Batch(data, data, ("a", "b", "c"), 1))
    found = set()
    for _ in range(60):
        training.draw(data)
        found.add(int(training.draws[0][1][0]))
    assert found == expected


@pytest.mark.parametrize(
    ("method", "line"),
    [
        (MixStyle(), "MixStyle: one sample per device, so partners are earlier samples."),
        (CrossNorm(), "CrossNorm: one sample per device, so partners are earlier samples."),
        (CrossNorm(exchange="channels"), None),
        (EFDM(), "EFDM: one sample per device, so partners are earlier samples."),
        (DSU(), "DSU needs two samples per device, but there is only one, so it has no effect. Set batch_size in the "
         "plans to at least two per device, or choose another method."),
        (TriD(), None),
        (DSU(p=0), None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("samples", [1, 2])
def test_one_sample_per_device_is_noted_in_the_log(method, line, samples):
    net = Net(samples=samples)
    method.training_module(net).prepare()
    assert net.lines == ([line] if samples == 1 and line else [])


@every_style
@pytest.mark.parametrize("stages", [[], [0, 0], [-1], ["0"], [True], [0.5], 1, [64]])
def test_stages_are_a_list_of_different_numbers(method, stages):
    with pytest.raises(SettingsError, match="stages must be a list of different encoder stages, numbered from 0; got"):
        method(stages=stages)
    assert method(stages=[0, 2]).stages == (0, 2)


@every_style
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"p": 1.1}, r"p must be a probability in \[0, 1\]; got 1.1"),
        ({"at": "norm"}, "at must be one of stage, pre-activation; got 'norm'"),
    ],
)
def test_shared_settings_are_refused_by_name(method, settings, message):
    with pytest.raises(SettingsError, match=message):
        method(**settings)


@every_style
def test_one_by_one_and_three_dimensions_agree_with_one(method):
    """Voxels have no order: the result on a grid is that of the flattened feature."""
    torch.manual_seed(0)
    x = torch.randn(2, 2, 3, 4, 5, dtype=torch.float64)
    draw = method().draw(2, 2)
    result = styled(method(), x, *draw)
    torch.testing.assert_close(result.flatten(2), styled(method(), x.flatten(2), *draw))
    assert result.shape == x.shape
    assert styled(method(), X, *draw).shape == X.shape
