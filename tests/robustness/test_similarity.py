import math

import numpy as np
import pytest

from nnunet_dg.robustness.similarity import effective_rank, linear_cka, pca_rgb, recall_at_1


def naive_cka(first: np.ndarray, second: np.ndarray) -> float:
    """CKA from Gram matrices of samples, with an explicit centering matrix (Kornblith et al., eq. 3 and 4)."""
    n = len(first)
    centering = np.eye(n) - np.ones((n, n)) / n
    hsic = lambda a, b: np.trace(a @ a.T @ centering @ b @ b.T @ centering)  # noqa: E731
    return hsic(first, second) / math.sqrt(hsic(first, first) * hsic(second, second))


@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_the_definition_with_gram_matrices(seed):
    rng = np.random.default_rng(seed)
    first = rng.standard_normal((30, 4)) + 3
    second = first @ rng.standard_normal((4, 7)) + rng.standard_normal((30, 7))
    assert linear_cka(first, second) == pytest.approx(naive_cka(first, second), rel=1e-9)


def test_cka_of_single_features_is_the_squared_correlation():
    rng = np.random.default_rng(0)
    first = rng.standard_normal((50, 1))
    second = first + rng.standard_normal((50, 1))
    assert linear_cka(first, second) == pytest.approx(np.corrcoef(first[:, 0], second[:, 0])[0, 1] ** 2)


def test_cka_is_symmetric_and_invariant_to_rotation_scale_and_offset():
    rng = np.random.default_rng(0)
    features, other = rng.standard_normal((2, 40, 5))
    rotation, _ = np.linalg.qr(rng.standard_normal((5, 5)))
    assert linear_cka(features, 7 * features @ rotation - 2) == pytest.approx(1)
    assert linear_cka(features, other) == pytest.approx(linear_cka(other, features))
    assert linear_cka(features, other) < 0.5


def test_constant_features_have_no_similarity():
    assert math.isnan(linear_cka(np.ones((5, 2)), np.random.default_rng(0).random((5, 2))))


def test_different_numbers_of_voxels_are_refused():
    with pytest.raises(ValueError, match="same voxels; got 5 and 4 voxels"):
        linear_cka(np.ones((5, 2)), np.ones((4, 2)))


def test_equal_features_have_equal_colors_in_all_images():
    rng = np.random.default_rng(0)
    first, second = rng.standard_normal((2, 6, 8, 9))
    second[:, 2, 3] = first[:, 5, 5]
    colors = pca_rgb([first, second])
    assert [c.shape for c in colors] == [(8, 9, 3)] * 2
    assert np.array_equal(colors[0][5, 5], colors[1][2, 3])
    assert all(c.min() >= 0 and c.max() <= 1 for c in colors)
    assert min(c.std((0, 1)).min() for c in colors) > 0.1


def test_the_first_color_is_the_direction_of_most_variance():
    features = np.zeros((4, 10, 10))
    features[2] = np.arange(100).reshape(10, 10)
    features[0] = np.random.default_rng(0).random((10, 10))
    red = pca_rgb([features])[0][..., 0].ravel()
    assert abs(np.corrcoef(red, features[2].ravel())[0, 1]) > 0.99


def test_effective_rank_counts_independent_channels():
    rng = np.random.default_rng(0)
    independent = np.linalg.qr(rng.standard_normal((200, 6)) - 0)[0]
    independent = np.linalg.qr(independent - independent.mean(0))[0]
    assert effective_rank(independent) == pytest.approx(6)
    assert effective_rank(np.tile(independent[:, :2], 3) * [1, 5, -2, 1, 100, 3] + 7) == pytest.approx(2)
    assert effective_rank(np.column_stack([independent[:, :3], np.ones(200)])) == pytest.approx(3)
    assert math.isnan(effective_rank(np.ones((5, 2))))
    pair = np.column_stack([independent[:, 0], independent[:, 0] + independent[:, 1]])  # correlation r = 1 / sqrt(2)
    parts = np.array([1 + 0.5**0.5, 1 - 0.5**0.5]) / 2
    assert effective_rank(pair) == pytest.approx(np.exp(-(parts * np.log(parts)).sum()))


def naive_recall(first, second):
    """The partner has to be strictly more similar than all others, in both directions."""
    a, b = ((x - x.mean(0)) / x.std(0) for x in (first, second))
    hits = 0
    for x, y in ((a, b), (b, a)):
        for i in range(len(x)):
            scores = [x[i] @ y[j] / np.linalg.norm(x[i]) / np.linalg.norm(y[j]) for j in range(len(y))]
            hits += all(scores[i] > score for j, score in enumerate(scores) if j != i)
    return hits / (2 * len(first))


def test_recall_agrees_with_a_naive_loop():
    rng = np.random.default_rng(0)
    first = rng.standard_normal((40, 3))
    second = first + 0.5 * rng.standard_normal((40, 3))
    recall = recall_at_1(first, second)
    assert 0.1 < recall < 0.9
    assert recall == pytest.approx(naive_recall(first, second))


def test_recall_of_equal_unrelated_and_tied_features():
    rng = np.random.default_rng(0)
    features, other = rng.standard_normal((2, 900, 8))
    assert recall_at_1(features, 3 * features + 2, candidates=300) == 1
    assert recall_at_1(features, other, candidates=300) < 0.02
    assert recall_at_1(features[:, :1], features[:, :1]) == 0  # the cosine of single channels is 1 or -1
    near = features + 0.6 * rng.standard_normal((900, 8))
    assert recall_at_1(features, near, candidates=30) > recall_at_1(features, near, candidates=900)
