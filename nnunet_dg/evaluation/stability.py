"""`nnunet-dg stability features`: are an extractor's features the same where the contrast is another?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import SimpleITK as sitk  # noqa: N813
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from tqdm import tqdm

from nnunet_dg.evaluation.corruptions import CORRUPTIONS
from nnunet_dg.evaluation.plots import curves
from nnunet_dg.evaluation.similarity import linear_cka, pca_rgb
from nnunet_dg.evaluation.style import COLORS
from nnunet_dg.extractors import FrozenExtractor

INTENSITY = "intensity"  # the image itself, beside every extractor
GAMMAS = CORRUPTIONS["gamma"].strengths
MAX_VOXELS = 50_000

Array = NDArray[Any]


class StabilityError(RuntimeError):
    """Images that cannot be compared, and why."""


def stability(
    paths: Mapping[str, Path], extractors: Mapping[str, FrozenExtractor], patch: Sequence[int], output: Path
) -> pd.DataFrame:
    """Linear CKA between the features of co-registered images, and between an image's features before and after gamma.

    Of a patch around the centre, and there of foreground voxels (Otsu's threshold of the first image). Writes
    ``contrasts.csv`` and ``gamma.csv`` with a picture each, and ``features.png``: each image beside its features, as
    the first three principal components of all images together.

    Args:
        paths: images by name, any format that SimpleITK reads, on one grid.
        extractors: by name.
        patch: voxels of each axis at most, in the order of SimpleITK's arrays (slices first).
        output: a folder.

    Returns:
        ``representation``, ``first``, ``second``, ``cka``; the images' own intensity among the representations.

    Raises:
        StabilityError: fewer than two images, not on one grid, or not readable.
    """
    images, spacing, foreground = read(paths, patch)
    output.mkdir(parents=True, exist_ok=True)
    chosen = choose(foreground)
    representations = {INTENSITY: None, **extractors}
    features = {
        name: {image: compute(extractor, images[image]) for image in images}
        for name, extractor in tqdm(representations.items(), "features", unit="extractor")
    }
    voxels = {name: {i: at(f, chosen) for i, f in of.items()} for name, of in features.items()}
    contrasts = pd.DataFrame(
        [(n, a, b, linear_cka(of[a], of[b])) for n, of in voxels.items() for a, b in combinations(images, 2)],
        columns=["representation", "first", "second", "cka"],
    )
    contrasts.to_csv(output / "contrasts.csv", index=False)
    bars(contrasts)[0].savefig(output / "contrasts.png", dpi=150)
    gammas = under_gamma(images, representations, chosen)
    gammas.to_csv(output / "gamma.csv", index=False)
    gamma_curves(gammas)[0].savefig(output / "gamma.png", dpi=150)
    shown = {name: features[name] for name in extractors}
    feature_slices(images, shown, voxels, spacing)[0].savefig(output / "features.png", dpi=150)
    return contrasts


def under_gamma(
    images: Mapping[str, Array], representations: Mapping[str, FrozenExtractor | None], chosen: Array
) -> pd.DataFrame:
    """``representation``, ``image``, ``gamma`` and ``cka`` with the same image's features at gamma 1."""
    rows = []
    for name, extractor in tqdm(representations.items(), "under gamma", unit="extractor"):
        for image, original in images.items():
            changed = {g: CORRUPTIONS["gamma"](original[None], g, 0)[0] for g in GAMMAS}
            seen = {g: at(compute(extractor, c), chosen) for g, c in changed.items()}
            rows += [(name, image, g, linear_cka(seen[1.0], features)) for g, features in seen.items()]
    return pd.DataFrame(rows, columns=["representation", "image", "gamma", "cka"])


def read(paths: Mapping[str, Path], patch: Sequence[int]) -> tuple[dict[str, Array], tuple[float, ...], Array]:
    """The centre of each image, ``(*spatial)``; the spacing of each axis; and where there is foreground."""
    if len(paths) < 2:
        raise StabilityError(f"Stability needs two co-registered images at least; got {len(paths)}.")
    try:
        volumes = {name: sitk.ReadImage(str(path), sitk.sitkFloat32) for name, path in paths.items()}
    except RuntimeError as error:
        raise StabilityError(f"An image cannot be read: {error}") from error
    first, reference = next(iter(volumes.items()))
    for name, volume in volumes.items():
        for what, tolerance in (("Size", 0), ("Spacing", 1e-3), ("Origin", 0.1), ("Direction", 1e-3)):
            mine, others = (getattr(image, f"Get{what}")() for image in (volume, reference))
            if len(mine) != len(others) or not np.allclose(mine, others, rtol=0, atol=tolerance):
                raise StabilityError(
                    f"{name} is not on the grid of {first}: {what.lower()} {mine} and {others}. Images must be "
                    f"co-registered and resampled to one grid."
                )
    mask = sitk.GetArrayFromImage(sitk.OtsuThreshold(reference, 0, 1))
    if len(patch) != mask.ndim:
        raise StabilityError(f"--patch needs one number per axis, {mask.ndim}; got {len(patch)}.")
    centre = tuple(slice((n - min(n, p)) // 2, (n + min(n, p)) // 2) for n, p in zip(mask.shape, patch, strict=True))
    return (
        {name: sitk.GetArrayFromImage(volume)[centre] for name, volume in volumes.items()},
        tuple(reversed(reference.GetSpacing())),
        mask[centre].astype(bool),
    )


def choose(foreground: Array) -> Array:
    """Flat indices of foreground voxels, `MAX_VOXELS` at most, the same ones every time."""
    indices = np.flatnonzero(foreground)
    if len(indices) < 2:
        raise StabilityError("There is no foreground in the patch. Choose a larger one.")
    return np.sort(np.random.default_rng(0).permutation(indices)[:MAX_VOXELS])


def at(features: Array, chosen: Array) -> Array:
    """``(A, *spatial)`` -> ``(N, A)``, at flat indices ``(N,)``."""
    return features.reshape(len(features), -1).T[chosen]


def compute(extractor: FrozenExtractor | None, image: Array) -> Array:
    """Features ``(A, *spatial)``; without an extractor the image itself, ``(1, *spatial)``."""
    if extractor is None:
        return image[None]
    with torch.inference_mode():
        return extractor(torch.from_numpy(np.ascontiguousarray(image))[None, None].float())[0].numpy()


def bars(contrasts: pd.DataFrame) -> tuple[Figure, Any]:
    """One group of bars per pair of images, one bar per representation."""
    pairs = list(dict.fromkeys(zip(contrasts["first"], contrasts["second"], strict=True)))
    names = list(dict.fromkeys(contrasts["representation"]))
    figure = Figure(figsize=(1.5 + 0.45 * len(pairs) * (len(names) + 1), 3.2), layout="constrained")
    ax = figure.subplots()
    width = 0.8 / len(names)
    for number, name in enumerate(names):
        heights = contrasts[contrasts["representation"] == name]["cka"]
        places = np.arange(len(pairs)) + (number - (len(names) - 1) / 2) * width
        hatch = ("", "//", "..", "xx")[number % 4]
        ax.bar(places, heights, width, color=COLORS[number % len(COLORS)], edgecolor="black", hatch=hatch, label=name)
    ax.set_xticks(range(len(pairs)), [f"{a}\n{b}" for a, b in pairs])
    ax.set(ylabel="linear CKA", ylim=(0, 1))
    figure.legend(loc="outside lower center", ncols=len(names))
    return figure, ax


def gamma_curves(gammas: pd.DataFrame) -> tuple[Figure, Any]:
    """One line per representation, the mean over images, with standard errors."""
    figure, ax = curves(gammas, "gamma", "cka", "representation", identity=1.0)
    ax.set_xscale("log", base=2)
    ax.set(ylabel="linear CKA with gamma 1", ylim=(0, 1.02))
    return figure, ax


def feature_slices(
    images: Mapping[str, Array],
    maps: Mapping[str, Mapping[str, Array]],
    voxels: Mapping[str, Mapping[str, Array]],
    spacing: Sequence[float],
) -> tuple[Figure, Any]:
    """One row per image: a middle slice, and beside it the features of each extractor as colours.

    Args:
        images: ``(*spatial)`` each.
        maps: features of each extractor and image, ``(A, *spatial)``.
        voxels: of each extractor and image, ``(N, A)``, that the colours are fitted on.
        spacing: of each axis. Volumes are cut across the widest.
    """
    figure = Figure(figsize=(2.2 * (1 + len(maps)), 2.4 * len(images)), layout="constrained")
    axes = figure.subplots(len(images), 1 + len(maps), squeeze=False)
    cut = int(np.argmax(spacing)) if len(spacing) == 3 else None
    rows, columns = (mm for axis, mm in enumerate(spacing) if axis != cut)
    for row, (name, image) in zip(axes, images.items(), strict=True):
        shown = _middle(image, cut)
        low, high = np.percentile(shown, (1, 99))
        row[0].imshow(shown, cmap="gray", vmin=low, vmax=high, aspect=rows / columns)
        row[0].set_ylabel(name)
    for column, (extractor, of) in enumerate(maps.items(), 1):
        slices = [np.stack([_middle(channel, cut) for channel in of[name]]) for name in images]
        for row, colours in zip(axes, pca_rgb(slices, list(voxels[extractor].values())), strict=True):
            row[column].imshow(colours, aspect=rows / columns)
        axes[0, column].set_title(extractor)
    for ax in axes.ravel():
        ax.set(xticks=[], yticks=[])
    return figure, axes


def _middle(volume: Array, cut: int | None) -> Array:
    return volume if cut is None else np.take(volume, volume.shape[cut] // 2, cut)
