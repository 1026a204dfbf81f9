"""Reading segmentations with nnU-Net's readers. Those that do not match ``dataset.json`` are refused."""

from __future__ import annotations

import gzip
import math
import os
import sys
import zlib
from collections.abc import Iterable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import SimpleITK
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO
from numpy.typing import NDArray

from nnunet_dg.datasets.cases import images_of
from nnunet_dg.datasets.labels import HIGHEST, Labels
from nnunet_dg.errors import DataError
from nnunet_dg.files import check_regular, read_json
from nnunet_dg.formats import Dataset, TiffSpacing

NIFTI = (".nii", ".nii.gz")
SHIFT = 0.1
"""Maximum distance, in voxels, between corresponding corners of two images. Rounding of headers shifts them by less."""


@dataclass(frozen=True)
class Segmentation:
    """One segmentation and its position in space.

    Attributes:
        path: File that it was read from.
        values: Labels, uint16, three axes in nnU-Net's order.
        spacing: Voxel size along each axis of ``values``, in mm; None if neither the file nor one next to it has it.
        geometry: Origin and direction from the header, by name.
        affine: Matrix ``(n + 1, n + 1)`` from indices, in reverse axis order, to mm; None if the file format has none.
    """

    path: Path
    values: NDArray[np.uint16]
    spacing: tuple[float, ...] | None
    geometry: dict[str, NDArray[np.float64]]
    affine: NDArray[np.float64] | None

    def compare(self, truth: Segmentation) -> None:
        """Check that two segmentations of the same shape have the same position in space.

        Raises:
            DataError: Their spacings differ by more than 0.1 %, or corresponding corners by more than `SHIFT` voxels.
        """
        if not self._shift(truth) <= SHIFT or not _close(self.spacing, truth.spacing):
            raise DataError(
                f"{self.path} and {truth.path} have different positions in space: {_differences(self, truth)}. "
                f"Evaluate files that belong together, or compare voxel by voxel with `ignore_affine`."
            )

    def _shift(self, truth: Segmentation) -> float:
        """Largest distance between corresponding corners, in voxels of the truth; NaN if it cannot be computed."""
        if self.affine is None or truth.affine is None:
            return 0.0 if self.affine is truth.affine else math.nan
        if self.affine.shape != truth.affine.shape or not np.isfinite(np.linalg.cond(truth.affine)):
            return math.nan
        n = len(truth.affine) - 1
        corners = np.array(np.meshgrid(*([0, size - 1] for size in truth.values.shape[::-1][:n]))).reshape(n, -1)
        difference = np.linalg.inv(truth.affine) @ self.affine - np.eye(n + 1)
        return float(np.abs(difference[:n] @ np.vstack([corners, np.ones(corners.shape[1])])).max())


@dataclass(frozen=True)
class SegmentationReader:
    """nnU-Net's reader of a dataset, the labels that its segmentations may have, and the file that declares them."""

    reader: type[BaseReaderWriter]
    labels: Labels
    source: Path = Path("dataset.json")

    def read(self, path: Path) -> Segmentation:
        """Read a segmentation.

        Raises:
            DataError: The file is missing, cut off or unreadable, has more axes than a segmentation, has an invalid
                spacing, or contains values that are not labels of the dataset.
        """
        check_whole(path)
        _check_finite(path)
        known = not issubclass(self.reader, Tiff3DIO) or _has_spacing(path)
        array, properties = self._read(path)
        if array.ndim != 4 or len(array) != 1 or len(properties["spacing"]) != 3:
            raise DataError(
                f"{path} is not a single segmentation: its shape {array.shape} means more than one volume, or more "
                f"than one value per voxel. Split it, or convert it to one label per voxel."
            )
        geometry, affine = _geometry(properties)
        spacing = tuple(float(mm) for mm in properties["spacing"])
        if not all(0 < mm < math.inf for mm in spacing):
            raise DataError(f"{path} has spacing {_numbers(spacing)}; it must be positive. Correct its header.")
        return Segmentation(path, self._labels(path, array[0]), spacing if known else None, geometry, affine)

    def _read(self, path: Path) -> tuple[NDArray[Any], dict[str, Any]]:
        try:
            with redirect_stdout(StringIO()):
                return self.reader().read_seg(str(path))
        except Exception as error:  # nnU-Net's readers wrap several libraries that raise unrelated exceptions
            raise _unreadable(path, error) from error

    def _labels(self, path: Path, array: NDArray[Any]) -> NDArray[np.uint16]:
        """Convert ``array`` to integers.

        Raises:
            DataError: It contains values that are not labels of the dataset.
        """
        with np.errstate(invalid="ignore"):  # NaN and negative values become integers that are not equal to them
            integers = array.astype(np.uint16)
        declared = np.zeros(HIGHEST + 1, bool)
        declared[self.labels.values] = True
        exact = integers == array
        if exact.all() and declared[: int(integers.max(initial=0)) + 1].all():  # fast, and the usual case
            return integers
        valid = declared[integers] & exact
        if valid.all():
            return integers
        wrong = np.unique(array[~valid])
        values = ", ".join(_text(value) for value in wrong[:5]) + (", ..." if len(wrong) > 5 else "")
        raise DataError(
            f"{path} has {np.count_nonzero(~valid)} voxels of value {values}. {self.source} declares "
            f"{_some(self.labels.values)}. Correct the file, or use the dataset.json that belongs to it."
        )


def reader_of(dataset: Dataset, files: Iterable[Path], source: Path) -> type[BaseReaderWriter]:
    """The reader that nnU-Net chooses for a dataset, based on the first file that one of its readers can read.

    Raises:
        DataError: No file can be read, or nnU-Net has no reader for the file ending. The message is about the first
            file.
    """
    reasons = []
    for path in files:
        try:
            check_whole(path)
            with redirect_stdout(StringIO()), redirect_stderr(StringIO()):  # nnU-Net prints a traceback per reader
                return determine_reader_writer_from_dataset_json(dict(dataset), str(path), verbose=False)
        except DataError as error:
            reasons.append(str(error))
        except Exception as error:  # see `SegmentationReader._read`
            reasons.append(f"{error} The file ending comes from {source}; or the file is damaged.")
    raise DataError(reasons[0])


def spacing_of_images(truth: Path, case: str) -> tuple[float, ...] | None:
    """The spacing of a TIFF truth, read from the spacing file of its images; None if there is no such file.

    nnU-Net copies truths to ``gt_segmentations`` without the files that contain their spacing.
    """
    ending = truth.name.removeprefix(case)
    for image in images_of(truth, case, ending)[:1]:
        file = image.with_name(f"{image.name.removesuffix(ending)[: -len('_0000')]}.json")
        if file.is_file():
            return tuple(read_json(file, TiffSpacing)["spacing"])
    return None


def check_whole(path: Path) -> None:
    """Refuse a file that cannot be read, or that was cut off in a way that nnU-Net's readers do not notice.

    Raises:
        DataError: The file is not a regular file, its name is not UTF-8, or it is shorter than its header declares.
    """
    check_regular(path)
    _check_name(path)
    try:
        actual, declared = _content_bytes(path), _declared_bytes(path)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is damaged or was cut off: {error}. Copy or predict it again.") from error
    except Exception as error:  # see `SegmentationReader._read`
        raise _unreadable(path, error) from error
    if actual < declared:
        raise DataError(
            f"{path} was cut off: its header declares {declared} bytes, but it has {actual}. Copy or predict it again."
        )


def _check_finite(path: Path) -> None:
    """Refuse NaN in NIfTI files, which ITK would read as 0, that is, as background."""
    if not path.name.lower().endswith(NIFTI):
        return
    try:
        data: Any = nibabel.load(path).dataobj  # type: ignore[attr-defined]
        is_float = np.issubdtype(data.dtype, np.floating)
        wrong = np.count_nonzero(~np.isfinite(data.get_unscaled())) if is_float else 0
    except Exception as error:  # see `SegmentationReader._read`
        raise _unreadable(path, error) from error
    if wrong:
        raise DataError(f"{path} has {wrong} voxels that are NaN or infinite. A segmentation may contain only labels.")


def _has_spacing(path: Path) -> bool:
    file = path.with_suffix(".json")
    if not os.path.lexists(file):
        return False
    read_json(file, TiffSpacing)
    return True


def _check_name(path: Path) -> None:
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError as error:  # the readers' libraries expect UTF-8, and abort the process otherwise
        by_locale = sys.getfilesystemencoding().lower() != "utf-8"
        advice = "Set the environment variable PYTHONUTF8=1" if by_locale else "Rename it"
        raise DataError(f"The file name {str(path)!r} is not UTF-8. {advice}.") from error


def _content_bytes(path: Path) -> int:
    """Size of the uncompressed content. Reading a gzip file to its end also verifies its checksum."""
    with path.open("rb") as file:
        if file.read(2) != b"\x1f\x8b":
            return path.stat().st_size
    with gzip.open(path) as stream:
        return sum(len(chunk) for chunk in iter(lambda: stream.read(1 << 20), b""))


def _declared_bytes(path: Path) -> int:
    """Size of the uncompressed content according to the header, for formats where ITK fills in missing voxels; or 0."""
    name = path.name.lower()
    if name.endswith(NIFTI):
        data: Any = nibabel.load(path).dataobj  # type: ignore[attr-defined]
        return int(data.offset) + math.prod(data.shape) * int(data.dtype.itemsize)
    if name.endswith(".gipl"):
        header = SimpleITK.ImageFileReader()
        header.SetFileName(str(path))
        header.ReadImageInformation()
        voxel = SimpleITK.GetArrayViewFromImage(SimpleITK.Image([1] * header.GetDimension(), header.GetPixelID()))
        return 256 + math.prod(header.GetSize()) * voxel.itemsize
    return 0


def _unreadable(path: Path, error: Exception) -> DataError:
    if isinstance(error, OSError) and error.strerror:
        return DataError(f"{path} cannot be read: {error.strerror}.")
    reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
    return DataError(f"{path} cannot be read: {reason}. It may be damaged, or not have the format that its name says.")


def _geometry(properties: dict[str, Any]) -> tuple[dict[str, NDArray[np.float64]], NDArray[np.float64] | None]:
    """Geometry and affine of an image from the properties of nnU-Net's readers; empty and None for some formats."""
    if header := properties.get("nibabel_stuff"):
        matrix = np.asarray(header.get("reoriented_affine", header["original_affine"]), float)
        return {"affine": matrix.ravel()}, matrix
    if not (header := properties.get("sitk_stuff")):
        return {}, None
    n = len(header["origin"])
    matrix = np.eye(n + 1)
    matrix[:n, :n] = np.reshape(header["direction"], (n, n)) * np.asarray(header["spacing"])
    matrix[:n, n] = header["origin"]
    return {name: np.asarray(header[name], float) for name in ("origin", "direction")}, matrix


def _differences(prediction: Segmentation, truth: Segmentation) -> str:
    given, expected = ({"spacing": s.spacing, **s.geometry} for s in (prediction, truth))
    differences = [
        f"its {name} is {_numbers(given.get(name))}, the truth's {_numbers(value)}"
        for name, value in expected.items()
        if not _equal(value, given.get(name))
    ]
    return "; ".join(differences) or "their headers have invalid directions"


def _close(spacing: Sequence[float] | None, other: Sequence[float] | None) -> bool:
    return spacing is None or other is None or np.allclose(spacing, other, rtol=1e-3, atol=0)


def _equal(value: Any, other: Any) -> bool:
    return np.shape(value) == np.shape(other) and np.allclose(value, other, rtol=1e-6, atol=1e-12)


def _numbers(values: Any) -> str:
    return "unknown" if values is None else "(" + ", ".join(f"{v:.6g}" for v in np.ravel(values)) + ")"


def _text(value: Any) -> str:
    """A voxel's value as text, for example ``255`` or ``1.0000002``."""
    return str(int(value)) if value.is_integer() else str(value)


def _some(values: Sequence[int]) -> str:
    if len(values) <= 12:
        return ", ".join(map(str, values))
    return f"{', '.join(map(str, values[:10]))}, ... and {values[-1]}"
