import os
import subprocess
import sysconfig
from pathlib import Path

import pytest
import torch
from nnunet_host import NOWHERE

from nnunet_dg.cli import main


def cli(*arguments, status=0, **environment):
    program = Path(sysconfig.get_path("scripts")) / "nnunet-dg"
    environment = os.environ | {"COLUMNS": "200", "PYTHONWARNINGS": "ignore"} | environment
    done = subprocess.run([program, *arguments], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_doctor_finds_every_class_and_says_what_is_there(tmp_path):
    printed = cli("doctor", NNUNET_DG_HOME=str(tmp_path))
    for name in ("nnUNetTrainerDropGen", "_p025", "_p075", "_MIND", "_Paper"):
        assert any(
            line.split("│")[1].strip().endswith(name) for line in printed.splitlines() if "nnunet_dg.trainers" in line
        )
    assert printed.count("nnunet_dg.trainers.") >= 6
    assert "NOT FOUND" not in printed
    assert "nnunetv2" in printed
    assert "not on this machine" in printed
    assert str(tmp_path) in printed.replace("\n", "")


def test_doctor_says_what_is_wrong_without_autoload():
    printed = cli("doctor", status=1, TORCH_DEVICE_BACKEND_AUTOLOAD="0")
    assert "FAILED" not in printed  # nnU-Net's own advice, nine lines for each class, is not ours
    assert printed.count("NOT FOUND") >= 10
    assert "TORCH_DEVICE_BACKEND_AUTOLOAD=0 switches off" in printed


def test_weights_are_listed_installed_and_refused(tmp_path, anatomix_weights):
    home = {"NNUNET_DG_HOME": str(tmp_path / "home")}
    torch.save(anatomix_weights, tmp_path / "mine.pth")
    assert "not on this machine" in cli("weights", "list", **home)
    refused = cli("weights", "install", "anatomix", str(tmp_path / "mine.pth"), status=1, **home)
    assert "not the published file" in refused
    assert "Traceback" not in refused
    installed = cli("weights", "install", "anatomix", str(tmp_path / "mine.pth"), "--unpublished", **home)
    assert str(tmp_path / "home" / "anatomix.pth") in installed
    assert "installed as unpublished" in cli("weights", **home)
    unknown = cli("weights", "install", "dino", str(tmp_path / "mine.pth"), status=1, **home)
    assert "Weights are fetched for anatomix and ViTs of timm; got 'dino'" in unknown
    vit = cli("weights", "install", "samvit_base_patch16.sa1b", str(tmp_path / "mine.pth"), status=1, **home)
    assert 'set weights in plans["nnunet_dg"]["tinymig"] to it' in vit


def test_paths_with_brackets_are_shown_as_they_are(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("NNUNET_DG_HOME", str(tmp_path / "cache[/lab]"))
    monkeypatch.setenv("COLUMNS", "300")
    assert main(["weights", "list"]) == 0
    assert "cache[/lab]/anatomix.pth" in capsys.readouterr().out


def test_fetching_offline_says_what_to_do(tmp_path):
    printed = cli(
        "weights", "fetch", "anatomix", status=1, NNUNET_DG_HOME=str(tmp_path), https_proxy=NOWHERE, no_proxy=""
    )
    assert "nnunet-dg weights install anatomix FILE" in printed
    assert "nnUNetTrainerDropGen_MIND" in printed
    assert "Traceback" not in printed


@pytest.mark.parametrize("arguments", [[], ["weights"], ["demo"], ["doctor"], ["env"], ["weights", "install"]])
def test_every_command_has_a_help_text(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, "--help"])
    assert stopped.value.code == 0
    assert "usage: nnunet-dg" in capsys.readouterr().out


def test_an_unknown_command_is_refused(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["trian"])
    assert stopped.value.code == 2
    assert "trian" in capsys.readouterr().err
