import errno
import os
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch
from helpers import SUPPORT
from nnunet_host import NOWHERE

from nnunet_dg.cli import main
from nnunet_dg.errors import DataError, HostError, SettingsError, WeightsError


def cli(*arguments, status=0, **environment):
    program = Path(sysconfig.get_path("scripts")) / "nnunet-dg"
    environment = os.environ | {"COLUMNS": "200", "PYTHONWARNINGS": "ignore"} | environment
    done = subprocess.run([program, *arguments], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_doctor_finds_every_class_and_lists_packages_and_weights(tmp_path):
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
    assert "FAILED" not in printed  # nnU-Net's own advice, nine lines per class, is not printed
    assert printed.count("NOT FOUND") >= 10
    assert "TORCH_DEVICE_BACKEND_AUTOLOAD=0 switches off" in printed


@pytest.fixture
def weights(tmp_path, monkeypatch, capsys):
    """What `nnunet-dg weights` prints, in this process, with an empty folder of weights."""
    monkeypatch.setenv("NNUNET_DG_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments, status=0):
        assert main(["weights", *map(str, arguments)]) == status
        captured = capsys.readouterr()
        return captured.out + captured.err

    return run


def test_weights_are_listed_installed_and_refused(weights, tmp_path, anatomix_weights):
    mine = tmp_path / "mine.pth"
    torch.save(anatomix_weights, mine)
    assert "not on this machine" in weights("list")
    refused = weights("install", "anatomix", mine, status=1)
    assert "not the published file" in refused
    assert "with the option --unpublished" in refused
    assert "Traceback" not in refused
    assert str(tmp_path / "home" / "anatomix.pth") in weights("install", "anatomix", mine, "--unpublished")
    assert "installed as unpublished" in weights()
    unknown = weights("install", "dino", mine, status=1)
    assert "Weights can be fetched for anatomix and ViTs of timm; got 'dino'" in unknown
    vit = weights("install", "samvit_base_patch16.sa1b", mine, status=1)
    assert 'set weights in plans["nnunet_dg"]["tinymig"] to its path' in vit


def test_brackets_in_paths_are_printed_unchanged(tmp_path, monkeypatch, capsys):
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


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["stress", "-o", "out", "--kinds", "inversion", "folder"], True),
        (["report", "-o", "out", "--trained-on", "a", "folder"], True),
        (["stress", "folder"], False),
        (["weights", "install"], False),
    ],
)
def test_says_which_options_took_the_missing_arguments(arguments, hint, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert ("options that take several values" in capsys.readouterr().err) == hint


@pytest.fixture
def ended_by(monkeypatch, capsys):
    """A function that runs a command which raises the given error; returns its exit status and stderr."""

    def run(error):
        def command(_):
            raise error

        monkeypatch.setattr("nnunet_dg.cli._doctor", command)
        return main(["doctor"]), capsys.readouterr().err

    return run


@pytest.mark.parametrize("kind", [SettingsError, WeightsError, DataError, HostError])
def test_expected_errors_are_one_line(ended_by, kind):
    assert ended_by(kind("p must be in [0, 1); got 2.")) == (1, "nnunet-dg: p must be in [0, 1); got 2.\n")


def test_control_characters_in_messages_are_escaped(ended_by):
    assert ended_by(DataError("\x1b[2Jcase\udcff"))[1] == "nnunet-dg: \\x1b[2Jcase\\udcff\n"


@pytest.mark.parametrize(
    "error",
    [RuntimeError("CUDA error"), ValueError("shapes"), KeyError("labels"), AssertionError(), MemoryError(),
     torch.OutOfMemoryError("out of memory"), OSError("without a number"), ConnectionResetError(104, "reset"),
     BrokenPipeError(32, "of a worker"), ModuleNotFoundError("No module named 'timm'", name="timm")],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_bugs_keep_their_traceback_and_ask_for_a_report(ended_by, error):
    status, printed = ended_by(error)
    assert status == 1
    assert "Traceback (most recent call last)" in printed
    assert type(error).__name__ in printed
    *_, last = printed.splitlines()
    assert last.startswith("nnunet-dg 0.")
    assert "please report it" in last
    assert "unexpected error" in last


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "a/b"), "No such file or directory: a/b"),
        (PermissionError(errno.EACCES, "Permission denied", "c"), "Permission denied: c"),
        (OSError(errno.EROFS, "Read-only file system", "d"), "Read-only file system: d"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", b"e"), "Not a directory: b'e'"),
    ],
)
def test_errors_of_the_operating_system_are_one_line(ended_by, error, line):
    assert ended_by(error) == (1, f"nnunet-dg: {line}\n")


def test_an_interrupted_command_prints_only_a_newline(ended_by):
    assert ended_by(KeyboardInterrupt()) == (130, "\n")


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="needs POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGTERM, getattr(signal, "SIGHUP", None), signal.SIGINT])
def test_a_signal_leaves_no_temporary_file(tmp_path, number):
    command = [sys.executable, SUPPORT / "slow_command.py", "writes", tmp_path / "file"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"there\n"
        assert len(list(tmp_path.iterdir())) == 1
        process.send_signal(number)
        process.wait(30)
        assert b"Traceback" not in process.stderr.read()
    assert process.returncode == 128 + number
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX pipes")
def test_a_closed_pipe_is_not_an_error():
    command = [sys.executable, SUPPORT / "slow_command.py", "prints"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 128 + signal.SIGPIPE


@pytest.mark.parametrize("command", [["doctor"], ["stability", "features", "a", "b", "-o", "c"]])
def test_commands_say_that_nnunet_is_missing(command):
    code = "import sys; sys.modules['nnunetv2'] = None\nfrom nnunet_dg.cli import main; sys.exit(main(sys.argv[1:]))"
    environment = os.environ | {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code, *command], capture_output=True, text=True,
                          env=environment, check=False)  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == "nnunet-dg: This command needs nnU-Net, which is not installed: pip install nnunetv2\n"


def test_the_command_line_starts_without_heavy_imports():
    code = "import sys, nnunet_dg.cli\nnnunet_dg.cli._parser()\nprint(*{m.split('.')[0] for m in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"torch", "numpy", "pandas", "pydantic", "matplotlib", "nnunetv2", "rich", "filelock"}
    assert not heavy & set(done.stdout.split())


def test_weights_are_listed_without_nnunet():
    code = "import sys; sys.modules['nnunetv2'] = None\nfrom nnunet_dg.cli import main; sys.exit(main(sys.argv[1:]))"
    environment = os.environ | {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    command = [sys.executable, "-W", "ignore", "-c", code, "weights", "list"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "anatomix" in done.stdout
