"""Whether features depend on what a voxel looks like, or on where it is in the patch.

A network can read a voxel's place from the border of a patch. Features of the same patch in two contrasts then agree
for the wrong reason. Two tests tell: the same anatomy in patches that are cut from different places, and an unrelated
image in the same place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from nnunet_dg.robustness.similarity import effective_rank, linear_cka, recall_at_1

Array = NDArray[Any]
SHIFT = (8, 5, 3)  # voxels between the two patches, for the axes of a volume; the last two for those of an image
MAX_VOXELS = 50_000


def shifted_boxes(shape: Sequence[int], shift: Sequence[int]) -> tuple[tuple[slice, ...], ...]:
    """Two patches of a volume that are ``shift`` apart, and where their common region is in each of them.

    Args:
        shape: Spatial shape of the volume.
        shift: Number of voxels between the patches along each axis, at least 0 and below half of the size.

    Returns:
        First patch, second patch, common region in the first patch, common region in the second patch.
    """
    sizes = [length - s for length, s in zip(shape, shift, strict=True)]
    first = tuple(slice(0, size) for size in sizes)
    second = tuple(slice(s, s + size) for s, size in zip(shift, sizes, strict=True))
    in_first = tuple(slice(s, size) for s, size in zip(shift, sizes, strict=True))
    in_second = tuple(slice(0, size - s) for s, size in zip(shift, sizes, strict=True))
    return first, second, in_first, in_second


def default_shift(shape: Sequence[int]) -> tuple[int, ...]:
    """`SHIFT`, at most a quarter of the size along each axis."""
    return tuple(min(s, length // 4) for s, length in zip(SHIFT[-len(shape) :], shape, strict=True))


def contrast_measures(
    extract: Callable[[Array], Array],
    images: Mapping[str, Array],
    foreground: Array,
    shift: Sequence[int] | None = None,
) -> pd.DataFrame:
    """Agreement of the features of each pair of images, in the same patch and in patches from different places.

    Args:
        extract: Function from an image ``(*spatial)`` to features ``(A, *spatial)``.
        images: Co-registered images ``(*spatial)`` by name.
        foreground: Voxels to compare, ``(*spatial)``, bool.
        shift: Number of voxels between the patches along each axis; by default `default_shift`.

    Returns:
        One row per pair, with columns ``first``, ``second``, ``cka_shifted``, ``recall`` and ``recall_shifted``. Recall
        is that of `recall_at_1` with 1000 voxels. The shifted values are NaN if the common region has fewer than two
        foreground voxels.
    """
    boxes = shifted_boxes(foreground.shape, default_shift(foreground.shape) if shift is None else shift)
    common = np.ix_(*[range(b.start + c.start, b.start + c.stop) for b, c in zip(boxes[0], boxes[2], strict=True)])
    chosen, inside = _choose(foreground), _choose(foreground[common])
    same = {name: _at(extract(image), chosen) for name, image in images.items()}
    here, there = (
        {name: _at(extract(image[patch])[box], inside) for name, image in images.items()}
        for patch, box in ((boxes[0], (slice(None), *boxes[2])), (boxes[1], (slice(None), *boxes[3])))
    )

    def both_ways(measure: Callable[[Array, Array], float], a: str, b: str) -> float:
        return (measure(here[a], there[b]) + measure(there[a], here[b])) / 2 if len(inside) > 1 else float("nan")

    rows = [
        (a, b, both_ways(linear_cka, a, b), recall_at_1(same[a], same[b]), both_ways(recall_at_1, a, b))
        for a, b in combinations(images, 2)
    ]
    return pd.DataFrame(rows, columns=["first", "second", "cka_shifted", "recall", "recall_shifted"])


def image_measures(extract: Callable[[Array], Array], images: Mapping[str, Array], foreground: Array) -> pd.DataFrame:
    """Agreement of the features of each image with those of unrelated noise in the same place, and their rank.

    Args:
        extract, images, foreground: See `contrast_measures`.

    Returns:
        One row per image, with columns ``image``, ``cka_unrelated`` (near 0 unless the features show the place) and
        ``effective_rank``.
    """
    chosen = _choose(foreground)
    noise = _at(extract(unrelated(foreground.shape)), chosen)
    features = {name: _at(extract(image), chosen) for name, image in images.items()}
    rows = [(name, linear_cka(values, noise), effective_rank(values)) for name, values in features.items()]
    return pd.DataFrame(rows, columns=["image", "cka_unrelated", "effective_rank"])


def unrelated(shape: Sequence[int]) -> Array:
    """Smooth noise ``(*shape)``, float32: white noise of a fixed seed after a Gaussian filter of 3 voxels."""
    white = np.random.default_rng(1).standard_normal(tuple(shape))
    return gaussian_filter(white, 3).astype(np.float32)


def _choose(foreground: Array) -> Array:
    indices = np.flatnonzero(foreground)
    return np.sort(np.random.default_rng(0).permutation(indices)[:MAX_VOXELS])


def _at(features: Array, chosen: Array) -> Array:
    """Features ``(A, *spatial)`` at flat indices ``(N,)``, as ``(N, A)``."""
    return features.reshape(len(features), -1).T[chosen]
