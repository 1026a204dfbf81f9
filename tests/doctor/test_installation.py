"""`nnunet-dg doctor` as a user runs it, with other packages' declarations, a dataset's plans, and without nnU-Net."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from nnunet_host import declare

THEIRS = """
import sys
print("PRINTED ON STDOUT")
print("PRINTED ON STDERR", file=sys.stderr)
class nnUNetTrainerTheirs:
    pass
not_a_class = 3
"""


def doctor(*arguments, status, folder, **environment):
    """The output of `nnunet-dg doctor` with the packages in ``folder`` installed."""
    program = Path(sysconfig.get_path("scripts")) / "nnunet-dg"
    environment = os.environ | {"COLUMNS": "250", "PYTHONWARNINGS": "ignore", "PYTHONPATH": str(folder)} | environment
    done = subprocess.run([program, "doctor", *arguments], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def row(printed, name):
    return next(line for line in printed.splitlines() if name in line)


@pytest.mark.parametrize(
    ("target", "status", "expected"),
    [
        ("theirs:nnUNetTrainerTheirs", 0, "theirs"),
        ("theirs:missing", 1, "FAILED"),
        ("theirs:not_a_class", 1, "FAILED"),
        ("no_such_module:X", 1, "no_such_module"),
        ("exits:X", 1, "FAILED"),
    ],
)
def test_declarations_of_other_packages_are_listed_with_their_problems(tmp_path, target, status, expected):
    folder = declare(tmp_path, "theirs", THEIRS, f"[nnunetv2.planners]\nTheirName = {target}\n")
    (folder / "exits.py").write_text("import sys\nprint('PRINTED')\nsys.exit(0)\n")
    printed = doctor(status=status, folder=folder)
    assert expected in row(printed, "TheirName")
    assert "theirs" in row(printed, "TheirName")  # the package
    assert "nnunet-dg" in row(printed, "nnUNetTrainerSgCG")
    assert "PRINTED" not in printed
    assert "Traceback" not in printed


def test_markup_and_escapes_from_other_packages_are_printed_literally(tmp_path):
    module = "raise ValueError('[bold]loud[/bold] \\x1b[31m red\\nnext line [/]')"
    printed = doctor(status=1, folder=declare(tmp_path, "theirs", module, "[nnunetv2.planners]\nT = theirs:T\n"))
    assert "[bold]loud[/bold]" in printed
    assert "\x1b" not in printed


@pytest.fixture
def dataset(tmp_path):
    """A function that writes the plans of a dataset that has no other files."""
    raw, preprocessed = (tmp_path / name / "Dataset705_CT" for name in ("nnUNet_raw", "nnUNet_preprocessed"))
    raw.mkdir(parents=True)
    preprocessed.mkdir(parents=True)
    content = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "a": 1}, "numTraining": 1}
    (preprocessed / "dataset.json").write_text(json.dumps(content | {"file_ending": ".nii.gz"}))
    environment = {name: str(tmp_path / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}

    def write(scheme="CTNormalization", name="nnUNetPlans", **section):
        configuration = {"normalization_schemes": [scheme], "architecture": {}}
        plans = {"dataset_name": "Dataset705_CT", "configurations": {"3d_fullres": configuration}} | section
        properties = {"percentile_00_5": -40.0, "percentile_99_5": 280.0}
        plans["foreground_intensity_properties_per_channel"] = {"0": properties}
        (preprocessed / f"{name}.json").write_text(json.dumps(plans))
        return raw, environment

    return write


def flat(printed):
    return " ".join(printed.replace("│", " ").split())


def test_plans_fitted_to_ct_are_named_with_what_to_do(dataset, tmp_path):
    _, environment = dataset()
    printed = flat(doctor("-d", "705", status=0, folder=tmp_path, **environment))
    assert "CT: CTNormalization" in printed
    assert "CTNormalization clips channel CT to [-40, 280]" in printed
    assert "plan with nnUNetPlannerAnyModality" in printed
    assert "domains one, because there is no" in printed


def test_normalization_settings_and_domains_are_shown(dataset, tmp_path):
    section = {"planned_for": {"3d": {"extractor": "anatomix"}}, "dropgen": {"p": 0.25}}
    raw, environment = dataset("AnyModalityNormalization", "mine", nnunet_dg=section)
    (raw / "domains.json").write_text(json.dumps({"case_0": "[site] A", "case_1": "B"}))
    printed = flat(doctor("-d", "Dataset705_CT", "-p", "mine", status=0, folder=tmp_path, **environment))
    assert "CT: AnyModalityNormalization" in printed
    assert "saturate" not in printed
    assert "3d: anatomix" in printed
    assert "settings dropgen" in printed
    assert "B, [site] A, from" in printed
    assert "was not compared with the cases, because the dataset is not preprocessed" in printed


@pytest.mark.parametrize(
    ("arguments", "section", "expected"),
    [
        (("-d", "706"), {}, "Could not find a dataset with the ID 706"),
        (("-d", "Heart"), {}, "-d must be a number, or a name such as Dataset501_Heart; got 'Heart'"),
        (("-d", "705", "-p", "others"), {}, "There is no file"),
        (("-d", "705"), {"nnunet_dg": {"dropgem": {}}}, "Did you mean 'dropgen'?"),
        (("-d", "705"), {"dropgen": {"p": 0.5}}, 'plans["dropgen"] is not read'),
        (("-d", "705"), {"nnunet_dg": {"sgcg": {"temprature": 0.2}}}, "Did you mean 'temperature'?"),
        (("-d", "705"), {"nnunet_dg": {"dropgen": {"p": 2}}}, "p must be"),
        (("-d", "705"), {"nnunet_dg": {"tinymig": {"divergence": "x"}}}, "divergence must be one of"),
    ],
)
def test_problems_of_a_dataset_are_explained_in_one_line(dataset, tmp_path, arguments, section, expected):
    _, environment = dataset(**section)
    printed = doctor(*arguments, status=1, folder=tmp_path, **environment)
    assert expected in printed
    assert "Traceback" not in printed


@pytest.fixture
def preprocessed(dataset, tmp_path):
    """A dataset with two cases: the raw folder, the preprocessed folder and the environment."""
    raw, environment = dataset()
    folder = tmp_path / "nnUNet_preprocessed" / raw.name
    (folder / "gt_segmentations").mkdir()
    for case in ("case_0", "case_1"):
        (folder / "gt_segmentations" / f"{case}.nii.gz").touch()
    return raw, folder, environment


@pytest.mark.parametrize(
    ("domains", "expected"),
    [
        ({"case_0": "A"}, "case 'case_1' is without a domain"),
        ({"case_0": "A", "case_1": "B", "case_2": "B"}, "case 'case_2' is not in the dataset"),
        ({"case_0": 1, "case_1": "B"}, "domains.json: "),
    ],
)
def test_domains_that_do_not_match_the_cases_are_refused(preprocessed, tmp_path, domains, expected):
    raw, _, environment = preprocessed
    (raw / "domains.json").write_text(json.dumps(domains))
    printed = doctor("-d", "705", status=1, folder=tmp_path, **environment)
    assert expected in printed
    assert "Traceback" not in printed


def test_domains_are_compared_with_the_cases_and_nothing_is_written(preprocessed, tmp_path):
    raw, folder, environment = preprocessed
    (raw / "domains.json").write_text(json.dumps({"case_0": "A", "case_1": "B"}))
    printed = flat(doctor("-d", "705", status=0, folder=tmp_path, **environment))
    assert "domains A, B, from" in printed
    assert "there is a single case from A, B" in printed
    assert not (folder / "domains.json").exists()


def test_a_dataset_whose_number_only_starts_the_same_is_not_used(preprocessed, tmp_path):
    """nnU-Net compares only the first three digits."""
    _, folder, environment = preprocessed
    folder.rename(folder.with_name("Dataset7051_CT"))
    shutil.rmtree(tmp_path / "nnUNet_raw" / "Dataset705_CT")
    printed = doctor("-d", "705", status=1, folder=tmp_path, **environment)
    assert "There is no dataset 705; nnU-Net takes that number for Dataset7051_CT" in printed


@pytest.mark.parametrize("command", [("doctor",), ("weights", "list")])
def test_without_nnunet_weights_are_still_listed(tmp_path, command):
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if not path.name.startswith("nnunetv2"):
            (tmp_path / path.name).symlink_to(path)
    if not (tmp_path / "torch").exists():
        pytest.skip("packages are not in this environment's own folder")
    code = (
        f"import sys; sys.path.append({str(tmp_path)!r}); sys.argv = ['nnunet-dg', *{command!r}]\n"
        "from nnunet_dg.cli import main; sys.exit(main())"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-W", "ignore", "-c", code], capture_output=True, text=True, check=False
    )
    assert "Traceback" not in done.stdout + done.stderr
    assert "anatomix" in done.stdout
    if command == ("doctor",):
        assert done.returncode == 1
        assert "pip install nnunetv2" in done.stdout
