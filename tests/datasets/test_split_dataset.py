import json

import pytest

from nnunet_dg.cli import main
from nnunet_dg.datasets import split_dataset as module
from nnunet_dg.datasets.split_dataset import dataset_name, number_of
from nnunet_dg.errors import DataError, HostError

NAME = "Dataset1001_Big"
CASES = ["case_0", "case_1", "case_2", "case_3"]


@pytest.fixture
def preprocessed(tmp_path, monkeypatch):
    """A preprocessed dataset with four cases from two domains."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed"):
        monkeypatch.setattr(module, name, str(tmp_path / name))
    folder = tmp_path / "nnUNet_preprocessed" / NAME
    (folder / "gt_segmentations").mkdir(parents=True)
    for case in CASES:
        (folder / "gt_segmentations" / f"{case}.nii.gz").touch()
    (folder / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "x": 1}, "file_ending": ".nii.gz"}))
    write_domains(folder, {case: "AB"[i // 2] for i, case in enumerate(CASES)})
    return folder


def write_domains(folder, domains):
    (folder / "domains.json").write_text(json.dumps(domains))


def configuration(folder, name, cases, ending="b2nd"):
    (folder / name).mkdir()
    for case in cases:
        (folder / name / f"{case}.{ending}").touch()
        (folder / name / f"{case}.pkl").touch()


def split(*options):
    return main(["splits", "leave-one-domain-out", "-d", NAME, *options])


def folds(folder):
    return json.loads((folder / "splits_final.json").read_text())


@pytest.mark.parametrize("ending", ["b2nd", "npz"])
def test_a_case_that_was_removed_from_the_dataset_is_in_no_fold(preprocessed, ending, capsys):
    """nnU-Net leaves its truth in gt_segmentations."""
    configuration(preprocessed, "nnUNetPlans_3d_fullres", CASES[:3], ending)
    write_domains(preprocessed, {"case_0": "A", "case_1": "A", "case_2": "B"})
    assert split() == 0
    assert folds(preprocessed)[0] == {"train": ["case_2"], "val": ["case_0", "case_1"]}
    configuration(preprocessed, "nnUNetPlans_2d", CASES, ending)
    assert split("--force") == 0
    assert "case_3" not in (preprocessed / "splits_final.json").read_text()
    assert "The splits use the 3 that all have" in capsys.readouterr().out


def test_hidden_files_are_not_cases(preprocessed):
    (preprocessed / "gt_segmentations" / "._case_0.nii.gz").touch()
    assert split() == 0
    assert sorted(case for fold in folds(preprocessed) for case in fold["val"]) == CASES


@pytest.mark.parametrize("name", ["[siemens] 3T", "[/siemens]", "[red]", ":warning:", "\x1b[31m", "Zürich", "a\nb"])
def test_names_of_domains_are_printed_without_markup(preprocessed, name, capsys):
    write_domains(preprocessed, {"case_0": name, "case_1": name, "case_2": "ge", "case_3": "ge"})
    assert split() == 0
    printed = capsys.readouterr().out
    shown = name.replace("\x1b", r"\x1b").replace("\n", r"\n")
    assert f"Domains: {', '.join(sorted([shown, 'ge']))}" in printed
    assert f"validates on {shown}" in " ".join(printed.split())
    assert "\x1b" not in printed


def test_subjects_in_several_domains_are_held_out_and_counted(preprocessed, tmp_path, capsys):
    groups = tmp_path / "groups.json"
    groups.write_text(json.dumps({"case_0": "p", "case_1": "q", "case_2": "p", "case_3": "r"}))
    assert split("--groups", str(groups)) == 0
    assert folds(preprocessed)[0] == {"train": ["case_3"], "val": ["case_0", "case_1"]}
    assert "left out" in capsys.readouterr().out
    groups.write_text(json.dumps({"case_0": "p", "case_1": "q", "case_2": "p", "case_3": "q"}))
    assert split("--groups", str(groups), "--force") == 1
    assert "hold out a fraction of them (--hold-out)" in capsys.readouterr().err
    assert split("--groups", str(groups), "--force", "--hold-out", "0.5") == 0
    for fold in folds(preprocessed):
        assert len(fold["train"]) == len(fold["val"]) == 1


def test_few_shot_draws_training_cases_from_the_source(preprocessed, capsys):
    options = ["splits", "few-shot", "-d", NAME, "-n", "1", "--folds", "9", "--source"]
    assert main([*options, "B"]) == 0
    assert {case for fold in folds(preprocessed) for case in fold["train"]} == {"case_2", "case_3"}
    assert main([*options, "b", "--force"]) == 1
    assert "--source must name domains, 'A', 'B'; got 'b'. Did you mean 'B'?" in capsys.readouterr().err


@pytest.mark.parametrize(("folds", "n"), [("0", "1"), ("-3", "1"), ("5", "0"), ("5", "4")])
def test_no_empty_splits_are_written(preprocessed, folds, n, capsys):
    assert main(["splits", "few-shot", "-d", NAME, f"--folds={folds}", "-n", n]) == 1
    assert f"got {folds if n == '1' else n}." in capsys.readouterr().err
    assert not (preprocessed / "splits_final.json").exists()


def test_existing_splits_are_kept_unless_forced(preprocessed, capsys):
    (preprocessed / "splits_final.json").symlink_to("/nowhere")
    assert split() == 1
    assert "To replace it: --force" in capsys.readouterr().err
    assert split("--force") == 0
    assert not (preprocessed / "splits_final.json").is_symlink()


@pytest.mark.parametrize(
    "content", ["[]", "null", "{", '{"case_0": 1}', '{"case_0": "p"}', '{"case_0": "p", "case_0": "q"}']
)
def test_invalid_group_files_are_named(preprocessed, tmp_path, content, capsys):
    (tmp_path / "groups.json").write_text(content)
    assert split("--groups", str(tmp_path / "groups.json")) == 1
    assert "groups.json" in capsys.readouterr().err
    assert not (preprocessed / "splits_final.json").exists()


def test_dataset_numbers_may_have_any_number_of_digits(preprocessed):
    assert [number_of(f"Dataset{n}_X") for n in ("001", "501", "1001", "12345")] == ["1", "501", "1001", "12345"]
    (preprocessed / "gt_segmentations").rename(preprocessed / "elsewhere")
    with pytest.raises(DataError, match="nnUNetv2_plan_and_preprocess -d 1001"):
        module.split_dataset(NAME, lambda *_: [])


@pytest.mark.parametrize(
    "dataset", ["Heart", "Dataset501", "../Dataset501_X", "Dataset501_X/../../Y", "-1", "²", "9" * 50]
)
def test_invalid_dataset_names_are_refused(preprocessed, dataset):
    with pytest.raises(HostError, match="`dataset` must be a number, or a name such as Dataset501_Heart"):
        dataset_name(dataset)


def test_unset_folders_of_nnunet_are_named(monkeypatch):
    monkeypatch.setattr(module, "nnUNet_preprocessed", None)
    with pytest.raises(HostError, match="nnUNet_preprocessed is not set"):
        dataset_name("501")
