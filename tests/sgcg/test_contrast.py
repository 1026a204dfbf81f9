"""The contrastive bound: values, the Monte-Carlo estimate that it bounds, gradients, candidates and memory."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from nnunet_dg.sgcg import ClassStatistics, contrastive_upper_bound


def problem(n=12, k=3, a=4, seed=0, spread=0.3, dtype=torch.float64):
    """Features on the unit sphere, with random labels, means and covariances."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(shape, generator=generator, dtype=dtype)  # noqa: E731
    features = torch.nn.functional.normalize(draw(n, a), dim=1)
    root = spread * draw(k, a, a)
    return features, torch.randint(k, (n,), generator=generator), draw(k, a) / 2, root @ root.mT


def test_value_computed_by_hand():
    features = torch.tensor([[1.0, 0.0]])
    mean = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    covariance = torch.diag_embed(torch.tensor([[2.0, 0.0], [4.0, 0.0]]))
    # tau = 2: logits 1/2 + 2/8 and 0 + 4/8, and 2/8 for the voxel's own class
    value = math.log(math.exp(0.75) + math.exp(0.5)) - 0.75 + 0.25
    assert contrastive_upper_bound(features, torch.tensor([0]), mean, covariance, 2.0).item() == pytest.approx(value)


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_equals_a_loop_over_voxels(temperature):
    features, labels, mean, covariance = problem()
    total = 0.0
    for q, y in zip(features, labels, strict=True):
        logits = [
            float(q @ mean[k] / temperature + q @ covariance[k] @ q / (2 * temperature**2)) for k in range(len(mean))
        ]
        top = max(logits)
        own = float(q @ covariance[y] @ q / (2 * temperature**2))
        total += top + math.log(sum(math.exp(z - top) for z in logits)) - logits[y] + own
    result = contrastive_upper_bound(features, labels, mean, covariance, temperature)
    assert result.item() == pytest.approx(total / len(features))


def monte_carlo(features, labels, mean, covariance, temperature, draws=20_000):
    """Eq. 4: positives and negatives are drawn from the normal distributions of the classes."""
    torch.manual_seed(0)
    roots = torch.linalg.cholesky(covariance + 1e-12 * torch.eye(mean.shape[1]))
    noise = torch.randn(len(mean), draws, mean.shape[1], dtype=mean.dtype)
    keys = mean[:, None] + noise @ roots.mT
    losses = []
    for q, y in zip(features, labels, strict=True):
        similarity = keys @ q / temperature  # (K, draws)
        # infinitely many negatives per class: their mean is the expectation
        expectation = torch.logsumexp(similarity, dim=1) - math.log(draws)
        others = [k for k in range(len(mean)) if k != y]
        positive = similarity[y]
        denominator = torch.logaddexp(positive, torch.logsumexp(expectation[others], 0))
        losses.append((denominator - positive).mean())
    return torch.stack(losses).mean().item()


@pytest.mark.parametrize("seed", range(4))
def test_is_an_upper_bound_of_the_loss_with_infinitely_many_pairs(seed):
    features, labels, mean, covariance = problem(seed=seed)
    bound = contrastive_upper_bound(features, labels, mean, covariance, 0.5).item()
    assert bound >= monte_carlo(features, labels, mean, covariance, 0.5) - 1e-3


def test_the_bound_becomes_tight_as_the_covariance_shrinks():
    gaps = []
    for spread in (0.3, 0.1, 0.01):
        features, labels, mean, covariance = problem(spread=spread)
        bound = contrastive_upper_bound(features, labels, mean, covariance, 0.5).item()
        gaps.append(bound - monte_carlo(features, labels, mean, covariance, 0.5))
    assert gaps[0] > gaps[1] > gaps[2]
    assert gaps[2] == pytest.approx(0, abs=2e-3)


def test_gradients_agree_with_finite_differences():
    features, labels, mean, covariance = problem(n=6)
    candidates = torch.tensor([True, True, False])
    for classes in (None, candidates):
        assert torch.autograd.gradcheck(
            lambda q, c=classes: contrastive_upper_bound(q, labels[:6], mean, covariance, 0.3, c),
            features.requires_grad_(),
        )


def test_statistics_get_no_gradient():
    features, labels, mean, covariance = problem()
    mean.requires_grad_()
    covariance.requires_grad_()
    contrastive_upper_bound(features.requires_grad_(), labels, mean, covariance, 0.1).backward()
    assert mean.grad is None
    assert covariance.grad is None
    assert features.grad.abs().max() > 0


def test_a_class_that_is_not_a_candidate_contributes_zero():
    features, labels, mean, covariance = problem(n=30)
    covariance[2], mean[2] = 1e6, 1e6  # visible in the loss if the class took part
    own = labels == 2
    features.requires_grad_()
    candidates = torch.tensor([True, True, False])
    loss = contrastive_upper_bound(features, labels, mean, covariance, 0.1, candidates)
    others = contrastive_upper_bound(features[~own], labels[~own], mean[:2], covariance[:2], 0.1)
    assert loss.item() == pytest.approx(others.item() * (~own).sum().item() / len(labels))
    loss.backward()
    assert features.grad.isfinite().all()
    assert (features.grad[own] == 0).all()


def test_voxels_without_a_class_are_excluded_and_the_loss_without_voxels_is_zero():
    features, labels, mean, covariance = problem()
    outside = torch.cat([labels, torch.tensor([-1, 3])])
    more = torch.cat([features, torch.ones(2, 4, dtype=torch.float64)])
    expected = contrastive_upper_bound(features, labels, mean, covariance, 0.1)
    torch.testing.assert_close(contrastive_upper_bound(more, outside, mean, covariance, 0.1), expected)
    loss = contrastive_upper_bound(features.requires_grad_(), torch.full_like(labels, -1), mean, covariance, 0.1)
    loss.backward()
    assert loss.item() == 0
    assert (features.grad == 0).all()


def test_is_computed_in_float32_under_autocast():
    features, labels, mean, covariance = problem(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        inside = contrastive_upper_bound(features, labels, mean, covariance, 0.1)
    torch.testing.assert_close(inside, contrastive_upper_bound(features, labels, mean, covariance, 0.1))
    assert inside.dtype == torch.float32


class Largest(TorchDispatchMode):
    """Records the number of elements of the largest tensor that was created."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(value, torch.Tensor):
                self.elements = max(self.elements, value.numel())
        return result


def test_memory_is_linear_in_the_voxels():
    """Neither the forward and backward pass nor the statistics create a tensor (N, K, A) or (N, A, A)."""
    n, k, a = 1000, 16, 32
    features, labels, mean, covariance = problem(n, k, a, dtype=torch.float32)
    with Largest() as largest:
        contrastive_upper_bound(features.requires_grad_(), labels, mean, covariance, 0.1).backward()
        ClassStatistics(k, a).update(features, labels)
    assert largest.elements <= max(n * a, n * k, k * a * a)


def test_temperature_must_be_positive():
    features, labels, mean, covariance = problem()
    with pytest.raises(ValueError, match="temperature must be positive; got 0"):
        contrastive_upper_bound(features, labels, mean, covariance, 0)
