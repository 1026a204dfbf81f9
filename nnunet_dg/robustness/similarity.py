"""How alike two representations of the same voxels are, and what a representation looks like."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA

Array = NDArray[Any]


def linear_cka(first: Array, second: Array) -> float:
    """Linear centered kernel alignment (Kornblith et al., "Similarity of Neural Network Representations Revisited").

    ``|Y^T X|^2 / (|X^T X| |Y^T Y|)`` in the Frobenius norm, columns centered; in float64.

    Args:
        first: ``(N, A)``, N voxels.
        second: ``(N, B)``, the same voxels.

    Returns:
        In [0, 1]: 1 if one is the other, rotated and scaled. NaN if one of them is constant.

    Raises:
        ValueError: they do not have the same voxels.
    """
    if len(first) != len(second):
        raise ValueError(f"CKA needs the same voxels: got {len(first)} and {len(second)}.")
    x, y = (a.astype(np.float64) - a.mean(0, dtype=np.float64) for a in (first, second))
    norms = np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)
    return float(np.linalg.norm(y.T @ x) ** 2 / norms) if norms > 0 else float("nan")


def pca_rgb(features: Sequence[Array], fitted_on: Sequence[Array] | None = None) -> list[Array]:
    """The first three principal components of all features together, as colors: the same color, the same features.

    Args:
        features: Each ``(A, *spatial)``. With fewer than 3 channels or voxels, the last colors are constant.
        fitted_on: voxels that the components are computed from, each ``(N, A)``; None: all.

    Returns:
        Each ``(*spatial, 3)`` in [0, 1], the 1st to 99th percentile of each component stretched to it.
    """
    columns = [f.reshape(len(f), -1).T for f in features]
    fitted = np.concatenate(columns if fitted_on is None else list(fitted_on))
    components = PCA(min(3, *fitted.shape), random_state=0).fit(fitted)
    low, high = np.percentile(components.transform(fitted), (1, 99), axis=0)
    width = np.maximum(high - low, np.finfo(float).tiny)  # a component may be empty
    scaled = [np.clip((components.transform(c) - low) / width, 0, 1) for c in columns]
    scaled = [np.pad(s, ((0, 0), (0, 3 - s.shape[1]))) for s in scaled]
    return [s.reshape(*f.shape[1:], 3) for s, f in zip(scaled, features, strict=True)]
