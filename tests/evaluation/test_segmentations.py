import gzip
import json
import os

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO
from skimage import io

from nnunet_dg.datasets.labels import Labels
from nnunet_dg.errors import DataError
from nnunet_dg.evaluation.segmentations import SegmentationReader, check_whole, reader_of, spacing_of_images

LABELS = Labels({"whole": [1, 2], "core": [2]}, 7)
READERS = {".nii.gz": SimpleITKIO, ".nii": NibabelIO, ".nrrd": SimpleITKIO, ".mha": SimpleITKIO, ".gipl": SimpleITKIO}


@pytest.fixture
def array():
    return np.random.default_rng(0).choice(np.array([0, 1, 2, 7], np.uint8), (10, 12, 14))


def write(path, array, spacing=(0.5, 1.0, 2.0), origin=(0.0, 0.0, 0.0), direction=None, compressed=True):
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    if direction is not None:
        image.SetDirection(direction)
    sitk.WriteImage(image, str(path), compressed)
    return path


def read(path, reader=SimpleITKIO, labels=LABELS):
    return SegmentationReader(reader, labels).read(path)


@pytest.mark.parametrize("ending", READERS)
def test_labels_and_spacing_are_read(tmp_path, array, ending):
    segmentation = read(write(tmp_path / f"x{ending}", array), READERS[ending])
    assert (segmentation.values == array).all()
    assert segmentation.values.dtype == np.uint16
    assert segmentation.spacing == (2, 1, 0.5)


@pytest.mark.parametrize("ending", READERS)
@pytest.mark.parametrize("compressed", [True, False])
def test_a_file_that_was_cut_off_is_refused_unless_it_has_every_voxel(tmp_path, array, ending, compressed):
    whole = write(tmp_path / f"whole{ending}", array, compressed=compressed).read_bytes()
    path = tmp_path / f"x{ending}"
    for length in (0, 1, 100, len(whole) // 2, len(whole) - 700, len(whole) - 9, len(whole) - 1):
        path.write_bytes(whole[:length])
        try:
            assert (read(path, READERS[ending]).values == array).all()  # only the checksum is missing
            assert ending == ".nrrd"
        except DataError as error:
            assert str(path) in str(error)  # noqa: PT017
            assert "\n" not in str(error)  # noqa: PT017


def test_a_gzip_file_with_a_changed_byte_or_missing_content_is_refused(tmp_path, array):
    path = write(tmp_path / "x.nii.gz", array)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"x.nii.gz is damaged or was cut off: .*Copy or predict it again"):
        check_whole(path)
    raw = write(tmp_path / "x.nii", array).read_bytes()
    path.write_bytes(gzip.compress(raw[:-1]))
    with pytest.raises(DataError, match=r"was cut off: its header declares 2032 bytes, but it has 2031"):
        check_whole(path)
    path.write_bytes(gzip.compress(raw))
    check_whole(path)


def test_scaled_nifti_files_are_not_taken_for_cut_off(tmp_path, array):
    """ITK reports float voxels, but on disk they are bytes."""
    image = nibabel.Nifti1Image(array, np.eye(4))
    image.header.set_slope_inter(1, 0)
    nibabel.save(image, tmp_path / "x.nii.gz")
    assert (read(tmp_path / "x.nii.gz").values == array.T).all()


@pytest.mark.parametrize(
    ("wrong", "named"),
    [(255, "255"), (3, "3"), (-1, "-1"), (0.5, "0.5"), (1.0000001, "1.0000001"), (np.nan, "nan"), (np.inf, "inf"),
     (70000, "70000"), (65536 + 1, "65537")],
)  # fmt: skip
def test_values_that_are_not_labels_are_named(tmp_path, array, wrong, named):
    array = array.astype(np.float32)
    array[0, 0, :3] = wrong
    path = write(tmp_path / "x.nrrd", array)
    with pytest.raises(DataError) as raised:
        read(path)
    assert f"{path} has 3 voxels of value {named}. dataset.json declares 0, 1, 2, 7." in str(raised.value)


def test_labels_in_any_number_format_are_read(tmp_path, array):
    for dtype in (np.int8, np.int16, np.uint32, np.int64, np.float32, np.float64):
        assert (read(write(tmp_path / "x.nrrd", array.astype(dtype))).values == array).all()


def test_more_than_one_volume_or_value_per_voxel_is_refused(tmp_path, array):
    nibabel.save(nibabel.Nifti1Image(np.stack([array, array], -1), np.eye(4)), tmp_path / "two.nii.gz")
    sitk.WriteImage(sitk.GetImageFromArray(np.stack([array] * 3, -1), isVector=True), tmp_path / "rgb.nrrd")
    sitk.WriteImage(sitk.GetImageFromArray(np.stack([array[:1]] * 3, -1), isVector=True), tmp_path / "slice.nrrd")
    sitk.WriteImage(sitk.GetImageFromArray(np.stack([array[0]] * 3, -1), isVector=True), tmp_path / "2d.nrrd")
    for name in ("two.nii.gz", "rgb.nrrd", "slice.nrrd", "2d.nrrd"):
        with pytest.raises(DataError, match=f"{name} is not a single segmentation: its shape"):
            read(tmp_path / name)
    io.imsave(tmp_path / "rgb.png", np.stack([array[0]] * 3, -1), check_contrast=False)
    with pytest.raises(DataError, match=r"rgb\.png is not a single segmentation"):
        read(tmp_path / "rgb.png", NaturalImage2DIO)


def test_a_trailing_axis_of_length_one_is_accepted(tmp_path, array):
    nibabel.save(nibabel.Nifti1Image(array[..., None], np.eye(4)), tmp_path / "x.nii.gz")
    assert read(tmp_path / "x.nii.gz").values.shape == array.T.shape


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])  # micrometers, mm, and a mistaken unit
@pytest.mark.parametrize("reader", [SimpleITKIO, NibabelIO, NibabelIOWithReorient])
def test_positions_are_compared_in_voxels_for_any_unit(tmp_path, array, scale, reader):
    spacing = np.array([0.5, 1.0, 2.0]) * scale
    origin = np.array([-200.0, 30.0, 1000.0]) * scale
    truth = read(write(tmp_path / "t.nii.gz", array, spacing, origin), reader)
    turned = (np.cos(0.05), -np.sin(0.05), 0, np.sin(0.05), np.cos(0.05), 0, 0, 0, 1)
    for what, path in {
        "origin": write(tmp_path / "o.nii.gz", array, spacing, origin + np.array([0.3, 0, 0]) * spacing),
        "spacing": write(tmp_path / "s.nii.gz", array, spacing * [1, 1, 1.01], origin),
        "direction": write(tmp_path / "d.nii.gz", array, spacing, origin, turned),
        "mirrored": write(tmp_path / "m.nii.gz", array, spacing, origin, (-1, 0, 0, 0, 1, 0, 0, 0, 1)),
    }.items():
        with pytest.raises(DataError) as raised:
            read(path, reader).compare(truth)
        named = what if reader is SimpleITKIO and what != "mirrored" else "its "
        assert named in str(raised.value)
        assert "`ignore_affine`" in str(raised.value)
    near = write(tmp_path / "n.nii.gz", array, spacing * 1.0001, origin + 0.02 * spacing)
    read(near, reader).compare(truth)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_nan_is_refused_although_itk_reads_it_as_background(tmp_path, array, ending):
    array = array.astype(np.float32)
    array[0, 0, :2] = np.nan, -np.inf
    with pytest.raises(DataError, match="has 2 voxels that are NaN or infinite"):
        read(write(tmp_path / f"x{ending}", array), SimpleITKIO if ending == ".nii.gz" else NibabelIO)


def test_headers_with_an_invalid_spacing_are_refused(tmp_path, array):
    content = bytearray(write(tmp_path / "x.nii", array).read_bytes())
    content[80:92] = np.full(3, np.nan, np.float32).tobytes()  # pixdim, of the three axes
    (tmp_path / "x.nii").write_bytes(content)
    with pytest.raises(DataError, match=r"x\.nii.*it must be positive"):
        read(tmp_path / "x.nii", NibabelIO)


def test_the_spacing_of_a_tiff_comes_from_a_json_file_next_to_it(tmp_path, array, monkeypatch):
    path = tmp_path / "gt_segmentations" / "x.tif"
    path.parent.mkdir()
    tifffile.imwrite(path, array)
    assert read(path, Tiff3DIO).spacing is None
    path.with_suffix(".json").write_text('{"spacing": [3, 0.5, 0.25]}')
    assert read(path, Tiff3DIO).spacing == (3, 0.5, 0.25)
    for content in ('{"spacing": [3, 0.5]}', '{"spacing": [3, 0.5, 0]}', '{"spacing": [3, 0.5, NaN]}', "[]", "{"):
        path.with_suffix(".json").write_text(content)
        with pytest.raises(DataError, match=r"x\.json"):
            read(path, Tiff3DIO)


@pytest.mark.parametrize("folder", ["labelsTr", "labelsTs"])
def test_tiff_truths_have_the_spacing_of_their_images(tmp_path, array, folder):
    truth = tmp_path / folder / "x.tif"
    images = tmp_path / folder.replace("labels", "images")
    for directory in (truth.parent, images):
        directory.mkdir()
    for path in (truth, images / "x_0000.tif"):
        tifffile.imwrite(path, array)
    assert spacing_of_images(truth, "x") is None
    (images / "x.json").write_text('{"spacing": [3, 0.5, 0.25]}')
    assert spacing_of_images(truth, "x") == (3, 0.5, 0.25)


def test_special_files_and_names_that_are_not_utf8_never_reach_a_reader(tmp_path, array):
    """A pipe would block the readers, and ITK aborts the process for names that are not UTF-8."""
    os.mkfifo(tmp_path / "pipe.nii.gz")
    (tmp_path / "folder.nii.gz").mkdir()
    (tmp_path / "link.nii.gz").symlink_to("nowhere")
    for name, fault in {"pipe": "a pipe", "folder": "a folder", "link": "a link to nowhere", "no": "no file"}.items():
        with pytest.raises(DataError, match=fault):
            read(tmp_path / f"{name}.nii.gz")
    odd = write(tmp_path / "x.nii.gz", array).rename(tmp_path / "ca\udcffse.nii.gz")
    with pytest.raises(DataError, match=r"ca\\udcffse.nii.gz' is not UTF-8. Rename it"):
        read(odd)
    with pytest.raises(DataError, match="is not UTF-8"):
        reader_of({"labels": {}, "file_ending": ".nii.gz"}, [odd], tmp_path)


def test_the_reader_is_nnunets_choice_for_the_first_readable_file(tmp_path, array, capfd):
    (tmp_path / "a.tif").write_bytes(b"damaged")
    tifffile.imwrite(tmp_path / "b.tif", array)
    dataset = {"labels": {}, "file_ending": ".tif"}
    assert reader_of(dataset, [tmp_path / "a.tif", tmp_path / "b.tif"], tmp_path) is Tiff3DIO
    assert "Traceback" not in "".join(capfd.readouterr())
    with pytest.raises(DataError, match=r"a\.tif"):
        reader_of(dataset, [tmp_path / "a.tif"], tmp_path)
    with pytest.raises(DataError, match=r"file ending .xyz.*from .*dataset.json"):
        reader_of({"labels": {}, "file_ending": ".xyz"}, [tmp_path / "b.tif"], tmp_path / "dataset.json")
    forced = dataset | {"overwrite_image_reader_writer": "NibabelIO"}
    assert reader_of(json.loads(json.dumps(forced)), [tmp_path / "b.tif"], tmp_path) is NibabelIO
