"""A two-domain phantom in nnU-Net's raw format: the same anatomy, seen by a scanner that no training case came from.

An organ (label 1) holds a lesion (label 2); beside it lies a vessel that is as bright as the lesion but belongs to the
background, so that intensity alone does not solve the source domain. The target domain maps tissues to other
intensities, in another order, and adds a bias field and noise.
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
        folder: the dataset folder, named as nnU-Net wants it (``Dataset999_...``).
        num_training: training cases, all of the source domain, ``source_000`` and on.
        num_test: test cases of each domain, ``source_...`` and ``target_...``; the two show the same anatomies.
        seed: of everything random.
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
    write_json(folder / "dataset.json", dataset)  # last: where it is, the dataset is whole


def anatomy(rng: np.random.Generator) -> NDArray[np.uint8]:
    """Tissue indices (air, body, organ, lesion, vessel), ``SHAPE``: a random patient."""
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij"))
    grid = grid + 0.18 * _smooth(rng, 4.5, channels=3)  # everybody is built a little differently
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
    """The scanner that the training cases come from."""
    return _scan(np.asarray(SOURCE)[tissue], rng, noise=0.025, bias=0.05)


def target_image(tissue: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.float32]:
    """Another contrast, a bias field, more noise."""
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
    except RuntimeError as error:  # a full disk, or a path that SimpleITK cannot write to
        raise DataError(f"{path} cannot be written: {str(error).strip().splitlines()[-1]}") from error
