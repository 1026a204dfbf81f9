"""Similarity of two representations of the same voxels, and representations as colors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA

Array = NDArray[Any]


def linear_cka(first: Array, second: Array) -> float:
    """Linear centered kernel alignment (Kornblith et al., "Similarity of Neural Network Representations Revisited").

    ``|Y^T X|^2 / (|X^T X| |Y^T Y|)`` in the Frobenius norm, with centered columns, computed in float64.

    Args:
        first: Features ``(N, A)`` of N voxels.
        second: Features ``(N, B)`` of the same voxels.

    Returns:
        Similarity in [0, 1]. It is 1 if the features are equal up to rotation and scale, and NaN if one is constant.

    Raises:
        ValueError: The numbers of voxels differ.
    """
    if len(first) != len(second):
        raise ValueError(f"CKA needs features of the same voxels; got {len(first)} and {len(second)} voxels.")
    x, y = (a.astype(np.float64) - a.mean(0, dtype=np.float64) for a in (first, second))
    norms = np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)
    return float(np.linalg.norm(y.T @ x) ** 2 / norms) if norms > 0 else float("nan")


def effective_rank(features: Array) -> float:
    """The number of independent directions of features: the exponential of the entropy of their variances.

    O. Roy, M. Vetterli, The Effective Rank: A Measure of Effective Dimensionality, EUSIPCO 2007, definition 1, of the
    eigenvalues of the correlation matrix of the channels, computed in float64. Constant channels are left out.

    Args:
        features: Features ``(N, A)`` of N voxels.

    Returns:
        A number from 1, if all channels are the same up to scale, to A, if they are uncorrelated; NaN if all are
        constant.

    >>> x = np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    >>> round(effective_rank(x), 6), round(effective_rank(x[:, [0, 0]]), 6)
    (2.0, 1.0)
    """
    channels = _standardized(features)
    channels = channels[:, channels.any(0)]
    if not channels.shape[1]:
        return float("nan")
    parts = np.linalg.eigvalsh(channels.T @ channels).clip(0)
    parts = parts[parts > 0] / parts.sum()
    return float(np.exp(-(parts * np.log(parts)).sum()))


def recall_at_1(first: Array, second: Array, candidates: int = 1000, seed: int = 0) -> float:
    """How often a voxel's most similar one in the other image, among random candidates, is the voxel itself.

    Channels are standardized, and similarity is the cosine. Both directions count. A tie counts as a miss, and so does
    a voxel whose features are not finite.

    Args:
        first: Features ``(N, A)`` of N voxels.
        second: Features ``(N, A)`` of the same voxels in the other image.
        candidates: Number of voxels that compete, one of them the right one; voxels are divided into random groups of
            this size, at most four, and voxels that are left over are not used.
        seed: Seed of the groups.

    Returns:
        Fraction in [0, 1]; about ``1 / candidates`` for unrelated features. With fewer than ``candidates`` voxels, all
        of them compete.
    """
    order = np.random.default_rng(seed).permutation(len(first))
    size = min(candidates, len(order))
    a, b = (_standardized(x) for x in (first, second))
    a, b = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (a, b))
    hits = []
    for start in range(0, min(4, len(order) // size) * size, size):
        group = order[start : start + size]
        similarity = a[group] @ b[group].T
        own = similarity.diagonal()
        hits += [(similarity >= own[:, None]).sum(1) == 1, (similarity >= own).sum(0) == 1]
    return float(np.mean(hits))


def _standardized(features: Array) -> Array:
    """The columns with zero mean and unit variance, float64; constant columns become zero."""
    x = features.astype(np.float64)
    deviation = x.std(0)
    varies = deviation > 1e-9 * np.abs(x).max(0, initial=0)
    return (x - x.mean(0)) * np.where(varies, 1 / np.where(varies, deviation, 1), 0)


def pca_rgb(features: Sequence[Array], fitted_on: Sequence[Array] | None = None) -> list[Array]:
    """The first three principal components of all features together as colors. Equal features get equal colors.

    Args:
        features: Feature maps, each ``(A, *spatial)``. With fewer than 3 channels or voxels, the last colors are
            constant.
        fitted_on: Features ``(N, A)`` of the voxels from which the components are computed; by default of all voxels.

    Returns:
        Images, each ``(*spatial, 3)``, with the 1st to 99th percentile of each component scaled to [0, 1].
    """
    columns = [f.reshape(len(f), -1).T for f in features]
    fitted = np.concatenate(columns if fitted_on is None else list(fitted_on))
    components = PCA(min(3, *fitted.shape), random_state=0).fit(fitted)
    low, high = np.percentile(components.transform(fitted), (1, 99), axis=0)
    width = np.maximum(high - low, np.finfo(float).tiny)  # a component may be constant
    scaled = [np.clip((components.transform(c) - low) / width, 0, 1) for c in columns]
    scaled = [np.pad(s, ((0, 0), (0, 3 - s.shape[1]))) for s in scaled]
    return [s.reshape(*f.shape[1:], 3) for s, f in zip(scaled, features, strict=True)]
