import pytest

from nnunet_dg.adaptation.cases import input_images
from nnunet_dg.adaptation.record import Record
from nnunet_dg.errors import DataError


def test_images_are_grouped_by_case_and_channel(tmp_path):
    for name in ("b_0001", "b_0000", "a_1_0000", "a_1_0001"):
        (tmp_path / f"{name}.nii.gz").touch()
    for other in ("._b_0000.nii.gz", "b_0000.nrrd", "notes.txt"):  # macOS leaves the first kind
        (tmp_path / other).touch()
    found = input_images(tmp_path, ".nii.gz")
    assert {case: [path.name for path in files] for case, files in found.items()} == {
        "a_1": ["a_1_0000.nii.gz", "a_1_0001.nii.gz"],
        "b": ["b_0000.nii.gz", "b_0001.nii.gz"],
    }


def test_missing_images_and_channels_are_named(tmp_path):
    with pytest.raises(DataError, match=r"has no images\. Images of the model's dataset are named CASE_0000\.nii\.gz"):
        input_images(tmp_path, ".nii.gz")
    for name in ("a_0000", "a_0001", "b_0001"):
        (tmp_path / f"{name}.nii.gz").touch()
    with pytest.raises(DataError, match=r"b has 1 of 2 channels in .*must be named b_0000\.nii\.gz"):
        input_images(tmp_path, ".nii.gz")


def test_a_record_resumes_with_the_same_setup(tmp_path):
    first = Record(tmp_path, {"settings": {"steps": 1}})
    first.choose({"alpha": 0.5})
    first.add("a", {"foreground_fraction": 0.25}, seconds=1.0)
    again = Record(tmp_path, {"settings": {"steps": 1}}, resume=True)
    assert (again.chosen, again.cases) == ({"alpha": 0.5}, {"a": {"foreground_fraction": 0.25}})
    fresh = Record(tmp_path, {"settings": {"steps": 2}})
    assert (fresh.chosen, fresh.cases) == (None, {})
    with pytest.raises(DataError, match="about predictions with other settings"):
        Record(tmp_path, {"settings": {"steps": 2}}, resume=True)
    (tmp_path / "adaptation.json").write_text("{")
    with pytest.raises(DataError, match="Predict into another folder"):
        Record(tmp_path, {}, resume=True)
