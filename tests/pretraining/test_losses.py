import math

import numpy as np
import pytest
import torch

from nnunet_dg.pretraining.losses import redundancy, voxel_contrast
from nnunet_dg.pretraining.voxels import BOUNDARY, OUTSIDE, at_voxels, draw_voxels, sampling_weights
from nnunet_dg.synthesis import Draws, Pair


def test_voxel_contrast_agrees_with_a_naive_loop():
    a, b = torch.randn(2, 6, 4, dtype=torch.float64)
    losses = []
    for first, second in ((a, b), (b, a)):
        for i in range(6):
            similar = [float(first[i] @ second[j] / first[i].norm() / second[j].norm()) / 0.2 for j in range(6)]
            losses.append(-similar[i] + math.log(sum(math.exp(s) for s in similar)))
    assert voxel_contrast(a, b, 0.2).item() == pytest.approx(np.mean(losses))
    assert voxel_contrast(torch.ones(8, 3), torch.ones(8, 3)).item() == pytest.approx(math.log(8))


def test_redundancy_agrees_with_correlation_coefficients():
    a, b = torch.randn(2, 30, 3, dtype=torch.float64)
    correlation = np.corrcoef(a.T, b.T)[:3, 3:]
    agree = ((1 - correlation.diagonal()) ** 2).sum()
    others = (correlation**2).sum() - (correlation.diagonal() ** 2).sum()
    assert redundancy(a, b, 0.3).item() == pytest.approx((agree + 0.3 * others) / 3, rel=1e-3)
    torch.testing.assert_close(redundancy(5 * a + 2, b), redundancy(a, b), rtol=1e-3, atol=0)


@pytest.mark.parametrize("loss", [voxel_contrast, redundancy])
def test_gradients(loss):
    a, b = (torch.randn(5, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(loss, (a, b))
    constant = torch.ones(5, 3, dtype=torch.bfloat16, requires_grad=True)
    value = loss(constant, constant)
    value.backward()
    assert value.dtype == torch.float32
    assert torch.isfinite(constant.grad).all()


def test_voxels_are_matched_and_mostly_at_boundaries():
    labels = torch.zeros(20, 20, dtype=torch.long)
    labels[4:16, 4:16] = 1
    labels[4:16, 10:16] = 2
    pair = Pair(torch.zeros(2, 1, 24, 24), ((0, 3), (4, 0)), labels)
    here, there = draw_voxels(pair, 60, Draws(0))
    assert torch.equal(there - here, torch.tensor([4, -3]).expand(60, 2))
    assert len(torch.unique(here, dim=0)) == 60
    chosen = labels[tuple((here - torch.tensor([0, 3])).T)]
    assert (chosen == 0).float().mean() < 0.15
    weights = sampling_weights(labels)
    assert weights[0, 0] == pytest.approx(OUTSIDE)
    assert weights[8, 6] == 1
    assert weights[8, 9] == weights[8, 10] == weights[4, 6] == BOUNDARY
    counts = torch.zeros(20, 20)
    for key in range(300):
        at, _ = draw_voxels(pair, 20, Draws(1, key))
        counts[tuple((at - torch.tensor([0, 3])).T)] += 1
    assert counts[weights == BOUNDARY].mean() / counts[weights == 1].mean() == pytest.approx(BOUNDARY, rel=0.25)


def test_features_are_read_at_their_coordinates():
    features = torch.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5)
    read = at_voxels(features, torch.tensor([[0, 0, 0], [2, 1, 4]]))
    assert torch.equal(read, torch.stack([features[:, 0, 0, 0], features[:, 2, 1, 4]]))
