"""Class statistics: agreement with numpy, memory, candidates, non-finite features and several processes."""

import numpy as np
import pytest
import torch
from torch import distributed, multiprocessing

from nnunet_dg.sgcg import ClassStatistics

K, A = 5, 6


def voxels(n=400, seed=0):
    """Features with a different mean and covariance per class; class 3 has one voxel, class 4 has none."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n)
    labels[n // 2] = 3
    mixing = rng.standard_normal((K, A, A))
    features = np.einsum("nab,nb->na", mixing[labels], rng.standard_normal((n, A))) + labels[:, None]
    return features, labels


def expected(features, labels):
    """Mean and covariance by numpy, of all voxels at once, in double precision."""
    mean, covariance = np.zeros((K, A)), np.zeros((K, A, A))
    for k in set(labels) & set(range(K)):
        mean[k] = features[labels == k].mean(0)
        covariance[k] = np.cov(features[labels == k].T, bias=True)
    return mean, covariance


def assert_equal(statistics, features, labels):
    mean, covariance = expected(features, labels)
    np.testing.assert_array_equal(statistics.count, [(labels == k).sum() for k in range(K)])
    np.testing.assert_allclose(statistics.mean, mean, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(statistics.covariance, covariance, rtol=1e-5, atol=1e-5)


def test_value_computed_by_hand():
    statistics = ClassStatistics(2, 1)
    statistics.update(torch.tensor([[1.0], [3.0]]), torch.tensor([0, 0]))
    statistics.update(torch.tensor([[5.0], [7.0]]), torch.tensor([0, 1]))
    assert statistics.count.tolist() == [3, 1]
    assert statistics.mean.flatten().tolist() == [3, 7]
    assert statistics.covariance.flatten().tolist() == pytest.approx([8 / 3, 0])  # (4 + 0 + 4) / 3


@pytest.mark.parametrize("seed", range(3))
def test_updates_in_chunks_equal_a_single_update(seed):
    features, labels = voxels(seed=seed)
    cuts = np.sort(np.random.default_rng(seed).integers(0, len(labels), 7))  # some chunks are empty
    statistics = ClassStatistics(K, A)
    for chunk in np.split(np.arange(len(labels)), cuts):
        statistics.update(torch.tensor(features[chunk], dtype=torch.float32), torch.tensor(labels[chunk]))
    assert_equal(statistics, features, labels)


def test_features_with_labels_outside_the_classes_are_excluded():
    features, labels = voxels()
    labels[:100] = -1
    labels[100:150] = K
    statistics = ClassStatistics(K, A)
    statistics.update(torch.tensor(features, dtype=torch.float32), torch.tensor(labels))
    assert_equal(statistics, features, labels)


def test_old_features_are_forgotten_with_max_count():
    capped = ClassStatistics(1, 1, max_count=10)
    for value in (0.0, 1.0):
        for _ in range(50):
            capped.update(torch.full((10, 1), value), torch.zeros(10, dtype=torch.long))
    assert capped.mean.item() == pytest.approx(1, abs=1e-6)
    with pytest.raises(ValueError, match="max_count must be at least 1"):
        ClassStatistics(1, 1, max_count=0)


def test_value_with_a_finite_memory_computed_by_hand():
    statistics = ClassStatistics(1, 1, memory=2)
    statistics.update(torch.tensor([[1.0], [3.0]]), torch.tensor([0, 0]))
    statistics.update(torch.tensor([[5.0]]), torch.tensor([0]))
    # two features with mean 2 and variance 1 count as one feature; one feature of 5 is added
    assert statistics.count.item() == pytest.approx(2)
    assert statistics.mean.item() == pytest.approx(3.5)
    assert statistics.covariance.item() == pytest.approx(1 / 2 + 9 / 4)


def test_with_a_finite_memory_features_are_weighted_by_their_age_in_steps():
    features, labels = voxels()
    steps = np.array_split(np.arange(len(labels)), 9)
    statistics = ClassStatistics(K, A, memory=4)
    for chunk in steps:
        statistics.update(torch.tensor(features[chunk], dtype=torch.float32), torch.tensor(labels[chunk]))
    weights = np.concatenate([np.full(len(chunk), 0.75 ** (8 - i)) for i, chunk in enumerate(steps)])
    for k in range(3):
        own = labels == k
        np.testing.assert_allclose(statistics.count[k], weights[own].sum(), rtol=1e-5)
        np.testing.assert_allclose(statistics.mean[k], np.average(features[own], 0, weights[own]), rtol=1e-4, atol=1e-5)
        covariance = np.cov(features[own].T, aweights=weights[own], ddof=0)
        np.testing.assert_allclose(statistics.covariance[k], covariance, rtol=1e-4, atol=1e-5)


def test_an_absent_class_is_forgotten_and_starts_again_from_scratch():
    statistics = ClassStatistics(2, 1, memory=10)
    statistics.update(torch.zeros(100, 1), torch.zeros(100, dtype=torch.long))
    for _ in range(60):
        statistics.update(torch.ones(100, 1), torch.ones(100, dtype=torch.long))
    assert statistics.candidates.tolist() == [False, True]
    assert statistics.count[1].item() == pytest.approx(1000, rel=0.01)  # the features of ten steps
    statistics.update(torch.full((100, 1), 5.0), torch.zeros(100, dtype=torch.long))
    assert statistics.candidates.all()
    assert statistics.mean[0].item() == pytest.approx(5, abs=0.01)
    with pytest.raises(ValueError, match="memory must be at least 1, or None for no limit; got 0"):
        ClassStatistics(1, 1, memory=0)


def test_reset_forgets_everything():
    features, labels = voxels()
    statistics, new = ClassStatistics(K, A), ClassStatistics(K, A)
    statistics.update(torch.ones(9, A), torch.arange(9) % K)
    statistics.reset()
    for one in (statistics, new):
        one.update(torch.tensor(features, dtype=torch.float32), torch.tensor(labels))
    for name, buffer in statistics.named_buffers():
        assert torch.equal(buffer, new.get_buffer(name))


@pytest.mark.parametrize("sizes", [(0, 0, 0), (64, 0, 128), (1, 63, 65), (200, 1, 0), (0, 0, 5)])
def test_classes_of_any_size_equal_one_class_at_a_time(sizes):
    """Features are multiplied in blocks of 64."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.repeat_interleave(torch.arange(3), torch.tensor(sizes))
    labels = labels[torch.randperm(len(labels), generator=generator)]
    features = torch.randn(len(labels), A, generator=generator)
    statistics = ClassStatistics(3, A)
    statistics.update(features, labels)
    for k, size in enumerate(sizes):
        own = features[labels == k]
        covariance = torch.cov(own.T, correction=0) if size else torch.zeros(A, A)
        torch.testing.assert_close(statistics.covariance[k], covariance, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("num_classes", [2, 118])
def test_an_update_of_many_classes_equals_one_class_at_a_time(num_classes):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(3000, A, generator=generator)
    labels = torch.randint(-1, num_classes + 1, (3000,), generator=generator)
    statistics = ClassStatistics(num_classes, A)
    statistics.update(features, labels)
    for k in range(num_classes):
        own = features[labels == k].double()
        assert statistics.count[k] == len(own)
        torch.testing.assert_close(statistics.mean[k], own.mean(0).float(), atol=1e-5, rtol=1e-4)
        covariance = torch.cov(own.T, correction=0).float()
        torch.testing.assert_close(statistics.covariance[k], covariance, atol=1e-5, rtol=1e-4)


def test_statistics_are_float32_without_gradient():
    statistics = ClassStatistics(2, 3)
    features = torch.rand(8, 3, dtype=torch.float16).requires_grad_()
    statistics.update(features, torch.arange(8) % 2)
    for name in ("count", "mean", "covariance"):
        assert getattr(statistics, name).dtype == torch.float32
        assert not getattr(statistics, name).requires_grad


def test_candidates_have_at_least_two_voxels():
    statistics = ClassStatistics(3, 2)
    statistics.update(torch.rand(3, 2), torch.tensor([0, 0, 1]))
    assert statistics.candidates.tolist() == [True, False, False]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_class_with_a_non_finite_feature_is_not_updated(value):
    features, labels = voxels()
    features, labels = torch.tensor(features, dtype=torch.float32), torch.tensor(labels)
    statistics, clean = ClassStatistics(K, A), ClassStatistics(K, A)
    for one in (statistics, clean):
        one.update(features, labels)
    broken = features.clone()
    broken[(labels == 1).nonzero()[0, 0], 0] = value
    statistics.update(broken, labels)
    clean.update(features[labels != 1], labels[labels != 1])
    for name, buffer in statistics.named_buffers():
        torch.testing.assert_close(buffer, clean.get_buffer(name))


def test_is_computed_in_single_precision_under_autocast():
    features, labels = voxels()
    statistics = ClassStatistics(K, A)
    with torch.autocast("cpu", torch.bfloat16):
        statistics.update(torch.tensor(features, dtype=torch.float32), torch.tensor(labels))
    assert_equal(statistics, features, labels)


def one_rank(rank, folder):
    distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    features, labels = voxels()
    statistics = ClassStatistics(K, A)
    for chunk in np.array_split(np.arange(len(labels)), 6)[rank::2]:  # the ranks have different chunks
        statistics.update(torch.tensor(features[chunk], dtype=torch.float32), torch.tensor(labels[chunk]))
    torch.save(statistics.state_dict(), folder / f"{rank}.pt")
    distributed.destroy_process_group()


def test_two_processes_have_the_statistics_of_all_features(tmp_path):
    multiprocessing.spawn(one_rank, (tmp_path,), nprocs=2)
    features, labels = voxels()
    states = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    statistics = ClassStatistics(K, A)
    statistics.load_state_dict(states[0])
    assert_equal(statistics, features, labels)
