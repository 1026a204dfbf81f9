"""`nnunet-dg doctor` as a user runs it, with other packages' declarations, a dataset's plans, and without nnU-Net."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import pytest
from helpers import SUPPORT, set_nnunets_folders
from nnunet_host import declare

from nnunet_dg.cli import main
from nnunet_dg.method import Method, number


def doctor(*arguments, status, folder, **environment):
    """The output of `nnunet-dg doctor` with the packages in ``folder`` installed."""
    program = Path(sysconfig.get_path("scripts")) / "nnunet-dg"
    environment = os.environ | {"COLUMNS": "250", "PYTHONWARNINGS": "ignore", "PYTHONPATH": str(folder)} | environment
    done = subprocess.run([program, "doctor", *arguments], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def row(printed, name):
    return next(line for line in printed.splitlines() if name in line)


def test_what_other_packages_declare_is_listed(tmp_path):
    module = (SUPPORT / "their_package.py").read_text()
    declare(tmp_path, "theirs", module, "[nnunetv2.planners]\nTheirName = theirs:nnUNetTrainerTheirs\n")
    printed = doctor(status=0, folder=tmp_path)
    assert row(printed, "TheirName").count("theirs") == 2  # the package and the module
    assert "nnunet-dg" in row(printed, "nnUNetTrainerSgCG")
    assert "PRINTED" not in printed


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """What doctor prints where another package declares what cannot be loaded."""
    folder = tmp_path_factory.mktemp("broken")
    targets = {
        "Missing": "theirs:missing", "NotAClass": "theirs:not_a_class", "NoModule": "no_such_module:X",
        "Exits": "exits:X", "Loud": "loud:X",
    }  # fmt: skip
    points = "".join(f"Their{name} = {target}\n" for name, target in targets.items())
    declare(folder, "theirs", (SUPPORT / "their_package.py").read_text(), f"[nnunetv2.planners]\n{points}")
    (folder / "exits.py").write_text("import sys\nprint('PRINTED')\nsys.exit(0)\n")
    (folder / "loud.py").write_text("raise ValueError('[bold]loud[/bold] \\x1b[31m red\\nnext line [/]')\n")
    return doctor(status=1, folder=folder)


@pytest.mark.parametrize(
    ("name", "said"),
    [("Missing", "FAILED"), ("NotAClass", "FAILED"), ("NoModule", "no_such_module"), ("Exits", "FAILED")],
)
def test_what_cannot_be_loaded_is_listed_with_what_is_wrong(broken, name, said):
    assert said in row(broken, f"Their{name}")
    assert "theirs" in row(broken, f"Their{name}")
    assert "PRINTED" not in broken
    assert "Traceback" not in broken


def test_markup_and_escapes_from_other_packages_are_printed_literally(broken):
    assert "[bold]loud[/bold]" in broken
    assert "\x1b" not in broken


@pytest.fixture
def doctor_here(tmp_path, monkeypatch, capsys):
    """What `nnunet-dg doctor` prints in this process, with nnU-Net's folders below ``tmp_path``."""
    import nnunet_dg.doctor.dataset  # noqa: F401, reads nnU-Net's folders

    set_nnunets_folders(monkeypatch, tmp_path)
    monkeypatch.setenv("COLUMNS", "250")

    def run(*arguments, status):
        assert main(["doctor", *arguments]) == status
        captured = capsys.readouterr()
        return captured.out + captured.err

    return run


@pytest.fixture
def dataset(tmp_path):
    """A function that writes the plans of a dataset that has no other files."""
    raw, preprocessed = (tmp_path / name / "Dataset705_CT" for name in ("nnUNet_raw", "nnUNet_preprocessed"))
    raw.mkdir(parents=True)
    preprocessed.mkdir(parents=True)
    content = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "a": 1}, "numTraining": 1}
    (preprocessed / "dataset.json").write_text(json.dumps(content | {"file_ending": ".nii.gz"}))

    def write(scheme="CTNormalization", name="nnUNetPlans", **section):
        configuration = {"normalization_schemes": [scheme], "architecture": {}}
        plans = {"dataset_name": "Dataset705_CT", "configurations": {"3d_fullres": configuration}} | section
        properties = {"percentile_00_5": -40.0, "percentile_99_5": 280.0}
        plans["foreground_intensity_properties_per_channel"] = {"0": properties}
        (preprocessed / f"{name}.json").write_text(json.dumps(plans))
        return raw

    return write


def flat(printed):
    return " ".join(printed.replace("│", " ").split())


def test_plans_fitted_to_ct_are_named_with_what_to_do(doctor_here, dataset, tmp_path):
    dataset()
    printed = flat(doctor_here("-d", "705", status=0))
    assert "CT: CTNormalization" in printed
    assert "CTNormalization clips channel CT to [-40, 280]" in printed
    assert "plan with nnUNetPlannerAnyModality" in printed
    assert "domains one, because there is no" in printed


def test_copied_plans_with_the_name_of_the_original_are_named(doctor_here, dataset):
    dataset(name="copied", plans_name="nnUNetPlans")
    said = "The plans copied have the plans_name 'nnUNetPlans', by which nnU-Net names the results folder"
    assert said in flat(doctor_here("-d", "705", "-p", "copied", status=0))
    dataset(name="copied", plans_name="copied")
    assert said not in flat(doctor_here("-d", "705", "-p", "copied", status=0))


def test_normalization_settings_and_domains_are_shown(doctor_here, dataset, tmp_path):
    section = {"planned_for": {"3d": {"extractor": "anatomix"}}, "dropgen": {"p": 0.25}}
    raw = dataset("AnyModalityNormalization", "mine", nnunet_dg=section)
    (raw / "domains.json").write_text(json.dumps({"case_0": "[site] A", "case_1": "B"}))
    printed = flat(doctor_here("-d", "Dataset705_CT", "-p", "mine", status=0))
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
        (("-d", "705"), {"nnunet_dg": {"trainings": {"seed": 0}}}, "Did you mean 'training'?"),
        (("-d", "705"), {"nnunet_dg": {"sgcg": {"temprature": 0.2}}}, "Did you mean 'temperature'?"),
        (("-d", "705"), {"nnunet_dg": {"dropgen": {"p": 2}}}, "p must be"),
        (("-d", "705"), {"nnunet_dg": {"tinymig": {"divergence": "x"}}}, "divergence must be one of"),
        (("-d", "705"), {"nnunet_dg": {"training": {"seed": -1}}}, "seed must be"),
    ],
)
def test_problems_of_a_dataset_are_explained_in_one_line(doctor_here, dataset, tmp_path, arguments, section, expected):
    dataset(**section)
    printed = doctor_here(*arguments, status=1)
    assert expected in printed
    assert "Traceback" not in printed


def test_settings_of_another_packages_method_are_checked_too(doctor_here, dataset, monkeypatch):
    from nnunet_dg.doctor import dataset as module
    from nnunet_dg.training import plans

    @dataclass(frozen=True)
    class Noise(Method):
        key = "feature_noise"
        radius: int  # without a default: the trainer gives it
        strength: float = number(0.1, 0, 1)

    monkeypatch.setattr(module, "default_methods", lambda: [Noise(3)])
    monkeypatch.setattr(plans, "trainers_by_method", lambda: {Noise: []})
    dataset(nnunet_dg={"feature_noise": {"strength": 5}})
    assert "strength must be" in doctor_here("-d", "705", status=1)


@pytest.fixture
def preprocessed(dataset, tmp_path):
    """A dataset with two cases: the raw folder and the preprocessed folder."""
    raw = dataset()
    folder = tmp_path / "nnUNet_preprocessed" / raw.name
    (folder / "gt_segmentations").mkdir()
    for case in ("case_0", "case_1"):
        (folder / "gt_segmentations" / f"{case}.nii.gz").touch()
    return raw, folder


@pytest.mark.parametrize(
    ("domains", "expected"),
    [
        ({"case_0": "A"}, "case 'case_1' is without a domain"),
        ({"case_0": "A", "case_1": "B", "case_2": "B"}, "case 'case_2' is not in the dataset"),
        ({"case_0": 1, "case_1": "B"}, "domains.json: "),
    ],
)
def test_domains_that_do_not_match_the_cases_are_refused(doctor_here, preprocessed, tmp_path, domains, expected):
    raw, _ = preprocessed
    (raw / "domains.json").write_text(json.dumps(domains))
    printed = doctor_here("-d", "705", status=1)
    assert expected in printed
    assert "Traceback" not in printed


def test_domains_are_compared_with_the_cases_and_nothing_is_written(doctor_here, preprocessed, tmp_path):
    raw, folder = preprocessed
    (raw / "domains.json").write_text(json.dumps({"case_0": "A", "case_1": "B"}))
    printed = flat(doctor_here("-d", "705", status=0))
    assert "domains A, B, from" in printed
    assert "there is a single case from A, B" in printed
    assert not (folder / "domains.json").exists()


def test_a_dataset_whose_number_only_starts_the_same_is_not_used(doctor_here, preprocessed, tmp_path):
    """nnU-Net compares only the first three digits."""
    _, folder = preprocessed
    folder.rename(folder.with_name("Dataset7051_CT"))
    shutil.rmtree(tmp_path / "nnUNet_raw" / "Dataset705_CT")
    printed = doctor_here("-d", "705", status=1)
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
