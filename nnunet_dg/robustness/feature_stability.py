"""Stability of an extractor's features across image contrasts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
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

from nnunet_dg.errors import DataError
from nnunet_dg.extractors import FrozenExtractor
from nnunet_dg.extras import require
from nnunet_dg.files import replacing, write_csv
from nnunet_dg.reporting.plots import curves
from nnunet_dg.reporting.style import COLORS
from nnunet_dg.robustness.corruptions import CORRUPTIONS
from nnunet_dg.robustness.position import contrast_measures, image_measures
from nnunet_dg.robustness.similarity import linear_cka, pca_rgb

INTENSITY = "intensity"  # the image itself, for comparison with the extractors
GAMMAS = CORRUPTIONS["gamma"].strengths
MAX_VOXELS = 50_000
PATCH = 128  # default maximum number of voxels along each axis

Array = NDArray[Any]


class StabilityError(DataError, RuntimeError):
    """Images cannot be compared; the message says why."""


def stability(
    paths: Mapping[str, Path], extractors: Mapping[str, FrozenExtractor], patch: Sequence[int] | None, output: Path
) -> pd.DataFrame:
    """Linear CKA between the features of co-registered images, and between an image's features before and after gamma.

    Only foreground voxels (Otsu's threshold of the first image) in a patch around the center are compared. Writes
    ``contrasts.csv`` and ``gamma.csv`` with a figure each, and ``features.png``: each image next to its features, shown
    as the first three principal components over all images. ``images.csv`` tells whether features depend on the place
    in the patch, and how many of them are independent, see `nnunet_dg.robustness.position.image_measures`.

    Args:
        paths: Images by name, in any format that SimpleITK reads, on the same grid.
        extractors: Extractors by name.
        patch: Maximum number of voxels along each axis, in the order of SimpleITK's arrays (slices first); by default
            `PATCH` each. A volume with one slice is treated as a 2-D image; then two or three numbers are accepted.
        output: Folder to write to.

    Returns:
        The table in ``contrasts.csv``: columns ``representation``, ``first``, ``second``, ``cka``, and from patches cut
        from different places, ``cka_shifted``, ``recall`` and ``recall_shifted``, see
        `nnunet_dg.robustness.position.contrast_measures`. The intensity of the images is one of the representations.

    Raises:
        StabilityError: There are fewer than two images, their grids differ, or one cannot be read.
        OSError: The folder cannot be written to.
        ExtraError: The extra "report" is not installed.
    """
    require("report", "Feature stability under gamma")
    images, spacing, foreground = read(paths, patch)
    output.mkdir(parents=True, exist_ok=True)
    chosen = choose(foreground)
    representations = {INTENSITY: None, **extractors}
    with tqdm(representations.items(), "features", unit="extractor") as progress:
        features = {n: {image: compute(x, images[image]) for image in images} for n, x in progress}
    voxels = {name: {i: at(f, chosen) for i, f in maps.items()} for name, maps in features.items()}
    contrasts = pd.DataFrame(
        [(n, a, b, linear_cka(by[a], by[b])) for n, by in voxels.items() for a, b in combinations(images, 2)],
        columns=["representation", "first", "second", "cka"],
    )
    shifted, single = _of_the_place(images, representations, foreground)
    contrasts = contrasts.merge(shifted, on=["representation", "first", "second"], validate="one_to_one")
    write_csv(output / "images.csv", single)
    _write(output / "contrasts", contrasts, bars(contrasts)[0])
    gammas = under_gamma(images, representations, chosen)
    _write(output / "gamma", gammas, gamma_curves(gammas)[0])
    shown = {name: features[name] for name in extractors}
    _write(output / "features", None, feature_slices(images, shown, voxels, spacing)[0])
    return contrasts


def _of_the_place(
    images: Mapping[str, Array], representations: Mapping[str, FrozenExtractor | None], foreground: Array
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`contrast_measures` and `image_measures` with a first column ``representation``."""
    tables: tuple[list[pd.DataFrame], list[pd.DataFrame]] = ([], [])
    with tqdm(representations.items(), "shifted and unrelated", unit="extractor") as progress:
        for name, extractor in progress:
            for table, measures in zip(tables, (contrast_measures, image_measures), strict=True):
                rows = measures(partial(compute, extractor), images, foreground)
                rows.insert(0, "representation", name)
                table.append(rows)
    shifted, single = (pd.concat(table, ignore_index=True) for table in tables)
    return shifted, single


def _write(path: Path, table: pd.DataFrame | None, picture: Figure) -> None:
    """Write a table as ``.csv`` and its figure as ``.png``."""
    if table is not None:
        write_csv(path.with_suffix(".csv"), table)
    with replacing(path.with_suffix(".png")) as unfinished:
        picture.savefig(unfinished, dpi=150, format="png")


def under_gamma(
    images: Mapping[str, Array], representations: Mapping[str, FrozenExtractor | None], chosen: Array
) -> pd.DataFrame:
    """CKA between the features of each image after gamma and at gamma 1.

    Returns:
        Columns ``representation``, ``image``, ``gamma`` and ``cka``.
    """
    rows = []
    with tqdm(representations.items(), "under gamma", unit="extractor") as progress:
        for name, extractor in progress:
            for image, original in images.items():
                changed = {g: CORRUPTIONS["gamma"](original[None], g, 0)[0] for g in GAMMAS}
                features = {g: at(compute(extractor, c), chosen) for g, c in changed.items()}
                rows += [(name, image, g, linear_cka(features[1.0], values)) for g, values in features.items()]
    return pd.DataFrame(rows, columns=["representation", "image", "gamma", "cka"])


def dimensions(path: Path) -> int:
    """The number of axes of an image, 2 or 3; a volume with one slice has 2. Only the header is read.

    Raises:
        StabilityError: The file cannot be read, or has another number of axes.
    """
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise StabilityError(_unreadable(path, error)) from error
    return _shape_of(path, reader.GetSize())


def _shape_of(path: Path, size: Sequence[int]) -> int:
    if len(size) not in (2, 3):
        raise StabilityError(f"{path} has {len(size)} axes; images must have 2 or 3.")
    return 2 if len(size) == 3 and 1 in size else len(size)


def read(
    paths: Mapping[str, Path], patch: Sequence[int] | None = None
) -> tuple[dict[str, Array], tuple[float, ...], Array]:
    """The central patch ``(*spatial)`` of each image, the spacing of each axis, and the foreground ``(*spatial)``."""
    if len(paths) < 2:
        raise StabilityError(f"Stability needs at least two co-registered images; got {len(paths)}.")
    volumes = {name: _read(path) for name, path in paths.items()}
    first, reference = next(iter(volumes.items()))
    for name, volume in volumes.items():
        _check_grid(name, volume, first, reference)
    mask = sitk.GetArrayFromImage(sitk.OtsuThreshold(reference, 0, 1))
    center, thin = _center(mask.shape, patch)
    spacing = [mm for axis, mm in enumerate(reversed(reference.GetSpacing())) if axis not in thin]
    return (
        {name: sitk.GetArrayFromImage(volume)[center].squeeze(thin) for name, volume in volumes.items()},
        tuple(spacing),
        mask[center].squeeze(thin).astype(bool),
    )


def _read(path: Path) -> sitk.Image:
    """An image with one channel, float32.

    Raises:
        StabilityError: The image cannot be read, has several channels, or has values that are not finite.
    """
    try:
        volume = sitk.ReadImage(str(path))
    except RuntimeError as error:
        raise StabilityError(_unreadable(path, error)) from error
    _shape_of(path, volume.GetSize())
    channels = volume.GetNumberOfComponentsPerPixel()
    if channels > 1 or "complex" in volume.GetPixelIDTypeAsString():
        raise StabilityError(f"{path} has {channels} channels or complex values. Images must have one real channel.")
    volume = sitk.Cast(volume, sitk.sitkFloat32)
    if not np.isfinite(sitk.GetArrayViewFromImage(volume)).all():
        raise StabilityError(f"{path} contains NaN or infinite values. Correct the image.")
    return volume


def _unreadable(path: Path, error: RuntimeError) -> str:
    reason = str(error).strip().splitlines()[-1].removeprefix("sitk::ERROR: ")
    return f"The image {path} cannot be read: {reason if path.exists() else 'there is no such file'}."


def _check_grid(name: str, volume: sitk.Image, first: str, reference: sitk.Image) -> None:
    """Check that sizes are equal, spacings equal to 0.1 %, and origins equal to a tenth of a voxel."""
    voxel = np.array(reference.GetSpacing())
    tolerances = {"Size": 0, "Spacing": 1e-3 * voxel, "Origin": 0.1 * voxel, "Direction": 1e-3}
    for what, tolerance in tolerances.items():
        given, expected = (getattr(image, f"Get{what}")() for image in (volume, reference))
        if len(given) != len(expected) or (abs(np.subtract(given, expected)) > tolerance).any():
            raise StabilityError(
                f"{name} is not on the grid of {first}: {what.lower()} {given} instead of {expected}. Co-register the "
                f"images and resample them to one grid."
            )


def _center(shape: Sequence[int], patch: Sequence[int] | None) -> tuple[tuple[slice, ...], tuple[int, ...]]:
    """Slices of the patch around the center, and the axis of length one, if a volume has one slice."""
    thin = tuple(axis for axis, length in enumerate(shape) if length == 1)[:1] if len(shape) == 3 else ()
    wanted = list(patch or [PATCH] * len(shape))
    if len(wanted) == len(shape) - len(thin):
        for axis in thin:
            wanted.insert(axis, 1)
    if len(wanted) != len(shape):
        raise StabilityError(f"`patch` needs one number per axis, {len(shape) - len(thin)}; got {len(wanted)}.")
    size = [min(length, voxels) for length, voxels in zip(shape, wanted, strict=True)]
    if any(voxels < 2 for axis, voxels in enumerate(size) if axis not in thin):
        raise StabilityError(f"`patch` needs at least two voxels per axis; got {tuple(size)} of {tuple(shape)}.")
    return tuple(slice((n - s) // 2, (n + s) // 2) for n, s in zip(shape, size, strict=True)), thin


def choose(foreground: Array) -> Array:
    """Flat indices of at most `MAX_VOXELS` foreground voxels, chosen with a fixed seed."""
    indices = np.flatnonzero(foreground)
    if len(indices) < 2:
        raise StabilityError("There is no foreground in the patch. Choose a larger `patch`, or another image.")
    return np.sort(np.random.default_rng(0).permutation(indices)[:MAX_VOXELS])


def at(features: Array, chosen: Array) -> Array:
    """Features ``(A, *spatial)`` at flat indices ``(N,)``, as ``(N, A)``."""
    return features.reshape(len(features), -1).T[chosen]


def compute(extractor: FrozenExtractor | None, image: Array) -> Array:
    """Features ``(A, *spatial)``; without an extractor the image itself, ``(1, *spatial)``."""
    if extractor is None:
        return np.asarray(image[None])
    with torch.inference_mode():
        return extractor(torch.from_numpy(np.ascontiguousarray(image))[None, None].float())[0].numpy()


def bars(contrasts: pd.DataFrame) -> tuple[Figure, Any]:
    """A bar chart with one group per pair of images, and one bar per representation."""
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
    ax.set_xticks(range(len(pairs)), [f"{a}\n{b}" for a, b in pairs], parse_math=False)  # names may contain $
    ax.set(ylabel="linear CKA", ylim=(0, 1))
    figure.legend(loc="outside lower center", ncols=len(names))
    return figure, ax


def gamma_curves(gammas: pd.DataFrame) -> tuple[Figure, Any]:
    """One line per representation: the mean over images, with standard errors."""
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
    """One row per image: its middle slice, and next to it the features of each extractor as colors.

    Args:
        images: Images ``(*spatial)`` by name.
        maps: Features ``(A, *spatial)`` by extractor and image.
        voxels: Features ``(N, A)`` by extractor and image, to which the colors are fitted.
        spacing: Voxel size along each axis. Volumes are cut perpendicular to the axis with the largest.
    """
    figure = Figure(figsize=(2.2 * (1 + len(maps)), 2.4 * len(images)), layout="constrained")
    axes = figure.subplots(len(images), 1 + len(maps), squeeze=False)
    cut = int(np.argmax(spacing)) if len(spacing) == 3 else None
    rows, columns = (mm for axis, mm in enumerate(spacing) if axis != cut)
    for row, (name, image) in zip(axes, images.items(), strict=True):
        shown = _middle(image, cut)
        low, high = np.percentile(shown, (1, 99))
        row[0].imshow(shown, cmap="gray", vmin=low, vmax=high, aspect=rows / columns)
        row[0].set_ylabel(name, parse_math=False)
    for column, (extractor, by_image) in enumerate(maps.items(), 1):
        slices = [np.stack([_middle(channel, cut) for channel in by_image[name]]) for name in images]
        for row, colors in zip(axes, pca_rgb(slices, list(voxels[extractor].values())), strict=True):
            row[column].imshow(colors, aspect=rows / columns)
        axes[0, column].set_title(extractor)
    for ax in axes.ravel():
        ax.set(xticks=[], yticks=[])
    return figure, axes


def _middle(volume: Array, cut: int | None) -> Array:
    return volume if cut is None else np.take(volume, volume.shape[cut] // 2, cut)
