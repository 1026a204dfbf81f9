"""`nnunet-dg splits`, and nnU-Net's training on the splits it writes."""

import json

import pytest
from nnunet_host import DATASET

DOMAINS = {"case_0": "A", "case_1": "A", "case_2": "B", "case_3": "B", "case_4": "C"}


@pytest.fixture
def folder(host):
    """The preprocessed dataset with domains. Earlier splits are restored afterwards."""
    preprocessed = host.folder / "nnUNet_preprocessed" / DATASET
    raw = host.folder / "nnUNet_raw" / DATASET / "domains.json"
    splits = preprocessed / "splits_final.json"
    before = splits.read_text() if splits.is_file() else None
    splits.unlink(missing_ok=True)
    raw.write_text(json.dumps(DOMAINS))
    yield preprocessed
    for path in (raw, preprocessed / "domains.json"):
        path.unlink(missing_ok=True)
    splits.unlink(missing_ok=True)
    if before is not None:
        splits.write_text(before)


def test_nnunet_validates_on_the_domain_that_is_left_out_of_training(host, folder):
    printed = host.run("nnunet-dg splits leave-one-domain-out -d 701")
    assert "validates on B" in printed
    trained = host.train("Tiny_nnUNetTrainer", fold="1")
    assert "This split has 3 training and 2 validation cases." in trained
    summary = json.loads((host.results("Tiny_nnUNetTrainer", "1") / "validation" / "summary.json").read_text())
    validated = {case["reference_file"].rsplit("/", 1)[-1] for case in summary["metric_per_case"]}
    assert validated == {"case_2.nii.gz", "case_3.nii.gz"}
    refused = host.run("nnunet-dg splits single-source -d 701", status=1)
    assert "exists already" in refused
    assert "Traceback" not in refused
    assert json.loads((folder / "splits_final.json").read_text())[1]["val"] == ["case_2", "case_3"]


@pytest.mark.parametrize(
    ("groups", "status", "message"),
    [
        ({"case_0": "p"}, 1, "must name exactly the cases of the dataset; 'case_1' is in the dataset only"),
        (dict.fromkeys(DOMAINS, "p"), 1, "between 2 and 1 folds"),
        ({case: case[:5] + str(i // 2) for i, case in enumerate(DOMAINS)}, 0, "Written"),
    ],
)
def test_groups_come_from_a_file(host, folder, tmp_path, groups, status, message):
    (tmp_path / "groups.json").write_text(json.dumps(groups))
    printed = host.run(f"nnunet-dg splits grouped -d 701 --folds 2 --groups {tmp_path / 'groups.json'}", status)
    assert message in printed
    assert "Traceback" not in printed
    assert (folder / "splits_final.json").is_file() == (status == 0)


def test_a_dataset_that_is_not_preprocessed_is_named_with_the_next_step(host):
    (host.folder / "nnUNet_raw" / "Dataset799_Empty").mkdir(exist_ok=True)
    printed = host.run("nnunet-dg splits leave-one-domain-out -d 799", status=1)
    assert "nnUNetv2_plan_and_preprocess -d 799" in printed
