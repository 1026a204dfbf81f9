"""The built wheel and its installation."""

import subprocess
import sys
import zipfile

import pytest
from helpers import REPOSITORY
from test_plugin import LOOKUP, python


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    ).stdout.split()
    if not tracked:
        pytest.skip("not a git checkout, so the files that belong to the distribution are unknown")
    for name in tracked:  # a copy, so that building leaves nothing behind in the repository
        if (REPOSITORY / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((REPOSITORY / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "-q"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", folder, source], check=True)
    return next(folder.glob("*.whl"))


def test_has_one_top_level_name_and_all_packages(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"nnunet_dg"}
    for expected in (
        "trainers/nnUNetTrainerDropGen.py",
        "planners/__init__.py",
        "py.typed",
        "ext_trainers/nnunet_dg_trainers.py",
    ):
        assert f"nnunet_dg/{expected}" in names
    packages = {path.parent for path in (REPOSITORY / "nnunet_dg").rglob("*.py")}
    assert all(
        f"nnunet_dg/{p.relative_to(REPOSITORY / 'nnunet_dg')}".rstrip("/.") in "\n".join(names) for p in packages
    )
    assert any(name.endswith("LICENSE") for name in names)


def test_nnunet_finds_the_trainers_when_installed_from_the_wheel(wheel, tmp_path):
    pip = [sys.executable, "-m", "pip", "-q", "install", "--no-deps", "--no-index", "--target", tmp_path, wheel]
    subprocess.run(pip, check=True)
    printed = python(
        f"import torch, nnunet_dg\n{LOOKUP}\nt = trainer('nnUNetTrainerDropGen_Paper')\nprint(t, nnunet_dg.__file__)",
        tmp_path,
    )
    assert "nnunet_dg.trainers.nnUNetTrainerDropGen_Paper" in printed
    assert str(tmp_path) in printed
