"""Cross-distribution consistency: agreement with a naive loop, symmetry and gradients."""

import math

import pytest
import torch

from nnunet_dg.tinymig import cross_distribution_consistency
from nnunet_dg.tinymig.consistency import DIVERGENCES


def logits(seed, shape=(2, 3, 4, 5)):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def naive(a, b, regions, divergence):
    """The divergence, computed voxel by voxel."""
    total = 0.0
    voxels = [(i, *place) for i in range(len(a)) for place in torch.ones(a.shape[2:]).nonzero().tolist()]
    for i, *place in voxels:
        x, y = a[(i, slice(None), *place)].tolist(), b[(i, slice(None), *place)].tolist()
        if regions:
            pairs = [(1 / (1 + math.exp(-u)), 1 / (1 + math.exp(-v))) for u, v in zip(x, y, strict=True)]
            variables = [[(p, q), (1 - p, 1 - q)] for p, q in pairs]
        else:
            sums = [sum(map(math.exp, values)) for values in (x, y)]
            variables = [[(math.exp(u) / sums[0], math.exp(v) / sums[1]) for u, v in zip(x, y, strict=True)]]
        for outcomes in variables:
            for p, q in outcomes:
                m = (p + q) / 2
                if divergence == "kl_one_way":
                    total += p * math.log(p / q)
                elif divergence == "kl":
                    total += (p - q) * math.log(p / q)
                elif divergence == "js":
                    total += (p * math.log(p / m) + q * math.log(q / m)) / 2
                else:
                    total += (p - q) ** 2 / (2 if regions else 1)
    return total / len(voxels)


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("regions", [False, True])
def test_equals_a_naive_loop_and_is_symmetric_unless_it_is_one_way(divergence, regions):
    a, b = logits(0), logits(1)
    value = cross_distribution_consistency(a, b, regions, divergence)
    assert float(value) == pytest.approx(naive(a, b, regions, divergence), rel=1e-4)
    other = cross_distribution_consistency(b, a, regions, divergence)
    assert torch.allclose(other, value) == (divergence != "kl_one_way")


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("regions", [False, True])
def test_is_zero_for_equal_logits_and_has_finite_gradients_for_both(divergence, regions):
    a, b = logits(0).requires_grad_(), logits(1).requires_grad_()
    assert float(cross_distribution_consistency(a, a, regions, divergence).detach()) == pytest.approx(0, abs=1e-7)
    cross_distribution_consistency(a, b, regions, divergence).backward()
    assert a.grad.abs().max() > 0
    assert b.grad.abs().max() > 0
    far = torch.tensor([[[[1000.0]], [[-1000.0]]]], requires_grad=True)
    cross_distribution_consistency(far, -far.detach(), regions, divergence).backward()
    assert torch.isfinite(far.grad).all()


def test_an_unknown_divergence_is_refused():
    with pytest.raises(ValueError, match="divergence must be one of kl, mse, js, kl_one_way; got 'wasserstein'"):
        cross_distribution_consistency(logits(0), logits(1), divergence="wasserstein")
