"""The method of docs/how-to/own-method.md is installed as the page says and trained by nnU-Net's commands."""

import json
import os
import re

import pytest
from helpers import REPOSITORY
from nnunet_host import UNVALIDATED, declare

PAGE = (REPOSITORY / "docs" / "how-to" / "own-method.md").read_text(encoding="utf-8")
MODULE = re.search(r"```python\n(.*?)```", PAGE, re.S)[1]
DECLARED = re.search(r'^\[project\.entry-points\."nnunetv2\.trainers"\]\n(.*?)\n\n', PAGE, re.S | re.M)[1]
ENTRY_POINTS = DECLARED.replace('"', "")
TRAINER = "Tiny_nnUNetTrainerFeatureNoise"
BRIEF = f"""
from noise import nnUNetTrainerFeatureNoise
from tiny_trainers import tiny
{TRAINER} = tiny(nnUNetTrainerFeatureNoise)
"""


@pytest.fixture(scope="module")
def packages(host, tmp_path_factory):
    """A value of PYTHONPATH that contains the page's package and a variant of its trainer with three short epochs."""
    folder = tmp_path_factory.mktemp("own")
    declare(folder, "noise", MODULE, f"[nnunetv2.trainers]\n{ENTRY_POINTS}\n")
    declare(folder, "brief-noise", BRIEF, f"[nnunetv2.trainers]\n{TRAINER} = brief_noise:{TRAINER}\n")
    return os.pathsep.join([str(folder), host.environment["PYTHONPATH"]])


@pytest.fixture(scope="module")
def trained(host, packages):
    host.train(TRAINER, PYTHONPATH=packages, **UNVALIDATED)
    return host.results(TRAINER)


def test_the_method_has_at_most_thirty_lines():
    code = [line for line in MODULE.splitlines() if line.strip() and not line.startswith(("import", "from"))]
    assert len(code) <= 30


def test_the_method_trains_and_its_settings_are_recorded(trained):
    assert (trained / "checkpoint_final.pth").is_file()
    plans = json.loads((trained.parent / "plans.json").read_text())
    assert plans["nnunet_dg"] == {"feature_noise": {"strength": 0.1}}


def test_the_model_is_exported_for_plain_nnunet(host, packages, trained, tmp_path):
    host.run(
        f"nnunet-dg export -d 701 -c 3d_fullres -tr {TRAINER} -p tinyPlans -f 0 -o {tmp_path / 'model'}",
        PYTHONPATH=packages,
    )
    assert (tmp_path / "model" / "fold_0" / "checkpoint_final.pth").is_file()


def test_the_method_is_listed_and_cited(host, packages):
    listed = host.run("nnunet-dg methods", PYTHONPATH=packages)
    assert re.search(r"^feature_noise.*nnUNetTrainerFeatureNoise", listed, re.M | re.S)
    cited = host.run("nnunet-dg cite nnUNetTrainerFeatureNoise", PYTHONPATH=packages)
    assert "author = {Ada Lovelace}" in cited


def test_a_setting_that_is_not_accepted_is_named(host, packages):
    preprocessed = host.folder / "nnUNet_preprocessed" / "Dataset701_Tiny"
    plans = json.loads((preprocessed / "tinyPlans.json").read_text())
    wrong = plans | {"plans_name": "noisyPlans", "nnunet_dg": {"feature_noise": {"strength": 2}}}
    (preprocessed / "noisyPlans.json").write_text(json.dumps(wrong))
    printed = host.train(TRAINER, plans="noisyPlans", status=1, PYTHONPATH=packages)
    assert "strength must be a number in [0, 1]; got 2." in printed
