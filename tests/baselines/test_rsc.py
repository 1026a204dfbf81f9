"""RSC: values of the specification, agreement with a naive loop, properties, and the loss of a challenged step."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nnunet_dg.baselines.rsc import RSC, RSCTraining, challenge_mask
from nnunet_dg.method import Batch, Step, Student

Z = torch.tensor([[[1.0, 2, 0, -1], [0.5, 0, 3, 1]]])  # (sample, channel, voxel)


def test_hand_value_of_elements_with_the_largest_signed_gradients():
    """Example RSC-1 of the specification."""
    gradient = torch.tensor([[[0.3, -2.0, 0.1, 0.9, 0.0, 0.2, 0.8, -0.1, 0.05, 0.4]]])
    mask = challenge_mask(torch.ones(1, 1, 10), gradient, 0.2)
    assert mask.flatten().tolist() == [1, 1, 1, 0, 1, 1, 0, 1, 1, 1]


def test_hand_value_of_channels_and_positions():
    """Example RSC-2: channel scores 0.2 and -0.05; position scores 0.175, 0.4, -0.15 and -0.25."""
    gradient = torch.tensor([[[0.2, 0.4, -0.1, 0.3], [-0.5, 0.1, 0.1, 0.1]]])
    assert challenge_mask(Z, gradient, 0.5, "channel").flatten().tolist() == [0, 1]
    assert challenge_mask(Z, gradient, 0.25, "spatial").flatten().tolist() == [1, 0, 1, 1]
    assert challenge_mask(Z, gradient, 0.5, "spatial").flatten().tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("unit", ["element", "channel", "spatial"])
@pytest.mark.parametrize("spatial", [(4, 5), (3, 4, 2)])
def test_agrees_with_a_loop_that_sorts(unit, spatial):
    torch.manual_seed(0)
    z, g = torch.randn(3, 5, *spatial), torch.randn(3, 5, *spatial)
    mask = challenge_mask(z, g, 0.3, unit).expand_as(z)
    for sample in range(3):
        channel_means = [float(g[sample, c].mean()) for c in range(5)]
        scores = {}
        for place in torch.cartesian_prod(torch.arange(5), *(torch.arange(n) for n in spatial)).tolist():
            c, position = place[0], tuple(place[1:])
            if unit == "element":
                scores[tuple(place)] = float(g[(sample, *place)])
            elif unit == "channel":
                scores[c] = channel_means[c]
            else:
                scores[position] = sum(float(z[(sample, k, *position)]) * channel_means[k] for k in range(5))
        muted = set(sorted(scores, key=scores.get, reverse=True)[: math.ceil(0.3 * len(scores))])
        for place in torch.cartesian_prod(torch.arange(5), *(torch.arange(n) for n in spatial)).tolist():
            unit_of_place = {"element": tuple(place), "channel": place[0], "spatial": tuple(place[1:])}[unit]
            assert mask[(sample, *place)] == (0 if unit_of_place in muted else 1)


def test_exactly_the_share_is_muted_with_ties():
    mask = challenge_mask(torch.zeros(2, 4, 5, 5), torch.zeros(2, 4, 5, 5), 0.2)
    assert (mask == 0).flatten(1).sum(1).tolist() == [20, 20]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_mask_has_the_features_dtype_and_no_gradient(dtype):
    z = torch.randn(1, 2, 4, 4, dtype=dtype, requires_grad=True)
    mask = challenge_mask(z, torch.randn(1, 2, 4, 4, dtype=dtype), 0.2)
    assert mask.dtype == dtype
    assert not mask.requires_grad


class Head(nn.Module):
    """A bottleneck that is the identity, and a 1 x 1 head."""

    def __init__(self):
        super().__init__()
        self.bottleneck, self.head = nn.Identity(), nn.Conv1d(2, 2, 1, bias=False)
        with torch.no_grad():
            self.head.weight.copy_(torch.tensor([[[1.0], [0.5]], [[-1.0], [0.5]]]))

    def forward(self, x):
        return self.head(self.bottleneck(x))


class Trained(Student):
    """A student in plain PyTorch, with cross entropy."""

    def __init__(self, network):
        super().__init__()
        self.network = network
        self.widths, self.strides, self.patch_size = [2], [1], (4,)

    def module(self, stage):
        return self.network.bottleneck

    def loss(self, output, target):
        return F.cross_entropy(output, target)

    def agreed(self, value):
        return value

    def scaled(self, loss):
        return 1024 * loss  # the order of the gradients does not depend on the scale

    full_resolution_loss = classes = domains = log = None
    domain_names = training_domains = pretrained = None


def losses(p, chance=None, **settings):
    """The network, the terms of a step, and nnU-Net's own loss; ``chance``: the first device's random number."""
    network = Head().train()
    student = Trained(network)
    if chance is not None:
        student.agreed = lambda value: torch.full_like(value, chance)
    training = RSCTraining(RSC(p=p, **settings), student)
    x, target = Z.clone().requires_grad_(), torch.tensor([[0, 0, 1, 1]])
    terms = training.losses(Step(student, Batch(x, target, ("a",), 2), 0))
    return network, terms, F.cross_entropy(network(x), target)


def test_hand_value_of_a_challenged_step():
    """Example RSC-3: two of eight elements are muted, and the loss increases from 0.2413 to 0.5516."""
    network, terms, plain = losses(1.0)
    assert float(plain) == pytest.approx(0.241288, abs=1e-6)
    assert float(terms["segmentation"]) == pytest.approx(0.551592, abs=1e-6)
    assert network.head.weight.grad is None  # the first pass adds no gradient
    terms["segmentation"].backward()
    keep = torch.tensor([[[0.0, 0, 1, 1], [1, 1, 1, 1]]])
    other = Head()
    F.cross_entropy(other.head(Z * keep), torch.tensor([[0, 0, 1, 1]])).backward()
    torch.testing.assert_close(network.head.weight.grad, other.head.weight.grad)
    x = torch.rand(1, 2, 4)
    torch.testing.assert_close(network(x), network.head(x))  # later passes are not muted


class TinyLoss(Trained):
    """A student in float16, whose gradients are below the smallest number of float16 if the loss is not scaled."""

    def loss(self, output, target):
        return 1e-10 * super().loss(output.float(), target)

    def scaled(self, loss):
        return 2.0**30 * loss


def test_float16_ranks_the_features_by_gradients_of_the_scaled_loss():
    """Without the scale all gradients would be zero, and any two elements could be muted."""
    student = TinyLoss(Head().half().train())
    seen = []
    student.network.head.register_forward_pre_hook(lambda module, x: seen.append(x[0].detach()))
    training = RSCTraining(RSC(p=1.0), student)
    training.losses(Step(student, Batch(Z.half(), torch.tensor([[0, 0, 1, 1]]), ("a",), 2), 0))
    assert torch.equal(seen[-1], Z.half() * torch.tensor([[[0.0, 0, 1, 1], [1, 1, 1, 1]]]).half())


@pytest.mark.parametrize("unit", ["channel", "spatial"])
def test_the_unit_is_a_setting(unit):
    """A channel or a position is muted, which gives another loss than single elements."""
    other = losses(1.0, unit=unit, share=0.25)[1]["segmentation"]
    assert float(other) != pytest.approx(0.551592, abs=1e-3)


def test_with_a_probability_of_zero_no_random_number_is_drawn_and_no_pass_is_made():
    student = Trained(Head().train())
    student.before_each_pass(lambda data: pytest.fail("a pass"))
    training = RSCTraining(RSC(p=0.0), student)
    batch = Batch(Z, torch.tensor([[0, 0, 1, 1]]), ("a",), 2)
    random_state = torch.get_rng_state()
    assert training.losses(Step(student, batch, 0)) == {}
    assert torch.equal(torch.get_rng_state(), random_state)


def test_all_devices_take_the_decision_of_the_first():
    assert losses(0.1, chance=0.2)[1] == {}
    assert float(losses(0.3, chance=0.2)[1]["segmentation"]) == pytest.approx(0.551592, abs=1e-6)


def test_batches_are_challenged_with_probability_p():
    torch.manual_seed(0)
    assert sum(bool(losses(0.3)[1]) for _ in range(400)) / 400 == pytest.approx(0.3, abs=0.07)


def test_only_the_masked_pass_changes_running_statistics():
    network = Head().train()
    network.bottleneck = nn.BatchNorm1d(2)
    once = copy.deepcopy(network.bottleneck)
    student = Trained(network)
    training = RSCTraining(RSC(p=1.0), student)
    x = Z.clone().requires_grad_()
    training.losses(Step(student, Batch(x, torch.tensor([[0, 0, 1, 1]]), ("a",), 2), 0))["segmentation"].backward()
    once(Z)
    for key, value in once.state_dict().items():
        torch.testing.assert_close(network.bottleneck.state_dict()[key], value)


def test_the_first_pass_is_not_synchronized_between_devices():
    """A distributed network is entered by the masked pass only."""

    class Distributed(Trained):
        undistributed = Head().train()

    entered = []
    student = Distributed(Head().train())
    student.module = lambda stage: student.undistributed.bottleneck
    training = RSCTraining(RSC(p=1.0), student)
    student.network.register_forward_pre_hook(lambda *args: entered.append(1))
    student.undistributed.register_forward_pre_hook(lambda *args: entered.append(2))
    student.network.bottleneck = student.undistributed.bottleneck
    batch = Batch(Z.clone().requires_grad_(), torch.tensor([[0, 0, 1, 1]]), ("a",), 2)
    training.losses(Step(student, batch, 0))
    assert entered == [2, 1]


@pytest.mark.parametrize("failing_pass", [1, 2])
def test_later_passes_are_not_muted_after_an_exception(failing_pass):
    network, passes = Head().train(), []
    student = Trained(network)
    training = RSCTraining(RSC(p=1.0), student)

    def fail(data):
        passes.append(data)
        assert len(passes) < failing_pass, "failed"

    student.before_each_pass(fail)
    step = Step(student, Batch(Z.clone().requires_grad_(), torch.tensor([[0, 0, 1, 1]]), ("a",), 2), 0)
    with pytest.raises(AssertionError, match="failed"):
        training.losses(step)
    torch.testing.assert_close(network(Z), network.head(Z))
