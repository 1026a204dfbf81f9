"""FedDG: vectors of the specification, the contrast as a loop, its step, and what it refuses."""

import math

import pytest
import torch
from plain_student import PlainStudent, a_batch
from torch import nn

from nnunet_dg.baselines.feddg import FedDG, border_contrast
from nnunet_dg.errors import SettingsError
from nnunet_dg.hooks import Tap
from nnunet_dg.method import Step
from nnunet_dg.sgcg.mixup import random_amplitude_mixup

A = torch.tensor([[1.0, 2, 1, 0], [3, 1, 2, 2], [0, 1, 1, 5], [2, 2, 0, 1]], dtype=torch.float64)[None, None]
B = (torch.arange(16.0, dtype=torch.float64) + 1).reshape(1, 1, 4, 4)
VECTORS = torch.tensor([[[1.0, 0], [2, 1], [0, 1], [-1, 1]]], dtype=torch.float64)
IS_BORDER = torch.tensor([True, True, False, False])


def unclipped(image, partner, ratio, half_width):
    """`random_amplitude_mixup` by whole spectra, without its offset and without clipping."""
    reach = math.floor(half_width * min(image.shape[2:]))
    own, other = torch.fft.fftn(image, dim=(2, 3)), torch.fft.fftn(partner, dim=(2, 3))
    frequency = [torch.fft.fftfreq(n, 1 / n).abs() for n in image.shape[2:]]
    low = (frequency[0][:, None] <= reach) & (frequency[1] <= reach)
    amplitude = torch.where(low, ratio * own.abs() + (1 - ratio) * other.abs(), own.abs())
    return torch.fft.ifftn(amplitude * own.sgn(), dim=(2, 3)).real


def test_hand_value_of_the_mean_alone():
    torch.testing.assert_close(unclipped(A, B, 0, 0), A + 7)


def test_hand_value_of_a_window_of_three():
    expected = torch.tensor(
        [[2.9375, 2.5625, 2.4375, 2.8125], [8.8125, 6.1875, 6.8125, 7.4375], [5.8125, 6.6875, 5.8125, 9.9375],
         [3.9375, 3.0625, 1.4375, 3.3125]], dtype=torch.float64,
    )  # fmt: skip
    torch.testing.assert_close(unclipped(A, B, 0.5, 0.25), expected[None, None])
    mixed = random_amplitude_mixup(A, B, torch.tensor([0.5]), 0.25)  # its offset is 0
    torch.testing.assert_close(mixed[0, 0], expected.clamp(0, 5))


@pytest.mark.parametrize(("temperature", "expected"), [(0.5, 0.343434), (0.05, 0.001411)])
def test_hand_value_of_the_contrast(temperature, expected):
    loss = border_contrast(VECTORS, IS_BORDER, torch.ones(1, 4).bool(), temperature)
    assert loss.item() == pytest.approx(expected, abs=1e-6)


def in_a_loop(vectors, is_border, valid, temperature):
    total = 0.0
    for one, counts in zip(vectors, valid, strict=True):
        similar = torch.nn.functional.cosine_similarity(one[:, None], one[None], dim=-1).div(temperature).exp()
        terms, used = [], counts.nonzero()[:, 0].tolist()
        for i in used:
            negatives = sum(similar[i, k] for k in used if is_border[k] != is_border[i])
            for j in used:
                if i != j and is_border[i] == is_border[j]:
                    terms.append(-(similar[i, j] / (similar[i, j] + negatives)).log())
        total = total + (torch.stack(terms).mean() if terms else 0)
    return total


def test_the_contrast_and_its_gradient_are_those_of_a_loop():
    torch.manual_seed(0)
    vectors = torch.randn(3, 8, 5, dtype=torch.float64, requires_grad=True)
    is_border = torch.arange(8) < 4
    valid = torch.tensor([[1] * 8, [1, 0, 1, 0] * 2, [0] * 8]).bool()
    loss, expected = border_contrast(vectors, is_border, valid, 0.3), in_a_loop(vectors, is_border, valid, 0.3)
    torch.testing.assert_close(loss, expected)
    for found, wanted in zip(torch.autograd.grad(loss, vectors), torch.autograd.grad(expected, vectors), strict=True):
        torch.testing.assert_close(found, wanted)
        assert (found[2] == 0).all()


def test_zero_and_equal_vectors_give_finite_gradients():
    vectors = torch.zeros(1, 4, 2, requires_grad=True)
    loss = border_contrast(vectors, IS_BORDER, torch.ones(1, 4).bool(), 0.05)
    (gradient,) = torch.autograd.grad(loss, vectors)
    assert loss.item() == pytest.approx(math.log(3))
    assert torch.isfinite(gradient).all()


class Student(PlainStudent):
    """A student of two layers, whose first output is the penultimate feature."""

    def __init__(self, norm=nn.Identity, **kwargs):
        super().__init__(**kwargs)
        torch.manual_seed(0)
        self.network = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), norm(4), nn.Tanh(), nn.Conv2d(4, self.num_outputs, 1)
        ).double()

    def tap(self, stage):
        assert stage == "penultimate"
        self.taps.append(Tap(self.network[-1], "input"))
        return self.taps[-1]


def the_batch():
    torch.manual_seed(1)
    target = torch.zeros(2, 1, 16, 16)
    target[:, :, 4:9, 5:11], target[1, :, 8:12, 8:12] = 1, 2
    return a_batch(torch.rand(2, 1, 16, 16, dtype=torch.float64), target)


def a_training(student=None, **settings):
    student = student or Student(outputs=3)
    student.case_domains = {"a": 0, "b": 1}
    return student, FedDG(**settings).training_module(student)


def test_the_terms_are_those_of_the_network_after_a_step_of_gradient_descent():
    student, training = a_training(step_size=0.5)
    batch = the_batch()
    twins = batch.with_images(batch.images.flip(0))
    training.mix = lambda batch: twins
    terms = training.losses(Step(student, batch, 0))
    network = student.network
    plain = student.loss(network(batch.data), batch.target)
    torch.testing.assert_close(terms["segmentation"], plain)
    gradients = torch.autograd.grad(plain, list(network.parameters()))
    found = torch.autograd.grad(sum(terms.values()), list(network.parameters()), retain_graph=True)
    with torch.no_grad():
        for parameter, gradient in zip(network.parameters(), gradients, strict=True):
            parameter -= 0.5 * gradient
    meta = student.loss(network(twins.data), batch.target)
    torch.testing.assert_close(terms["segmentation_meta"], meta)
    of_meta = torch.autograd.grad(meta, list(network.parameters()))
    contrast = torch.autograd.grad(terms["border_contrast"], list(network.parameters()), allow_unused=True)
    for total, own, after, of_contrast in zip(found, gradients, of_meta, contrast, strict=True):
        torch.testing.assert_close(total, own + after + (0 if of_contrast is None else of_contrast))
    assert terms["border_contrast"] > 0


def test_the_step_leaves_the_network_as_it_is():
    student, training = a_training(Student(norm=nn.BatchNorm2d, outputs=3))
    before = {name: value.clone() for name, value in student.network.state_dict().items()}
    training.losses(Step(student, the_batch(), 0))
    after = student.network.state_dict()
    assert int(after.pop("1.num_batches_tracked")) == 1  # the pass of the batch
    assert all(torch.equal(before[name], value) for name, value in after.items() if "running" not in name)
    assert all(parameter.grad is None for parameter in student.network.parameters())


def test_the_gradient_of_the_step_is_clamped():
    student, training = a_training(step_size=1.0)
    training.mix = lambda batch: batch
    loss = student.loss
    student.loss = lambda output, target: 1e6 * loss(output, target)
    seen = []
    run = student.run
    student.run = lambda data, weights=None: (seen.append(weights), run(data, weights))[1]
    training.losses(Step(student, the_batch(), 0))
    weights = next(each for each in seen if each is not None)
    moved = [weights[name] - parameter for name, parameter in student.network.named_parameters()]
    assert max(float(change.detach().abs().max()) for change in moved) == pytest.approx(100)


def test_twins_have_amplitudes_of_the_other_domain_in_uniform_shares():
    _, training = a_training(half_width=0.25)
    batch = the_batch()
    torch.manual_seed(0)
    twins = training.mix(batch)
    torch.manual_seed(0)
    for _ in range(4):  # the earlier samples, and the partners, of one candidate each
        torch.randint(1, ())
    expected = random_amplitude_mixup(batch.images, batch.images.flip(0), torch.rand(2), 0.25)
    assert torch.equal(twins.images, expected)
    assert not torch.allclose(expected, batch.images)


@pytest.mark.parametrize(("half_width", "same"), [(0.0, True), (0.01, False)])
def test_the_window_has_a_frequency_besides_the_mean_unless_it_is_switched_off(half_width, same):
    _, training = a_training(half_width=half_width)
    batch = the_batch()
    change = training.mix(batch).data - batch.data
    twins = change + batch.data
    low, high = (limit(batch.data, (2, 3), keepdim=True) for limit in (torch.amin, torch.amax))
    unclipped = change[(twins > low) & (twins < high)]
    assert (len(unclipped.mul(1e6).round().unique()) <= 2) == same  # one shift for each sample


@pytest.mark.parametrize("shape", [(1, 16, 16), (2, 16, 16)])
def test_thin_patches_are_mixed(shape):
    _, training = a_training()
    images = torch.rand(2, 1, *shape, dtype=torch.float64)
    twins = training.mix(a_batch(images, torch.zeros(2, 1, *shape)))
    assert twins.data.isfinite().all()
    assert not torch.allclose(twins.data, images)


def test_a_contrast_of_weight_0_is_not_computed():
    student, training = a_training(contrast=0)
    assert set(training.losses(Step(student, the_batch(), 0))) == set(training.weights(0))
    assert len(student.passes) == 3  # the batch, the step, the twins


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"half_width": 0.6}, r"half_width must be a number in \[0, 0.5\]; got 0.6"),
        ({"step_size": 0}, r"step_size must be a number in \(0, 1\]; got 0"),
        ({"temperature": 0}, "temperature must be a number in"),
    ],
)
def test_settings_are_refused_by_name(settings, message):
    with pytest.raises(SettingsError, match=message):
        FedDG(**settings)
