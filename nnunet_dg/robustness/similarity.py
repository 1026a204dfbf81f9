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
