"""A linear probe: how well a linear function of a voxel's features finds a structure, under changed intensities."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

Array = NDArray[Any]


def _unit(image: Array) -> Array:
    low, high = image.min(), image.max()
    return (image - low) / (high - low if high > low else 1)


def _bias(image: Array, rng: np.random.Generator) -> Array:
    field = gaussian_filter(rng.standard_normal(image.shape), 10)
    return image * np.exp(field / max(field.std(), 1e-12) * 0.4)


CHANGES: dict[str, Callable[[Array, np.random.Generator], Array]] = {
    "plain": lambda image, _: image,
    "inverted": lambda image, _: 1 - image,
    "gamma 3": lambda image, _: image**3,
    "wave": lambda image, _: np.sin(3 * np.pi * image),
    "bias": _bias,
    "noise": lambda image, rng: image + 0.1 * rng.standard_normal(image.shape),
}
"""Changes of an image ``(*spatial)`` in [0, 1]: ``wave`` is a sine, so that equal intensities stay equal and no order
remains; ``bias`` is a smooth factor whose logarithm has a deviation of 0.4; ``noise`` has one of 0.1."""


def probe(
    extract: Callable[[Array], Array],
    training: Sequence[tuple[Array, Array]],
    test: Sequence[tuple[Array, Array]],
    voxels: int = 400,
    seed: int = 0,
) -> Mapping[str, float]:
    """The area under the ROC curve of a logistic regression on the features of single voxels.

    It is trained on unchanged images and tested on other images under each of `CHANGES`. Classes are balanced in both,
    since an unbalanced probe of a small structure measures the background.

    Args:
        extract: Function from an image ``(*spatial)`` to features ``(A, *spatial)``.
        training: Images ``(*spatial)`` and masks ``(*spatial)`` of the structure.
        test: Other images and masks.
        voxels: Number of voxels of each class and image, at most; the smaller class counts.
        seed: Seed of the choice of voxels, of the bias field and of the noise.

    Returns:
        Area under the curve, in [0, 1], by the name of the change.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.preprocessing import StandardScaler

    x, y = _samples(extract, training, CHANGES["plain"], voxels, seed)
    scaler = StandardScaler().fit(x)
    classifier = LogisticRegression(max_iter=1000).fit(scaler.transform(x), y)
    areas = {}
    for name, change in CHANGES.items():
        x, y = _samples(extract, test, change, voxels, seed)
        areas[name] = float(roc_auc_score(y, classifier.decision_function(scaler.transform(x))))
    return areas


def _samples(
    extract: Callable[[Array], Array],
    cases: Sequence[tuple[Array, Array]],
    change: Callable[[Array, np.random.Generator], Array],
    voxels: int,
    seed: int,
) -> tuple[Array, Array]:
    """Features ``(N, A)`` and classes ``(N,)``, half of them of the structure."""
    features, classes = [], []
    for number, (image, mask) in enumerate(cases):
        rng = np.random.default_rng([seed, number])
        sides = [rng.permutation(np.flatnonzero(mask == side)) for side in (False, True)]
        count = min(voxels, *map(len, sides))
        values = extract(change(_unit(image), rng).astype(np.float32))
        for side, indices in enumerate(sides):
            features.append(values.reshape(len(values), -1).T[indices[:count]])
            classes.append(np.full(count, side))
    return np.concatenate(features), np.concatenate(classes)
