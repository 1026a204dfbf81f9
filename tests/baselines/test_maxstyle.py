"""MaxStyle: values of the specification, agreement with a naive loop, the ascent, and the loss of a step."""

from itertools import pairwise

import pytest
import torch
from styled_features import X, assert_values, styled
from torch import nn
from torch.nn import functional as F

from nnunet_dg.baselines.maxstyle import MaxStyle
from nnunet_dg.errors import SettingsError
from nnunet_dg.method import Batch, Step, Student

SHARE = [[0.25], [1.4]]
NOISE = [[1.0, -1], [0.5, 0]], [[0, 0.5], [-0.25, 1]]
G = torch.tensor([[[1.0, -1, 0, 0], [0, 0, 1, 1]], [[1, 1, 1, 1], [0, 0, 0, -1]]], dtype=torch.float64)


def test_hand_value_of_a_layer():
    expected = [
        [[11.618891, 13.486925, 15.354958, 17.222992], [3.556269, -0.470483, 3.556269, -0.470483]],
        [[5.841178, 5.841178, 6.704764, 6.704764], [-0.235734, 0.882133, 2.0, 5.353601]],
    ]
    assert_values(styled(MaxStyle(), X, SHARE, *NOISE), expected)


def test_hand_value_of_the_gradients():
    draw = [torch.tensor(numbers, dtype=torch.float64, requires_grad=True) for numbers in (SHARE, *NOISE)]
    x = X.clone().requires_grad_()
    result = styled(MaxStyle(), x, *draw)
    share, mean, std, feature = torch.autograd.grad((G * result).sum(), [*draw, x])
    assert_values(share[:, 0], [-1.472135, 0])
    assert_values(mean, [[0, 1.414214], [38.183766, -0.707107]])
    assert_values(std, [[-2.455170, 0], [0, -0.146466]])
    deviations = result.detach().std(2) / X.std(2)  # statistics are constants for the gradient
    torch.testing.assert_close(feature, G * deviations[..., None], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("spatial", [(5, 4), (3, 4, 5)])
def test_agrees_with_a_loop(spatial):
    torch.manual_seed(0)
    x = torch.randn(3, 2, *spatial, dtype=torch.float64) * torch.rand(3, 2, *[1] * len(spatial)) + 1
    partners, (share, *noise) = [2, 0, 0], MaxStyle().draw(3, 2)
    result = styled(MaxStyle(), x, share, *noise, partners=partners)
    for c in range(2):
        own = [[x[b, c].mean() for b in range(3)], [(x[b, c].var() + 1e-6).sqrt() for b in range(3)]]
        for b in range(3):
            a = share[b].double()
            mean, std = (
                (1 - a) * values[b] + a * values[partners[b]] + noise[i][b, c] * torch.stack(values).std()
                for i, values in enumerate(own)
            )
            torch.testing.assert_close(result[b, c], ((x[b, c] - own[0][b]) / own[1][b] * std + mean))


def test_without_noise_and_share_nothing_changes():
    torch.testing.assert_close(styled(MaxStyle(), X, [[0.0], [-3]], torch.zeros(2, 2), torch.zeros(2, 2)), X)


class Trained(Student):
    """A student in plain PyTorch. Its only stage is the first module of its network."""

    def __init__(self, network, loss, samples=2):
        super().__init__()
        self.network, self._loss, self.samples_per_device, self.passes = network.train(), loss, samples, 0
        self.widths = [2]
        self.before_each_pass(self.count)

    def count(self, data):
        self.passes += 1

    def module(self, stage):
        return self.network[0]

    def loss(self, output, target):
        return self._loss(output)

    def agreed(self, value):
        return value

    def scaled(self, loss):
        return 1024 * loss

    full_resolution_loss = classes = domains = log = None
    domain_names = training_domains = pretrained = None


def step_of(student, data=X):
    return Step(student, Batch(data, data, ("a", "b"), 2), 0)


def test_hand_value_of_a_step_with_one_step_of_ascent(monkeypatch):
    """Adam's first step is the learning rate times the gradient's sign, see the gradients above."""
    start = [torch.tensor(numbers, dtype=torch.float64) for numbers in (SHARE, *NOISE)]
    monkeypatch.setattr(MaxStyle, "draw", lambda self, samples, width: [numbers.clone() for numbers in start])
    student = Trained(nn.Sequential(nn.Identity()), lambda output: (G * output).sum())
    training = MaxStyle(p=1.0, steps=1, stages=(0,)).training_module(student)
    loss = training.losses(step_of(student))["segmentation"]
    _, _, share, mean, std = training.draws[0]
    assert_values(share, [[0.15], [1.4]])
    assert_values(mean, [[1, -0.9], [0.6, -0.1]])
    assert_values(std, [[-0.1, 0.5], [-0.25, 0.9]])
    assert_values(loss, (G * styled(MaxStyle(), X, share, mean, std)).sum().item())


def network_and_loss(norm=nn.Identity):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv1d(2, 2, 3, padding=1), norm(2), nn.ReLU(), nn.Conv1d(2, 2, 3, padding=1)).double()
    target = torch.randint(0, 2, (2, 4))
    return network, lambda output: F.cross_entropy(output, target[: len(output)])


def losses(samples=2, norm=nn.Identity, seed=0, **settings):
    """The student, the training module, and the loss of its first step; None if the method leaves it to nnU-Net."""
    student = Trained(*network_and_loss(norm), samples)
    training = MaxStyle(**{"p": 1.0, "stages": (0,)} | settings).training_module(student)
    torch.manual_seed(seed)
    return student, training, training.losses(step_of(student, X[:samples])).get("segmentation")


def test_every_step_of_ascent_increases_the_loss():
    for seed in range(5):
        values = [losses(steps=steps, learning_rate=0.02, seed=seed)[2].item() for steps in range(6)]
        assert all(low < high for low, high in pairwise(values)), values


@pytest.mark.parametrize("steps", [0, 1, 5])
def test_a_step_takes_one_more_pass_for_each_step_of_ascent(steps):
    assert losses(steps=steps)[0].passes == steps + 1


def test_the_ascent_leaves_the_network_as_it_is():
    student, _, loss = losses(norm=nn.BatchNorm1d, steps=3)
    assert all(parameter.grad is None for parameter in student.network.parameters())
    assert int(student.network[1].num_batches_tracked) == 1  # of the styled pass that is trained
    loss.backward()
    assert all(parameter.grad is not None for parameter in student.network.parameters())


def test_the_gradient_of_an_earlier_pass_can_be_computed_after_the_ascent():
    student = Trained(*network_and_loss(nn.BatchNorm1d))
    training = MaxStyle(p=1.0, stages=(0,)).training_module(student)
    step = step_of(student)
    earlier = step.segmentation(step.output)
    parameters = list(student.network.parameters())
    expected = [gradient.clone() for gradient in torch.autograd.grad(earlier, parameters, retain_graph=True)]
    training.losses(step)
    for gradient, value in zip(torch.autograd.grad(earlier, parameters), expected, strict=True):
        torch.testing.assert_close(gradient, value)


def test_later_passes_are_not_styled():
    student, training, _ = losses()
    plain = student.network(X)
    assert torch.equal(student.network(X), plain)
    with training.changes[0]:
        assert not torch.allclose(student.network(X), plain)


def test_steps_in_which_no_stage_acts_are_nnunets_own():
    acts = [losses(p=0.3, steps=0, seed=seed)[2] is not None for seed in range(300)]
    assert sum(acts) / 300 == pytest.approx(0.3, abs=0.08)
    assert losses(p=0)[2] is None


@pytest.mark.parametrize(("p", "acts"), [(0.1, None), (0.3, [False, True]), (0.9, [True, True])])
def test_all_devices_take_the_decision_of_the_first_for_each_stage(p, acts):
    student = Trained(*network_and_loss())
    student.widths, student.module = [2, 2], lambda stage: student.network[stage]
    student.agreed = lambda value: torch.tensor([0.5, 0.2]).reshape(value.shape)
    training = MaxStyle(p=p, stages=(0, 1), steps=1).training_module(student)
    terms = training.losses(step_of(student))
    assert set(terms) == ({"segmentation"} if acts else set())
    assert list(training.acts.values()) == (acts or [])
    assert student.passes == (2 if acts else 0)


@pytest.mark.parametrize("p", [1.0, 1e-9])
def test_a_single_sample_is_mixed_with_an_earlier_one(p):
    student, training, first = losses(samples=1, p=p)
    plain = student.loss(student.network(X[:1]), None)
    torch.testing.assert_close(first, plain)  # there is no earlier sample
    assert student.passes == (1 + training.settings.steps if p == 1 else 1)
    other = step_of(student, X[1:])
    second = training.losses(other)["segmentation"]
    assert torch.isfinite(second)
    assert torch.equal(second, student.loss(student.network(X[1:]), None)) == (p < 1)
    training.draw_stages(X[:1], torch.tensor([True]))
    earlier = torch.stack([training.earlier[0].draw() for _ in range(50)])
    assert len(earlier.unique(dim=0)) == 2


def test_shares_start_uniform_and_noise_starts_normal():
    torch.manual_seed(0)
    share, mean, std = MaxStyle().draw(3000, 2)
    assert (share.shape, mean.shape, std.shape) == ((3000, 1), (3000, 2), (3000, 2))
    assert 0 <= share.min() < share.max() <= 1
    assert share.var() == pytest.approx(1 / 12, abs=0.005)
    for noise in (mean, std):
        assert noise.mean().abs() < 0.05
        assert noise.std() == pytest.approx(1, abs=0.05)


def test_an_overflow_of_the_scaled_gradient_leaves_the_styles_finite():
    student, scaled = Trained(*network_and_loss()), []
    student.scaled = lambda loss: (scaled.append(loss), loss * torch.inf)[1]
    training = MaxStyle(p=1.0, stages=(0,)).training_module(student)
    assert torch.isfinite(training.losses(step_of(student))["segmentation"])
    assert len(scaled) == training.settings.steps


@pytest.mark.parametrize("samples", [1, 2])
def test_a_constant_feature_gives_finite_values(samples):
    student = Trained(*network_and_loss(), samples)
    training = MaxStyle(p=1.0, stages=(0,)).training_module(student)
    for _ in range(2):
        loss = training.losses(step_of(student, torch.zeros_like(X[:samples])))["segmentation"]
        loss.backward()
        assert torch.isfinite(loss)
    assert all(torch.isfinite(parameter.grad).all() for parameter in student.network.parameters())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 2.5}, r"steps must be a whole number in \[0, 20\]; got 2.5"),
        ({"learning_rate": 0}, r"learning_rate must be a number in \(0, 10\]; got 0"),
        ({"at": "norm"}, "at must be one of stage, pre-activation; got 'norm'"),
        ({"stages": []}, "stages must be a list of different encoder stages"),
    ],
)
def test_settings_are_refused_by_name(settings, message):
    with pytest.raises(SettingsError, match=message):
        MaxStyle(**settings)
