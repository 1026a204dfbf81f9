"""SAML: vectors of the specification, triplets as a loop, its step, the choice of domains, and what it refuses."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from plain_student import PlainStudent, a_batch
from torch import nn

from nnunet_dg.baselines.saml import SAML, compactness, semi_hard_triplets
from nnunet_dg.errors import SettingsError
from nnunet_dg.hooks import Tap
from nnunet_dg.mechanisms.domain_samples import DomainSamples
from nnunet_dg.mechanisms.meta import clipped, descended
from nnunet_dg.method import Step


def test_hand_value_of_the_compactness_in_2d():
    p = torch.zeros(1, 1, 5, 5, dtype=torch.float64)
    p[..., 1:4, 1:4] = torch.tensor([[0, 0.5, 0], [1, 1, 0.5], [0, 1, 0]])
    assert compactness(p).item() == pytest.approx(8.447061**2 / (4 * math.pi * 4), rel=5e-6)
    assert compactness(p).item() == pytest.approx(1.41952, rel=5e-6)


def test_hand_value_of_the_compactness_in_3d():
    p = torch.zeros(1, 1, 6, 6, 6, dtype=torch.float64)
    p[..., 2:4, 2:4, 2:4] = 1
    assert compactness(p).item() == pytest.approx(20.985292**3 / (36 * math.pi * 8**2), rel=1e-5)
    assert compactness(p).item() == pytest.approx(1.27677, rel=1e-5)


def test_hand_value_of_the_step():
    moved = descended(
        {"theta": torch.tensor([1.0, -1.0])}, {"theta": torch.tensor([3.0, 4.0])}, 0.1, lambda g: clipped(g, 1)
    )
    torch.testing.assert_close(moved["theta"], torch.tensor([0.94, -1.08]))
    assert torch.equal(clipped(torch.tensor([0.3, 0.4]), 1), torch.tensor([0.3, 0.4]))


def test_hand_value_of_the_triplets():
    vectors = torch.tensor([[[0.0, 0], [1, 0], [3, 0], [0, 2], [5, 0]]])
    is_border = torch.tensor([True, True, False, True, False])
    assert semi_hard_triplets(vectors, is_border, torch.ones(1, 5).bool(), 10).item() == pytest.approx(2.75)


def in_a_loop(vectors, is_border, valid, margin):
    total = 0.0
    for one, counts in zip(vectors, valid, strict=True):
        used, terms = counts.nonzero()[:, 0].tolist(), []
        for i, j in itertools.permutations(used, 2):
            negatives = [(one[i] - one[k]).square().sum() for k in used if is_border[k] != is_border[i]]
            if is_border[i] != is_border[j] or not negatives:
                continue
            distance = (one[i] - one[j]).square().sum()
            beyond = [negative for negative in negatives if negative > distance]
            terms.append((distance - (min(beyond) if beyond else max(negatives)) + margin).clamp(min=0))
        total = total + (torch.stack(terms).mean() if terms else 0)
    return total


def test_triplets_and_their_gradient_are_those_of_a_loop():
    torch.manual_seed(0)
    vectors = torch.randn(4, 7, 3, dtype=torch.float64, requires_grad=True)
    is_border = torch.tensor([1, 1, 1, 0, 0, 1, 0]).bool()
    valid = torch.tensor([[1] * 7, [1, 0, 1, 1, 0, 1, 1], [1, 1, 1, 0, 0, 1, 0], [0] * 7]).bool()
    loss, expected = (f(vectors, is_border, valid, 2.0) for f in (semi_hard_triplets, in_a_loop))
    torch.testing.assert_close(loss, expected)
    found, wanted = (torch.autograd.grad(value, vectors)[0] for value in (loss, expected))
    torch.testing.assert_close(found, wanted)


def test_a_square_is_more_compact_than_a_line_and_empty_shapes_are_finite():
    p = torch.zeros(3, 1, 20, 20)
    p[0, 0, 5:11, 5:11], p[1, 0, 10, 1:19] = 1, 1
    p.requires_grad_()
    square, line, empty = compactness(p)[:, 0]
    assert square < line
    assert torch.isfinite(empty)
    (gradient,) = torch.autograd.grad(compactness(p).sum(), p)
    assert torch.isfinite(gradient).all()


class Student(PlainStudent):
    """A student of two layers, whose first output is the penultimate feature."""

    def __init__(self, **kwargs):
        super().__init__(**({"outputs": 3} | kwargs))
        torch.manual_seed(0)
        self.network = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, self.num_outputs, 1)
        ).double()
        self.penultimate_width, self.case_domains = 4, {"a": 0, "b": 1, "c": 2}

    domain_names = ("one", "two", "three")

    def tap(self, stage):
        assert stage == "penultimate"
        self.taps.append(Tap(self.network[-1], "input"))
        return self.taps[-1]


def the_batch(samples=3, seed=1):
    torch.manual_seed(seed)
    target = torch.zeros(samples, 1, 16, 16)
    target[:, :, 4:9, 5:11], target[1:, :, 8:12, 8:12] = 1, 2
    return a_batch(torch.rand(samples, 1, 16, 16, dtype=torch.float64), target)


def a_training(student=None, **settings):
    student = student or Student()
    return student, SAML(**settings).training_module(student).double()


def test_the_terms_are_those_of_the_third_domain_after_a_step_on_two_others():
    student, training = a_training(step_size=0.5)
    batch = the_batch()
    training.draw = lambda: [1, 2, 0]
    terms = training.losses(Step(student, batch, 0))
    network = student.network
    torch.testing.assert_close(terms["segmentation"], student.loss(network(batch.data), batch.target))
    inner = sum(student.loss(network(batch.data[i : i + 1]), batch.target[i : i + 1]) for i in (2, 0)) / 2
    gradients = torch.autograd.grad(inner, list(network.parameters()))
    found = torch.autograd.grad(terms["segmentation_meta"], list(network.parameters()), retain_graph=True)
    with torch.no_grad():
        for parameter, gradient in zip(network.parameters(), gradients, strict=True):
            parameter -= 0.5 * gradient * min(1, 10 / gradient.norm())
    output = network(batch.data[1:2])
    meta = student.loss(output, batch.target[1:2])
    torch.testing.assert_close(terms["segmentation_meta"], meta)
    for own, wanted in zip(
        found, torch.autograd.grad(meta, list(network.parameters()), retain_graph=True), strict=True
    ):
        torch.testing.assert_close(own, wanted)
    torch.testing.assert_close(terms["compactness"], compactness(output.softmax(1)[:, 1:]).sum())
    assert torch.isfinite(terms["smoothness"])
    terms["smoothness"].backward()
    assert all((parameter.grad != 0).any() for parameter in training.metric.parameters())


def test_the_step_weighs_both_domains_alike_whatever_their_numbers_of_samples():
    student, training = a_training(step_size=0.5, compactness=0, smoothness=0)
    batch = the_batch(4)
    batch = replace(batch, keys=("b", "b", "c", "a"))
    training.draw = lambda: [0, 1, 2]
    terms = training.losses(Step(student, batch, 0))
    network = student.network
    inner = (student.loss(network(batch.data[:2]), batch.target[:2])
             + student.loss(network(batch.data[2:3]), batch.target[2:3])) / 2  # fmt: skip
    gradients = torch.autograd.grad(inner, list(network.parameters()))
    with torch.no_grad():
        for parameter, gradient in zip(network.parameters(), gradients, strict=True):
            parameter -= 0.5 * gradient * min(1, 10 / gradient.norm())
    meta = student.loss(network(batch.data[3:]), batch.target[3:])
    torch.testing.assert_close(terms["segmentation_meta"], meta)


def test_only_the_second_domain_of_the_step_has_no_band():
    _, training = a_training()
    seen = []
    training._smoothness = lambda found, has_band: (seen.append(has_band.tolist()), found.border.sum())[1]
    student, batch = training.student, the_batch()
    training.draw = lambda: [1, 2, 0]
    training.losses(Step(student, batch, 0))
    assert seen == [[True, False, True]]


def test_the_compactness_skips_shapes_that_the_prediction_lacks():
    _, training = a_training()
    logits = torch.zeros(1, 3, 32, 32, 32)
    logits[:, 1:] = -20
    logits.requires_grad_()
    value = training._compactness(logits, torch.ones(1, 2, 32, 32, 32, dtype=torch.bool))
    assert value == 0
    assert (torch.autograd.grad(value, logits)[0] == 0).all()


def test_the_compactness_skips_classes_that_the_label_lacks():
    _, training = a_training()
    logits = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    masks = torch.zeros(2, 2, 8, 8, dtype=torch.bool)
    masks[0, 0, 2:4, 2:4] = masks[1, 1, 2:4, 2:4] = True
    values = compactness(logits.softmax(1)[:, 1:])
    torch.testing.assert_close(training._compactness(logits, masks), (values[0, 0] + values[1, 1]) / 2)


def test_each_domain_is_drawn_and_all_devices_draw_alike():
    student, training = a_training()
    training.samples.see(the_batch(), [0, 1, 2])
    torch.manual_seed(0)
    assert {training.draw()[0] for _ in range(30)} == {0, 1, 2}
    assert all(sorted(training.draw()) == [0, 1, 2] for _ in range(5))
    student.agreed = lambda value: torch.tensor([2, 0, 1])
    student.gathered = lambda values: torch.cat([values, torch.tensor([[1.0, 0.0, 1.0]])])
    assert training.draw() == [2, 0]  # another device has not seen domain 1


@pytest.mark.parametrize("smoothness", [0.005, 0])
def test_before_two_domains_were_seen_the_loss_is_nnunets_own(smoothness):
    student, training = a_training(smoothness=smoothness)
    terms = training.losses(Step(student, the_batch(1), 0))
    assert set(terms) == set(training.weights(0))
    assert all(value == 0 for name, value in terms.items() if name != "segmentation")
    sum(terms.values()).backward()
    assert all((parameter.grad == 0).all() for parameter in training.parameters())  # DDP needs a gradient
    assert len(student.passes) == 1


def test_a_domain_that_the_batch_lacks_is_represented_by_its_last_sample():
    samples, first, second = DomainSamples(), the_batch(3, 1), the_batch(2, 2)
    samples.see(first, [0, 1, 1])
    assert samples.known() == {0, 1}
    assert torch.equal(samples.of(1).data, first.data[1:])
    samples.see(second, [0, 2])
    assert samples.known() == {0, 1, 2}
    assert torch.equal(samples.of(1).data, first.data[2:])
    assert torch.equal(samples.of(0).data, second.data[:1])
    assert samples.of(2).keys == ("b",)
    first.data.zero_()
    assert samples.of(1).data.any()


def test_a_resumed_training_has_the_last_sample_of_each_domain_that_its_batch_lacks(tmp_path):
    student, training = a_training()
    first = replace(the_batch(4, 1), keys=("a", "c", "c", "a"))
    training.losses(Step(student, first, 0))
    torch.save(training.state_dict(), tmp_path / "checkpoint.pth")
    other, resumed = a_training()
    saved = torch.load(tmp_path / "checkpoint.pth", weights_only=True)
    assert {key: value for key, value in saved.items() if "metric" not in key}.keys() == {"samples._extra_state"}
    assert [sample["data"].shape[0] for sample in saved["samples._extra_state"].values()] == [1, 1]
    resumed.load_state_dict(saved)
    assert torch.equal(resumed.samples.of(2).data, first.data[2:3])
    second, terms = replace(the_batch(2, 2), keys=("a", "b")), []
    for each_student, each in ((student, training), (other, resumed)):
        each.draw = lambda: [2, 0, 1]
        terms.append(each.losses(Step(each_student, second, 0)))
    assert terms[0].keys() == terms[1].keys()
    assert all(torch.equal(value, terms[1][name]) for name, value in terms[0].items())
    assert terms[0]["segmentation_meta"] > 0


def test_terms_of_weight_0_are_not_computed():
    student, training = a_training(compactness=0, smoothness=0)
    assert set(training.losses(Step(student, the_batch(), 0))) == {"segmentation", "segmentation_meta"}
    assert not list(training.parameters())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"step_size": 0}, r"step_size must be a number in \(0, 1\]; got 0"),
        ({"margin": 0}, "margin must be a number in"),
        ({"compactness": -1}, "compactness must be a number in"),
    ],
)
def test_settings_are_refused_by_name(settings, message):
    with pytest.raises(SettingsError, match=message):
        SAML(**settings)
