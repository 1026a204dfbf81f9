"""Without the packages of an extra: what still works, and the error that names the extra."""

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import requires

import numpy as np
import pandas as pd
import pytest
from helpers import SUPPORT
from nnunet_host import SITE
from tiny_model import write_cases, write_trained

from nnunet_dg.cli import main
from nnunet_dg.errors import ExtraError, UserError
from nnunet_dg.evaluation.metrics import mask_metrics
from nnunet_dg.extras import EXTRAS, missing, require

INSTALL = 'pip install "nnunet-dg[{}]"'


def without(monkeypatch, *packages):
    for package in packages:
        monkeypatch.setitem(sys.modules, package, None)


@pytest.fixture
def bare(monkeypatch):
    """This process, in which no package of an extra can be imported."""
    without(monkeypatch, *(package for packages in EXTRAS.values() for package in packages))


@pytest.fixture
def cases(tmp_path_factory):
    """Folders of two images and of their truths."""
    return write_cases(tmp_path_factory.mktemp("cases"), ("case_0", "case_1"))


def test_every_module_can_be_imported_without_the_extras():
    environment = os.environ | {"PYTHONPATH": str(SITE), "WITHOUT_EXTRAS": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, SUPPORT / "import_all.py"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "nnUNetTrainerDropGen_Paper" in done.stdout


def test_the_error_names_what_is_missing_and_the_command_that_installs_it(monkeypatch):
    require("report", "The report")
    without(monkeypatch, "tabulate")
    assert missing("report") == ["tabulate"]
    with pytest.raises(ExtraError, match=r"The report needs tabulate, which is not installed.") as raised:
        require("report", "The report")
    assert INSTALL.format("report") in str(raised.value)
    assert isinstance(raised.value, UserError)
    without(monkeypatch, "monai")
    with pytest.raises(ImportError, match=r"The report needs monai, tabulate, which are not installed."):
        require("report", "The report")


def test_a_python_that_is_too_old_for_an_extra_is_named(monkeypatch):
    without(monkeypatch, "snakemake")
    monkeypatch.setattr(sys, "version_info", (3, 11, 0))
    with pytest.raises(ExtraError, match=r"A benchmark needs snakemake, which is not installed.*\[benchmark\]"):
        require("benchmark", "A benchmark")
    monkeypatch.setattr(sys, "version_info", (3, 10, 13))
    with pytest.raises(
        ExtraError, match=r"snakemake, which has no release for Python 3\.10\. .* Python 3\.11 or newer"
    ):
        require("benchmark", "A benchmark")


def test_the_extras_are_those_of_the_distribution():
    declared = {extra: set() for extra in EXTRAS}
    for requirement in requires("nnunet-dg"):
        name, _, marker = requirement.partition(";")
        for extra in EXTRAS:
            if f'extra == "{extra}"' in marker.replace("'", '"'):
                declared[extra].add(name.partition(">=")[0].strip().replace("-", "_").lower().replace("pyyaml", "yaml"))
    assert declared == {extra: set(packages) for extra, packages in EXTRAS.items()}


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        (["report", "{folder}/results", "-o", "{folder}/out"], "report"),
        (["stress", "{folder}/results", "-o", "{folder}/out"], "report"),
        (["demo", "-o", "{folder}/out"], "report"),
        (
            [
                "stability",
                "features",
                "{images}/case_0_0000.nii.gz",
                "{images}/case_1_0000.nii.gz",
                "-o",
                "{folder}/out",
            ],
            "report",
        ),
        (["stability", "reliance", "{folder}/results", "-o", "{folder}/out"], "report"),
        (["weights", "fetch", "samvit_base_patch16.sa1b"], "teachers"),
        (["benchmark", "{folder}/plan.yaml"], "benchmark"),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else value,
)
def test_a_command_names_its_extra_before_it_starts(bare, tmp_path, cases, capsys, command, extra):
    assert main([part.format(folder=tmp_path, images=cases[0]) for part in command]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("nnunet-dg: ")
    assert line.endswith(INSTALL.format(extra))
    assert list(tmp_path.iterdir()) == []


def test_evaluate_measures_dice_and_says_what_it_leaves_out(bare, cases, tmp_path, capsys):
    _, truths = cases
    predictions = shutil.copytree(truths, tmp_path / "predictions")
    labels = {"background": 0, "box": 1, "core": 2}
    dataset = {"labels": labels, "channel_names": {"0": "MRI"}, "file_ending": ".nii.gz"}
    (tmp_path / "dataset.json").write_text(json.dumps(dataset))
    options = ["-djfile", str(tmp_path / "dataset.json"), "-np", "1", "-o", str(tmp_path / "out")]
    assert main(["evaluate", str(truths), str(predictions), *options]) == 0
    printed = capsys.readouterr().err
    assert "Only Dice is measured." in printed
    assert INSTALL.format("report") in printed
    table = pd.read_csv(tmp_path / "out" / "evaluation.csv")
    assert (table["dice"] == 1).all()
    assert table[["hd95_mm", "assd_mm", "nsd"]].isna().all(axis=None)


def test_dice_only_is_nowhere_a_silent_default(bare):
    mask, empty = np.ones((4, 4), bool), np.zeros((4, 4), bool)
    with pytest.raises(ExtraError, match="Measuring surfaces needs monai"):
        mask_metrics(mask, mask, [1, 1])
    assert mask_metrics(mask, mask, [1, 1], surfaces=False)["dice"] == 1
    one_empty = mask_metrics(empty, mask, [1, 1], surfaces=False)
    assert one_empty["dice"] == 0
    assert all(np.isnan(one_empty[name]) for name in ("hd95_mm", "assd_mm", "nsd"))


def test_a_model_that_needs_no_teacher_is_exported(bare, tmp_path, monkeypatch):
    for place in ("nnunetv2.paths", "nnunetv2.utilities.file_path_utilities"):
        monkeypatch.setattr(f"{place}.nnUNet_results", str(tmp_path / "results"))
    write_trained(tmp_path / "results", "nnUNetTrainerTinyMIG")
    model = ["-d", "Dataset701_Tiny", "-c", "3d_fullres", "-tr", "nnUNetTrainerTinyMIG", "-f", "0"]
    assert main(["export", *model, "-o", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "fold_0" / "checkpoint_final.pth").is_file()
