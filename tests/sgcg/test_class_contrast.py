"""The contrastive loss of a step: chosen voxels, statistics and gradients; partners, ratios and settings of SgCG."""

import pytest
import torch
from pretended_gpu import GPU, pretended_gpu
from torch.nn import functional as F

from nnunet_dg.errors import SettingsError
from nnunet_dg.sgcg import ClassContrast, Partners, SgCGSettings, contrastive_upper_bound, random_ratio
from nnunet_dg.sgcg.class_contrast import choose_voxels, draw_voxels

K, A = 3, 4


def step(spatial=(5, 6, 7), maps=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    features = [torch.randn(2, A, *spatial, generator=generator).requires_grad_() for _ in range(maps)]
    return features, torch.randint(-1, K, (2, *spatial), generator=generator)


def reference(features, classes):
    """The loss of all voxels of all maps, computed voxel by voxel."""
    q, y = [], []
    for one in features:
        for b in range(len(classes)):
            for place in classes[b].ge(0).nonzero().tolist():
                q.append(F.normalize(one[(b, slice(None), *place)], dim=0))
                y.append(classes[(b, *place)])
    q, y = torch.stack(q), torch.stack(y)
    members = [q[y == k].detach() for k in range(K)]
    mean = torch.stack([m.mean(0) for m in members])
    covariance = torch.stack([torch.cov(m.T, correction=0) for m in members])
    return contrastive_upper_bound(q, y, mean, covariance, 0.1)


@pytest.mark.parametrize("spatial", [(6, 7), (5, 6, 7)])
@pytest.mark.parametrize("maps", [1, 2])
def test_equals_a_voxel_by_voxel_reference_in_value_and_gradient(spatial, maps):
    features, classes = step(spatial, maps)
    loss = ClassContrast(K, A, 0.1, voxels_per_class=10_000)(features, classes)
    expected = reference(features, classes)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    for one, other in zip(torch.autograd.grad(loss, features), torch.autograd.grad(expected, features), strict=True):
        assert one.abs().max() > 0
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


def test_statistics_are_those_of_normalized_features_and_carry_no_gradient():
    features, classes = step(maps=1)
    contrast = ClassContrast(K, A)
    contrast([100 * features[0]], classes)
    assert contrast.statistics.mean.norm(dim=1).max() <= 1
    assert not any(buffer.requires_grad for buffer in contrast.statistics.buffers())
    assert contrast.statistics.count.tolist() == [(classes == k).sum() for k in range(K)]


def test_the_same_chosen_voxels_enter_statistics_and_loss():
    features, classes = step()
    contrast = ClassContrast(K, A, voxels_per_class=10)
    contrast(features, classes).backward()
    assert contrast.statistics.count.tolist() == [10, 10, 10]
    touched = [(one.grad.abs().sum(1) > 0) for one in features]
    for mask in touched:
        assert [int((mask & (classes == k)).sum()) for k in (-1, *range(K))] == [0, 5, 5, 5]
    assert not (touched[0] & touched[1]).any()  # the maps have different voxels, since there are enough
    chosen = torch.cat([F.normalize(f.movedim(1, -1)[t], dim=1) for f, t in zip(features, touched, strict=True)])
    torch.testing.assert_close(contrast.statistics.mean.mean(0), chosen.mean(0).detach())


def test_observe_updates_the_statistics_like_the_loss():
    features, classes = step()
    one, other = ClassContrast(K, A, voxels_per_class=10), ClassContrast(K, A, voxels_per_class=10)
    torch.manual_seed(0)
    one(features, classes)
    torch.manual_seed(0)
    other.observe(features, classes)
    for name, buffer in one.named_buffers():
        assert torch.equal(buffer, other.get_buffer(name))


def test_frequent_classes_do_not_dominate_the_statistics():
    classes = torch.zeros(1, 40, 50, dtype=torch.long)
    classes[0, 0, :20] = 1
    contrast = ClassContrast(2, A, voxels_per_class=30)
    for _ in range(5):
        contrast.observe([torch.randn(1, A, 40, 50)], classes)
    assert contrast.statistics.count.tolist() == [150, 100]


def test_many_classes_share_the_voxels_of_four():
    generator = torch.Generator().manual_seed(0)
    classes = torch.randint(118, (1, 200, 200), generator=generator)
    contrast = ClassContrast(118, A, voxels_per_class=1000)
    contrast.observe([torch.randn(1, A, 200, 200)], classes)
    assert contrast.statistics.count.unique().tolist() == [4000 // 118]


@pytest.mark.skipif(torch.cuda.is_available(), reason="the GPU is a pretended one")
@pytest.mark.parametrize("num_classes", [3, 60])
def test_the_host_does_not_wait_for_a_gpu(num_classes):
    with pretended_gpu() as gpu:
        contrast = ClassContrast(num_classes, A).to(GPU)
        features = [torch.randn(2, A, 20, 20, device=GPU, requires_grad=True) for _ in range(2)]
        classes = torch.randint(num_classes, (2, 20, 20), device=GPU)
        gpu.waits.clear()
        contrast(features, classes).backward()
        assert not gpu.waits
        assert contrast.statistics.count.sum().item() == 1600  # each of the 800 voxels in both maps


def with_variable_sizes(classes, num_classes, most, draws):
    """The indices of `draw_voxels`, one class at a time."""
    key = torch.rand(len(classes))
    result = [[] for _ in range(draws)]
    for k in range(num_classes):
        members = (classes == k).nonzero().squeeze(1)
        members = members[key[members].argsort()]
        for draw in range(draws):
            ranks = (draw * most + torch.arange(min(most, len(members)))) % max(len(members), 1)
            result[draw].append(members[ranks])
    return [torch.cat(parts) for parts in result]


@pytest.mark.parametrize(("number", "num_classes", "most"), [(50, 3, 4), (3000, 3, 40), (20_000, 3, 40), (500, 60, 5)])
def test_drawn_voxels_agree_with_a_loop_over_classes(number, num_classes, most):
    classes = torch.randint(-1, num_classes + 1, (number,), generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    drawn, labels = draw_voxels(classes, num_classes, most, 3)
    torch.manual_seed(1)
    for index, expected in zip(drawn, with_variable_sizes(classes, num_classes, most, 3), strict=True):
        assert torch.equal(index[labels >= 0], expected)
        assert torch.equal(classes[expected], labels[labels >= 0])
        assert ((index >= 0) & (index < number)).all()


def test_the_gradient_of_a_map_is_that_of_indexing_where_classes_have_too_few_voxels():
    """Places without a voxel add a gradient of zero to any voxel, also one that was chosen."""
    features, classes = step(spatial=(3, 4), maps=1)
    contrast = ClassContrast(K, A, voxels_per_class=500)
    (own,) = torch.autograd.grad(contrast(features, classes), features)
    (expected,) = torch.autograd.grad(reference(features, classes), features)
    torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-6)


def test_all_voxels_of_a_rare_class_are_chosen():
    classes = torch.tensor([0] * 50 + [1] * 3 + [-1] * 5)
    chosen = choose_voxels(classes, 3, 10)
    assert classes[chosen].bincount().tolist() == [10, 3]
    assert len(chosen.unique()) == 13


def test_every_voxel_of_a_class_is_chosen_equally_often():
    classes = torch.tensor([0] * 20 + [1] * 500 + [2])
    times = torch.zeros(len(classes))
    for _ in range(2000):
        times[choose_voxels(classes, 3, 5)] += 1
    assert times[:20].numpy() == pytest.approx(500, abs=6 * 500**0.5)
    assert times[20:520].numpy() == pytest.approx(20, abs=6 * 20**0.5)
    assert times[520] == 2000


@pytest.mark.parametrize(("members", "most"), [(30, 10), (25, 10), (12, 10), (4, 10)])
def test_a_voxel_is_drawn_again_only_after_all_others_of_its_class(members, most):
    classes = torch.tensor([1] * members + [0] * 200)
    draws, labels = draw_voxels(classes, 2, most, 3)
    draws = [draw[labels >= 0] for draw in draws]
    own = [draw[classes[draw] == 1].tolist() for draw in draws]
    assert all(len(draw) == len(set(draw)) == min(most, members) for draw in own)
    times = [sum(draw.count(voxel) for draw in own) for voxel in range(members)]
    assert max(times) - min(times) <= 1
    assert all((classes[draw].diff() >= 0).all() for draw in draws)


def test_nothing_is_chosen_without_voxels_of_a_class():
    assert choose_voxels(torch.tensor([-1, 7]), 3, 5).tolist() == []


def test_is_computed_in_single_precision_under_autocast():
    features, classes = step()
    expected = ClassContrast(K, A, voxels_per_class=10_000)(features, classes)
    with torch.autocast("cpu", torch.bfloat16):
        loss = ClassContrast(K, A, voxels_per_class=10_000)(features, classes)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected)
    assert torch.isfinite(ClassContrast(K, A)([f.half() for f in features], classes))


def test_constant_features_and_absent_classes_give_finite_gradients():
    contrast = ClassContrast(K, A)
    contrast([torch.randn(1, A, 4, 4)], torch.zeros(1, 4, 4, dtype=torch.long))
    for dtype in (torch.float32, torch.float16):
        features = torch.zeros(1, A, 4, 4, dtype=dtype, requires_grad=True)
        loss = contrast([features], torch.zeros(1, 4, 4, dtype=torch.long))
        loss.backward()
        assert torch.isfinite(loss)
        assert features.grad.abs().max() < 1e4
    features = torch.zeros(1, A, 4, 4, requires_grad=True)
    loss = ClassContrast(K, A)([features], torch.full((1, 4, 4), -1))
    assert loss == 0


def numbered(*numbers):
    """Samples with different values, which identify them."""
    return torch.tensor(numbers, dtype=torch.float32).reshape(-1, 1, 1, 1)


def test_partners_are_of_another_domain_if_the_batch_has_one():
    domains = torch.tensor([0, 0, 1, 2])
    seen = {i: set() for i in range(4)}
    for _ in range(200):
        for i, j in enumerate(Partners().of(numbered(0, 1, 2, 3), domains).flatten().tolist()):
            seen[i].add(int(j))
    assert seen == {0: {2, 3}, 1: {2, 3}, 2: {0, 1, 3}, 3: {0, 1, 2}}


def test_partners_are_any_other_sample_within_one_domain():
    seen = {
        tuple(Partners().of(numbered(0, 1, 2), torch.zeros(3, dtype=torch.long)).flatten().tolist()) for _ in range(200)
    }
    assert all(j != i for partners in seen for i, j in enumerate(partners))
    assert len(seen) == 8


def test_a_sample_of_a_domain_that_is_not_in_the_batch_is_remembered():
    partners = Partners()
    assert partners.of(numbered(7), torch.tensor([1])).item() == 7  # the only sample so far
    assert partners.of(numbered(8), torch.tensor([1])).item() == 7
    assert set(partners.of(numbered(1, 2), torch.tensor([0, 0])).flatten().tolist()) == {8}
    assert partners.of(numbered(9), torch.tensor([1])).item() == 2  # the last of domain 0


def test_ratios_are_tenths():
    ratios = random_ratio(2000, torch.device("cpu"))
    assert {round(r, 4) for r in ratios.tolist()} == {i / 10 for i in range(1, 11)}


@pytest.mark.parametrize(
    ("name", "value", "accepted"),
    [
        ("contrast", -1, r"a number in \[0, 1e\+06\]"),
        ("contrast", "much", "a number"),
        ("contrast", 10**400, "a number"),
        ("temperature", 0, r"in \[0.001, 1000\]"),
        ("half_width", 0.6, r"in \[0, 0.5\]"),
        ("voxels_per_class", 1.5, "a whole number"),
        ("voxels_per_class", 10**50, "a whole number"),
        ("start_epoch", -1, r"a whole number in \[0, .*, or null"),
        ("start_epoch", 1.0, "a whole number"),
        ("memory", 0, r"a whole number in \[1, .*, or null"),
        ("memory", True, "a whole number"),
        ("max_count", 1, r"in \[2, .*, or null"),
        ("amplitude_mixup", 1, "true or false"),
        ("balanced_batches", "yes", "true or false"),
        ("restoration", True, "a number"),
        ("consistency", float("nan"), "a number"),
        ("consistency", None, "a number"),
    ],
)
def test_errors_name_the_setting_and_the_accepted_values(name, value, accepted):
    with pytest.raises(SettingsError, match=f"{name} must be .*{accepted}.*; got {value!r}"):
        SgCGSettings(**{name: value})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"contrast": 0, "temperature": 0.2}, "temperature 0.2 has no effect with contrast 0. Leave temperature unset"),
        ({"contrast": 0, "start_epoch": 3}, "start_epoch 3 has no effect with contrast 0"),
        ({"contrast": 0, "memory": 9}, "memory 9 has no effect with contrast 0"),
        ({"amplitude_mixup": False, "half_width": 0.2}, "half_width 0.2 has no effect with amplitude_mixup false"),
        ({"amplitude_mixup": False, "restoration": 0}, "restoration 0.* has no effect with amplitude_mixup false"),
    ],
)
def test_settings_of_a_disabled_term_are_refused(options, message):
    with pytest.raises(SettingsError, match=message):
        SgCGSettings(**options)
    assert SgCGSettings(contrast=0, memory=None).memory is None  # the paper's recipe, without its contrast
