"""Folders of links to validation cases, for adaptation."""

import json

import pytest

from nnunet_dg.benchmark.cases import link_cases
from nnunet_dg.errors import DataError

DATASET = "Dataset701_Tiny"
DOMAINS = {"a1": "A", "a2": "A", "a3": "A", "b1": "B", "b2": "B"}


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A dataset with two channels; fold 0 is trained on domain A only, fold 1 on both domains."""
    raw, preprocessed = tmp_path / "raw" / DATASET, tmp_path / "preprocessed" / DATASET
    truths = preprocessed / "gt_segmentations"
    for folder in (raw / "imagesTr", truths):
        folder.mkdir(parents=True)
    for case in DOMAINS:
        (truths / f"{case}.tif").write_text(f"truth of {case}")
        for channel in range(2):
            (raw / "imagesTr" / f"{case}_{channel:04d}.tif").write_text(f"channel {channel} of {case}")
    (raw / "imagesTr" / "b1.json").write_text('{"spacing": [1, 1, 1]}')
    labels = {"background": 0, "box": 1}
    (raw / "dataset.json").write_text(json.dumps({"labels": labels, "file_ending": ".tif"}))
    (raw / "domains.json").write_text(json.dumps(DOMAINS))
    splits = [{"train": ["a1", "a2"], "val": ["a3", "b1", "b2"]}, {"train": ["a1", "b1"], "val": ["a2", "b2"]}]
    (preprocessed / "splits_final.json").write_text(json.dumps(splits))
    for name in ("raw", "preprocessed"):
        monkeypatch.setattr(f"nnunet_dg.benchmark.cases.nnUNet_{name}", str(tmp_path / name))
    return tmp_path


def names(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_cases_are_sorted_by_whether_a_training_case_is_from_their_domain(data):
    output = data / "cases"
    for _ in range(2):  # a repeated job replaces the folders
        link_cases(DATASET, 0, output, need_both=True)
    assert names(output / "in_domain") == {f"a3_{i:04d}.tif": f"channel {i} of a3" for i in range(2)}
    assert names(output / "in_domain_truths") == {"a3.tif": "truth of a3"}
    assert {name for name in names(output / "unseen") if name.endswith(".tif")} == {
        f"{case}_{i:04d}.tif" for case in ("b1", "b2") for i in range(2)
    }
    assert (output / "unseen" / "b1.json").is_file()  # the spacing of a TIFF image
    assert set(names(output / "all")) == {*names(output / "unseen"), *names(output / "in_domain")}


def test_a_number_cannot_be_chosen_without_in_domain_cases_or_for_none_that_is_unseen(data):
    link_cases(DATASET, 1, data / "cases", need_both=False)
    assert len(names(data / "cases" / "all")) == 4
    with pytest.raises(DataError, match="Fold 1 of Dataset701_Tiny has 2 in-domain and 0 unseen validation cases"):
        link_cases(DATASET, 1, data / "cases", need_both=True)


def test_a_missing_image_is_named(data):
    (data / "preprocessed" / DATASET / "gt_segmentations" / "a3.tif").unlink()
    with pytest.raises(DataError, match=r"There is no file .*a3\.tif"):
        link_cases(DATASET, 0, data / "cases", need_both=False)
    for path in (data / "raw" / DATASET / "imagesTr").glob("b1_*"):
        path.unlink()
    with pytest.raises(DataError, match="no images of b1"):
        link_cases(DATASET, 0, data / "cases", need_both=False)
