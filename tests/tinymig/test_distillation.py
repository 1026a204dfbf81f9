"""The alignments of table 7: vectors, naive references, properties and gradients."""

import math

import pytest
import torch
from styled_features import assert_values
from torch.nn import functional as F

from nnunet_dg.tinymig.attention import AttentionTerm, BlockAttention, refined_difference
from nnunet_dg.tinymig.distillation import (
    FEATURE_TERMS,
    AttentionTransferTerm,
    FeatureDistillation,
    attention_map,
    attention_transfer,
    channelwise_divergence,
    on_one_grid,
)
from nnunet_dg.tinymig.multilevel import (
    REFERENCE_SAMPLES,
    TEMPERATURES,
    WEIGHT,
    batch_level,
    class_level,
    drawn,
    instance_level,
    multilevel_distillation,
    probabilities,
)

DOUBLE = torch.float64
S = torch.tensor([[[0.0, 1, 2, 1], [2, 2, 0, 0]]], dtype=DOUBLE)  # 1 sample, 2 channels, 4 voxels
T = torch.tensor([[[1.0, 1, 3, 1], [0, 4, 0, 0]]], dtype=DOUBLE)
STUDENT = torch.tensor([[2.0, 0, -1], [0, 1, 0]], dtype=DOUBLE)  # logits of 2 voxels, 3 classes
TEACHER = torch.tensor([[3.0, -1, 0], [0, 2, 1]], dtype=DOUBLE)


def noise(*shape, seed=0, dtype=DOUBLE):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_channelwise_divergence_agrees_with_its_reference():
    assert_values(channelwise_divergence(T, S), 0.652245)
    assert_values(channelwise_divergence(T, S, temperature=1.0), 0.360476)


def test_attention_transfer_agrees_with_its_reference():
    assert_values(attention_map(S), [[0.525226, 0.656532, 0.525226, 0.131306]])
    assert_values(attention_map(T), [[0.051848, 0.881409, 0.466628, 0.051848]])
    assert_values(attention_transfer(T, S), 0.071101)
    assert_values(500 * attention_transfer(T, S), 35.550476)


def test_the_difference_of_refined_maps_agrees_with_its_reference():
    assert_values(refined_difference(T, S), 0.383756)


def test_the_levels_of_mlkd_agree_with_their_reference():
    assert_values(instance_level(TEACHER, STUDENT, 4.0), [0.351751, 0.098609])
    assert_values(instance_level(TEACHER, STUDENT, 4.0).mean(), 0.225180)
    p, q = probabilities(TEACHER, 4.0), probabilities(STUDENT, 4.0)
    assert_values(batch_level(p, q), 0.001156)
    assert_values(class_level(p, q), 0.002443)
    assert_values(sum(instance_level(TEACHER, STUDENT, t).mean() for t in TEMPERATURES), 1.070104)
    assert_values(instance_level(TEACHER, STUDENT, 4.0, regions=True), [0.360716, 0.243666])


@pytest.mark.parametrize("spatial", [(5,), (3, 4), (2, 3, 4)])
def test_channelwise_divergence_equals_a_loop(spatial):
    t, s = noise(2, 3, *spatial, seed=1), noise(2, 3, *spatial, seed=2)
    total = 0.0
    for i in range(2):
        for channel in range(3):
            p, q = (x[i, channel].flatten().div(4).exp().tolist() for x in (t, s))
            p, q = ([value / sum(values) for value in values] for values in (p, q))
            total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    assert float(channelwise_divergence(t, s)) == pytest.approx(16 * total / 6)


@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("ignored", [(), (1, 4)])
def test_mlkd_equals_a_loop_over_all_voxels(regions, ignored):
    """With fewer voxels than are drawn, all of them are compared with each other."""
    t, s = noise(2, 3, 2, 3, seed=1), noise(2, 3, 2, 3, seed=2)
    valid = torch.ones(12, dtype=torch.bool)
    valid[list(ignored)] = False
    total, number = 0.0, 12 - len(ignored)
    voxels = [[x.movedim(1, -1).reshape(-1, 3)[i].tolist() for i in range(12)] for x in (t, s)]
    for temperature in TEMPERATURES:
        rows = []
        for logits in voxels:
            if regions:
                inside = [[1 / (1 + math.exp(-v / temperature)) for v in row] for row in logits]
                rows.append([[*row, *(1 - p for p in row)] for row in inside])
            else:
                exps = [[math.exp(v / temperature) for v in row] for row in logits]
                rows.append([[e / sum(row) for e in row] for row in exps])
        p, q = ([row if valid[i] else [0.0] * len(row) for i, row in enumerate(side)] for side in rows)
        for i in range(12):
            if valid[i]:
                divergence = sum(a * math.log(a / b) for a, b in zip(p[i], q[i], strict=True))
                total += temperature**2 * divergence / number
        for i in range(12):
            for j in range(12):
                products = [sum(a * b for a, b in zip(side[i], side[j], strict=True)) for side in (p, q)]
                total += REFERENCE_SAMPLES * (products[0] - products[1]) ** 2 / number**2
        columns = len(p[0])
        for k in range(columns):
            for m in range(columns):
                products = [sum(row[k] * row[m] for row in side) for side in (p, q)]
                total += REFERENCE_SAMPLES * (products[0] - products[1]) ** 2 / columns / number**2
    result = multilevel_distillation(t, s, valid.reshape(2, 2, 3), regions)
    assert float(result) == pytest.approx(WEIGHT * total)


def test_mlkd_draws_valid_voxels_and_without_valid_ones_it_is_zero():
    mask = (torch.arange(5000) % 3 == 0).double()
    first, second = drawn(mask), drawn(mask)
    assert len(first) == len(set(first.tolist())) == 1024
    assert mask[first].all()
    assert first.tolist() != second.tolist()
    assert sorted(drawn(torch.ones(7)).tolist()) == list(range(7))
    student = noise(1, 3, 4, 5).requires_grad_()
    loss = multilevel_distillation(noise(1, 3, 4, 5, seed=1), student, torch.zeros(1, 4, 5, dtype=torch.bool))
    loss.backward()
    assert float(loss.detach()) == 0
    assert student.grad.abs().max() == 0


def test_mlkd_does_not_grow_with_the_number_of_voxels():
    t, s = noise(2, 3, 40, 40, seed=1), noise(2, 3, 40, 40, seed=2)
    few = multilevel_distillation(t[..., :22, :22], s[..., :22, :22], torch.ones(2, 22, 22, dtype=torch.bool))
    many = multilevel_distillation(t, s, torch.ones(2, 40, 40, dtype=torch.bool))
    assert float(many) == pytest.approx(float(few), rel=0.2)


def test_the_levels_of_mlkd_have_gradients_of_one_order():
    t = noise(2, 3, 40, 40, seed=1) + torch.tensor([2.0, 0, -1], dtype=DOUBLE)[:, None, None]
    student = noise(2, 3, 40, 40, seed=2).requires_grad_()
    whole = multilevel_distillation(t, student, torch.ones(2, 40, 40, dtype=torch.bool))
    rows = [logits.movedim(1, -1).flatten(0, -2) for logits in (t, student)]
    instances = WEIGHT * sum(instance_level(*rows, temperature).mean() for temperature in TEMPERATURES)
    instance, others = (torch.autograd.grad(x, student, retain_graph=True)[0] for x in (instances, whole - instances))
    assert 0.1 < float((others.norm() / instance.norm()).detach()) < 10


def test_block_attention_equals_its_formula():
    torch.manual_seed(0)
    module, x = BlockAttention(2, 32).double(), noise(2, 32, 5, 6)
    down, _, up = module.perceptron
    assert down.weight.shape == (2, 32)

    def perceptron(values):
        return F.linear(F.relu(F.linear(values, down.weight, down.bias)), up.weight, up.bias)

    channels = torch.sigmoid(perceptron(x.mean((2, 3))) + perceptron(x.amax((2, 3))))[..., None, None]
    y = x * channels
    maps = torch.stack([y.mean(1), y.amax(1)], 1)
    torch.testing.assert_close(module(x), y * F.conv2d(maps, module.convolution.weight, padding=3).sigmoid())


def test_attention_term_normalizes_the_students_map_and_trains_both_attentions():
    term = AttentionTerm(6, 4, 2).double()
    t, s = noise(2, 6, 5, 5, seed=1), noise(2, 4, 5, 5, seed=2)
    mapped = F.instance_norm(F.conv2d(s, term.connector[0].weight, term.connector[0].bias), eps=1e-3)
    expected = 2 * refined_difference(term.of_teacher(t), term.of_student(mapped))
    torch.testing.assert_close(term(t, s), expected)
    term(t, s).backward()
    assert all(parameter.grad is not None for parameter in term.parameters())


@pytest.mark.parametrize(("grid", "shape"), [((5, 6), (5, 6)), ((80, 7), (64, 7)), ((50, 3, 4), (32, 3, 4))])
def test_maps_meet_on_the_smaller_grid_and_the_teachers_gets_no_gradient(grid, shape):
    teacher = noise(1, 3, *grid, seed=1).requires_grad_()
    student = noise(1, 2, *grid, seed=2).requires_grad_()
    t, s = on_one_grid(teacher, student)
    assert t.shape[2:] == s.shape[2:] == shape
    assert not t.requires_grad
    assert s.requires_grad
    smaller = on_one_grid(noise(1, 3, *[2] * len(grid)), student)
    assert smaller[1].shape[2:] == (2,) * len(grid)


def test_attention_transfer_weighs_the_sum_over_voxels():
    t, s = noise(2, 3, 32, 32, seed=1), noise(2, 5, 32, 32, seed=2)
    term = AttentionTransferTerm(3, 5, 2)
    torch.testing.assert_close(term(t, s), 500 * attention_transfer(t, s))
    t, s = noise(2, 3, 4, 4, 4, seed=1), noise(2, 5, 4, 4, 4, seed=2)
    torch.testing.assert_close(term(t, s), 500 * attention_transfer(t, s) * 64 / 1024)


@pytest.mark.parametrize("kind", FEATURE_TERMS)
@pytest.mark.parametrize("dims", [2, 3])
def test_distillation_is_the_mean_over_depths_and_trains_the_student_and_itself(kind, dims):
    torch.manual_seed(0)
    module = FeatureDistillation(kind, (6, 8), (4, 8), dims).double()
    teacher = [noise(2, 6, *[6] * dims, seed=1), noise(2, 8, *[4] * dims, seed=2)]
    student = [noise(2, 4, *[8] * dims, seed=3), noise(2, 8, *[4] * dims, seed=4)]
    for feature in (*teacher, *student):
        feature.requires_grad_()
    loss = module(teacher, student)
    expected = [term(*on_one_grid(*maps)) for term, *maps in zip(module.terms, teacher, student, strict=True)]
    torch.testing.assert_close(loss, (expected[0] + expected[1]) / 2)
    loss.backward()
    assert all(feature.grad is None for feature in teacher)
    assert all(feature.grad.abs().max() > 0 for feature in student)
    assert all(parameter.grad is not None for parameter in module.parameters())


@pytest.mark.parametrize("function", [channelwise_divergence, attention_transfer, refined_difference])
def test_equal_features_give_zero_and_gradients_agree_with_finite_differences(function):
    t, s = noise(2, 3, 2, 2, seed=1), noise(2, 3, 2, 2, seed=2).requires_grad_()
    assert float(function(t, t)) == pytest.approx(0, abs=1e-12)
    assert float(function(t, s).detach()) > 1e-3
    assert torch.autograd.gradcheck(lambda x: function(t, x), s)


@pytest.mark.parametrize("regions", [False, True])
def test_mlkd_gradients_agree_with_finite_differences(regions):
    t, s = noise(1, 2, 2, 2, seed=1), noise(1, 2, 2, 2, seed=2).requires_grad_()
    valid = torch.tensor([[[True, True], [False, True]]])
    assert torch.autograd.gradcheck(lambda x: multilevel_distillation(t, x, valid, regions), s)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", FEATURE_TERMS)
@pytest.mark.parametrize("value", [0.0, 300.0])
def test_constant_and_large_features_have_finite_gradients_in_half_precision(kind, dtype, value):
    torch.manual_seed(0)
    module = FeatureDistillation(kind, (6,), (4,), 2)
    student = torch.full((1, 4, 4, 4), value, dtype=dtype, requires_grad=True)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        loss = module([noise(1, 6, 4, 4).to(dtype) * 300], [student])
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("regions", [False, True])
def test_mlkd_is_finite_for_extreme_logits(regions):
    student = torch.full((1, 2, 3, 3), 6e4, dtype=torch.float16).requires_grad_()
    loss = multilevel_distillation(-student, student, torch.ones(1, 3, 3, dtype=torch.bool), regions)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(student.grad).all()
