import numpy as np
import pytest
import torch

from nnunet_dg.adaptation.boosting import RAREST, boosted
from nnunet_dg.adaptation.calibration import balanced, log_loss, temperature
from nnunet_dg.adaptation.correction import confusion, corrected, corrected_region, joint, joint_region, products
from nnunet_dg.adaptation.mixing import ALPHAS, best, mixed

DOUBLE = {"dtype": torch.float64}
TWO = torch.tensor([[0.9, 0.8, 0.3, 0.2], [0.1, 0.2, 0.7, 0.8]], **DOUBLE)
THREE = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]], **DOUBLE).T
UNSTABLE = torch.tensor([[0.5, 0.3, 0.2], [0.25, 0.5, 0.25], [0.3, 0.3, 0.4]], **DOUBLE).T


def prior(stable):
    return stable.mean(1)


def near(values):
    return pytest.approx(np.asarray(values), abs=5e-7)


def test_temperature_worked_out_by_hand():
    """SFB-1."""
    logits, target = torch.tensor([[2.0, 0.0]] * 4), torch.tensor([0, 0, 0, 1])
    found = temperature(logits, target)
    assert found == pytest.approx(1.820478, abs=5e-7)
    assert (logits[0] / found).softmax(0)[0].item() == pytest.approx(0.75, abs=5e-7)
    assert temperature(torch.tensor([[1.0], [1.0]]), torch.tensor([[True], [True]])) == pytest.approx(0.05, rel=1e-5)
    membership = torch.tensor([[True], [True], [True], [False]])
    assert temperature(torch.full((4, 1), 2.0), membership) == pytest.approx(1.820478, abs=5e-7)


def test_temperature_is_the_best_of_a_grid_and_strata_count_the_same():
    generator = torch.Generator().manual_seed(0)
    target = torch.arange(200) % 3
    logits = 3 * torch.randn(200, 3, generator=generator, **DOUBLE) + 2 * torch.eye(3, **DOUBLE)[target]
    weights = balanced(target // 2 * 2)  # labels 0 and 2
    found = temperature(logits, target, weights)
    grid = torch.logspace(-1, 1, 2001, **DOUBLE).tolist()
    losses = [log_loss(logits / t, target, weights).item() for t in grid]
    assert found == pytest.approx(grid[int(np.argmin(losses))], rel=2e-3)
    assert weights[target != 2].sum().item() == pytest.approx(1)
    assert weights[target == 2].sum().item() == pytest.approx(1)


def test_two_classes_worked_out_by_hand():
    """SFB-2."""
    matrix = confusion(products(TWO, TWO))
    assert prior(TWO).numpy() == near((0.55, 0.45))
    assert matrix.diagonal().numpy() == near((0.718182, 0.655556))
    u = torch.tensor([0.30, 0.45, 0.60, 0.95], **DOUBLE)
    eta = corrected_region(u, matrix)
    assert eta.numpy() == near((0.048649, 0.45, 0.851351, 0.9999))
    expected = (0.006897, 0.2, 0.942308, 0.99998)
    assert joint_region(TWO[1], eta, prior(TWO)[1]).numpy() == near(expected)
    general = joint(TWO, corrected(torch.stack([1 - u, u]), matrix), prior(TWO))
    assert general[1].numpy() == pytest.approx(np.array(expected), abs=1e-4)  # both clip eta, but differently


def test_three_classes_worked_out_by_hand():
    """SFB-3; rows are classes, columns are voxels."""
    matrix = confusion(products(THREE, THREE))
    assert matrix.numpy() == near([[0.54, 0.216667, 0.25], [0.26, 0.6, 0.275], [0.2, 0.183333, 0.475]])
    eta = corrected(UNSTABLE, matrix)
    assert eta.numpy() == near([[0.875556, 0.08, 0.182222], [0.117333, 0.696, 0.085333], [0.007111, 0.224, 0.732444]])
    assert joint(THREE, eta, prior(THREE)).numpy() == near(
        [[0.967719, 0.016, 0.060741], [0.030877, 0.928, 0.023704], [0.001404, 0.056, 0.915556]]
    )


def test_agrees_with_loops():
    classes, voxels = THREE.shape
    matrix = confusion(products(THREE, THREE))
    for j in range(classes):
        for k in range(classes):
            agreement = sum(THREE[j, v] * THREE[k, v] for v in range(voxels))
            assert matrix[j, k].item() == pytest.approx((agreement / sum(THREE[k])).item())
    pi, eta = prior(THREE), corrected(UNSTABLE, matrix)
    for v in range(voxels):
        product = [(THREE[k, v] * eta[k, v] / pi[k]).item() for k in range(classes)]
        assert joint(THREE, eta, pi)[:, v].numpy() == pytest.approx(np.array(product) / sum(product))


def test_properties_of_the_correction():
    matrix = confusion(products(THREE, THREE))
    assert matrix.sum(0).numpy() == near((1, 1, 1))
    true = torch.tensor([[0.6, 0.2], [0.3, 0.3], [0.1, 0.5]], **DOUBLE)
    assert corrected(matrix @ true, matrix).numpy() == near(true)  # what the model learns, undone
    certain = torch.eye(3, **DOUBLE).repeat(1, 2)
    assert confusion(products(certain, certain)).numpy() == near(np.eye(3))
    pi = prior(THREE)
    assert joint(THREE, pi[:, None].expand(3, 3), pi).numpy() == near(THREE)  # no evidence: the stable prediction
    assert joint_region(TWO[1], prior(TWO)[1].expand(4), prior(TWO)[1]).numpy() == near(TWO[1])


def test_the_matrix_of_later_rounds_undoes_what_a_model_learns_from_their_pseudo_labels():
    """q is the joint prediction of SFB-3, and f as there. M[0, 0] = (.967719 * .7 + .016 * .1 + .060741 * .2) / 1."""
    q = torch.tensor([[0.967719, 0.016, 0.060741], [0.030877, 0.928, 0.023704], [0.001404, 0.056, 0.915556]], **DOUBLE)
    matrix = confusion(products(q, THREE))
    assert matrix[0, 0].item() == pytest.approx(0.691151, abs=1e-6)
    true = torch.tensor([[0.6, 0.2, 0.3], [0.3, 0.3, 0.4], [0.1, 0.5, 0.3]], **DOUBLE)
    u, f = stretched(matrix @ true, 400), stretched(THREE, 400)
    logits, left = boosted(f, u, stretched(q, 400), 1.0)
    assert left == []
    expected = joint(THREE, true, prior(THREE))
    assert logits.float().softmax(0)[:, ::400].numpy() == pytest.approx(expected.numpy(), abs=3e-3)
    label, p = q[0], THREE[0]  # as a region
    inside, outside = (label * p).sum() / p.sum(), ((1 - label) * (1 - p)).sum() / (1 - p).sum()
    u = (inside * true[0] + (1 - outside) * (1 - true[0])).repeat_interleave(400).logit()[None].float()
    region, left = boosted(stretched_region(p), u, stretched_region(label), 1.0, regions=True)
    assert left == []
    assert region.float().sigmoid()[0, ::400].numpy() == pytest.approx(
        joint_region(p, true[0], p.mean()).numpy(), abs=3e-3
    )


def stretched(probabilities, times):
    return probabilities.repeat_interleave(times, 1).log().float()


def stretched_region(probabilities, times=400):
    return probabilities.repeat_interleave(times).logit()[None].float()


@pytest.mark.parametrize("temperature_of_stable", [1.0, 2.0])
def test_a_volume_is_boosted_as_its_voxels_are(temperature_of_stable):
    f, u = stretched(THREE, 400), stretched(UNSTABLE, 400)
    f, u = f.half().reshape(3, 3, 20, 20), u.half().reshape(3, 3, 20, 20)
    logits, left = boosted(f * temperature_of_stable, u, f, temperature_of_stable)
    assert logits.shape == (3, 3, 20, 20)
    assert logits.dtype == torch.float16
    assert left == []
    matrix = confusion(products(THREE, THREE))
    expected = joint(THREE, corrected(UNSTABLE, matrix), prior(THREE))
    assert logits.float().softmax(0).flatten(1)[:, ::400].numpy() == pytest.approx(expected.numpy(), abs=3e-3)


def test_regions_are_boosted_one_by_one_and_in_parts(monkeypatch):
    f, u = TWO[1:].repeat(2, 300).logit().float(), torch.tensor([[0.30, 0.45, 0.60, 0.95]]).repeat(2, 300).logit()
    f[1], u[1] = f[1].flip(0), u[1].flip(0)
    whole, left = boosted(f, u, f, 1.0, regions=True)
    expected = np.tile((0.006897, 0.2, 0.942308, 0.99998), 300)
    assert left == []
    assert whole[0].float().sigmoid().numpy() == pytest.approx(expected, abs=2e-3)
    assert torch.equal(whole[1], whole[0].flip(0))
    monkeypatch.setattr("nnunet_dg.adaptation.boosting.PART", 7)
    assert torch.allclose(boosted(f, u, f, 1.0, regions=True)[0].float(), whole.float(), atol=5e-3)
    f, u = stretched(THREE, 50), stretched(UNSTABLE, 50)
    classes = boosted(f, u, f, 1.0)[0]
    monkeypatch.undo()
    assert torch.allclose(classes.float(), boosted(f, u, f, 1.0)[0].float())


def test_a_rare_class_is_not_corrected_and_not_multiplied_up():
    voxels = 20_000
    f, u = torch.full((3, voxels), 1e-6), torch.full((3, voxels), 1e-6)
    f[0], f[1, : voxels // 2], u[0], u[1, : voxels // 2] = 0.2, 0.8, 0.3, 0.7
    f[0, voxels // 2 :], u[0, voxels // 2 :] = 1, 1
    u[2, 5] = 1e-3  # a thousand times its frequency, which is that of an absent organ
    f, u = f / f.sum(0), u / u.sum(0)
    assert f[2].sum() < RAREST
    logits, left = boosted(f.log(), u.log(), f.log(), 1.0)
    assert left == [2]
    q = logits.float().softmax(0)
    assert q[2].max() < 1e-3
    assert (q.argmax(0) == f.argmax(0)).all()


def test_a_model_that_cannot_tell_the_classes_apart_is_not_inverted():
    f = torch.tensor([[0.5], [0.5]]).repeat(1, 1000).log()
    u = torch.tensor([[0.9], [0.1]]).repeat(1, 1000).log()
    logits, left = boosted(f, u, f, 1.0)
    assert left == [0, 1]
    assert logits.float().softmax(0)[0].numpy() == pytest.approx(np.full(1000, 0.9), abs=1e-3)
    even = torch.zeros(1, 1000)
    logits, left = boosted(even, torch.full((1, 1000), 2.0), even, 1.0, regions=True)
    assert left == [0]
    assert logits[0].float().numpy() == pytest.approx(np.full(1000, 2.0), abs=2e-3)


def test_mixed_logits_worked_out_by_hand():
    """ALPHA-1."""
    logits = mixed(torch.tensor([2.0, 0.0, -1.0]), torch.tensor([-1.0, 1.0, 0.0]), 0.25)
    assert logits.tolist() == [1.25, 0.25, -0.75]
    assert logits.softmax(0).numpy() == near((0.665241, 0.244728, 0.090031))
    assert abs(logits.softmax(0)[0].item() - 0.655354) > 9e-3  # the mixture of probabilities


def test_a_mixture_has_each_model_at_its_ends_and_keeps_its_dtype():
    stable, unstable = torch.tensor([6e4, -1.0]).half(), torch.tensor([6e4, 2.0]).half()
    assert mixed(stable, unstable, 0) is stable
    assert mixed(stable, unstable, 1.0) is unstable
    half = mixed(stable, unstable, 0.5)
    assert half.dtype == torch.float16
    assert half.tolist() == [stable[0].item(), 0.5]


def test_the_smallest_of_equally_good_alphas_is_chosen():
    assert ALPHAS == (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    assert best({0.5: 0.9, 0.2: 0.9, 0.1: 0.8, 1.0: 0.9}) == 0.2


def test_an_absent_class_is_not_multiplied_up():
    """In 10 000 voxels, one voxel of class 2 is expected, and its frequency counts as that of 100."""
    f = torch.tensor([0.6, 0.3999, 0.0001]).expand(10_000, 3).T
    u = torch.tensor([0.5, 0.3, 0.2]).expand(10_000, 3).T
    logits, uncorrected = boosted(f.log(), u.log(), f.log(), 1.0)
    assert 2 in uncorrected
    odds = logits.float().softmax(0)[2, 0] / (1 - logits.float().softmax(0)[2, 0])
    share = 0.0001 * 0.2 / 0.01  # f eta / pi, with pi = 100 / 10 000
    others = (1 - 0.2) * torch.tensor([1.0, 1.0])  # f / pi is 1, and eta sums to 0.8
    assert float(odds) == pytest.approx(share / float(others.mean()), rel=0.01)
