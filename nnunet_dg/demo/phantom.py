"""A phantom dataset with two domains in nnU-Net's raw format. The target domain simulates another scanner.

An organ (label 1) contains a lesion (label 2). Next to the organ is a vessel that is as bright as the lesion but
belongs to the background, so that intensity is not enough to solve the source domain. The target domain maps tissues to
other intensities, in a different order, and has a stronger bias field and more noise.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import gaussian_filter

from nnunet_dg.errors import DataError
from nnunet_dg.files import write_json

SHAPE = (28, 36, 28)
LABELS = {"background": 0, "organ": 1, "lesion": 2}
#            air  body  organ lesion vessel
SOURCE = (0.0, 0.35, 0.65, 0.95, 0.95)
TARGET = (0.0, 0.6, 0.35, 0.8, 0.45)


def write_dataset(folder: Path, num_training: int = 20, num_test: int = 8, seed: int = 2604) -> None:
    """Write ``imagesTr``, ``labelsTr``, ``imagesTs``, ``labelsTs`` and ``dataset.json``.

    Args:
        folder: Dataset folder, named as nnU-Net requires (``Dataset999_...``).
        num_training: Number of training cases, all from the source domain: ``source_000``, ``source_001``, ...
        num_test: Number of test cases per domain, ``source_...`` and ``target_...``, with the same anatomies in both.
        seed: Seed of all random numbers.
    """
    rng = np.random.default_rng(seed)
    for i in range(num_training):
        tissue = anatomy(rng)
        _write(folder / "imagesTr", f"source_{i:03d}_0000", source_image(tissue, rng))
        _write(folder / "labelsTr", f"source_{i:03d}", segmentation(tissue))
    for i in range(num_training, num_training + num_test):
        tissue = anatomy(rng)
        for domain, image in (("source", source_image(tissue, rng)), ("target", target_image(tissue, rng))):
            _write(folder / "imagesTs", f"{domain}_{i:03d}_0000", image)
            _write(folder / "labelsTs", f"{domain}_{i:03d}", segmentation(tissue))
    dataset = {"channel_names": {"0": "MRI"}, "labels": LABELS, "numTraining": num_training, "file_ending": ".nii.gz"}
    write_json(folder / "dataset.json", dataset)  # last, so that a dataset with this file is complete


def anatomy(rng: np.random.Generator) -> NDArray[np.uint8]:
    """A random anatomy: tissue indices (air, body, organ, lesion, vessel) of shape ``SHAPE``."""
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij"))
    grid = grid + 0.18 * _smooth(rng, 4.5, channels=3)  # a random deformation
    tissue = np.zeros(SHAPE, np.uint8)
    center = rng.uniform(-0.15, 0.15, 3)
    tissue[_ellipsoid(grid, (0, 0, 0), (0.92, 0.9, 0.92))] = 1
    tissue[_ellipsoid(grid, center, rng.uniform(0.48, 0.62, 3))] = 2
    tissue[_ellipsoid(grid, center + rng.uniform(-0.14, 0.14, 3), rng.uniform(0.22, 0.32, 3))] = 3
    x, y = rng.uniform(-0.1, 0.1) + rng.choice([-0.76, 0.76]), rng.uniform(-0.3, 0.3)
    tissue[((grid[0] - x) ** 2 + (grid[1] - y) ** 2 < 0.13**2) & (tissue == 1)] = 4
    return tissue


def segmentation(tissue: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Labels of an anatomy: organ 1, lesion 2, everything else background."""
    return np.choose(tissue, (0, 0, 1, 2, 0)).astype(np.uint8)


def source_image(tissue: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.float32]:
    """An image from the scanner of the training cases."""
    return _scan(np.asarray(SOURCE)[tissue], rng, noise=0.025, bias=0.05)


def target_image(tissue: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.float32]:
    """An image from the other scanner: another contrast, a stronger bias field, and more noise."""
    return _scan(np.asarray(TARGET)[tissue], rng, noise=0.04, bias=0.25)


def _scan(intensity: NDArray[np.float64], rng: np.random.Generator, noise: float, bias: float) -> NDArray[np.float32]:
    image = gaussian_filter(intensity, 0.4) * np.exp(bias * _smooth(rng, 9.0)[0])
    return (1000 * (image + noise * rng.standard_normal(SHAPE))).astype(np.float32)


def _smooth(rng: np.random.Generator, sigma: float, channels: int = 1) -> NDArray[np.float64]:
    """Random fields ``(channels, *SHAPE)`` with zero mean and unit maximum."""
    fields = [gaussian_filter(rng.standard_normal(SHAPE), sigma, mode="reflect") for _ in range(channels)]
    return np.stack([(f - f.mean()) / np.abs(f - f.mean()).max() for f in fields])


def _ellipsoid(grid: NDArray[np.float64], center: ArrayLike, radii: ArrayLike) -> NDArray[np.bool_]:
    center, radii = (np.asarray(v).reshape(3, 1, 1, 1) for v in (center, radii))
    inside: NDArray[np.bool_] = (((grid - center) / radii) ** 2).sum(0) < 1
    return inside


def _write(folder: Path, name: str, array: NDArray[np.generic]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.nii.gz"
    try:
        sitk.WriteImage(sitk.GetImageFromArray(array), str(path))
    except RuntimeError as error:  # the disk is full, or SimpleITK cannot write to this path
        raise DataError(f"{path} cannot be written: {str(error).strip().splitlines()[-1]}") from error
