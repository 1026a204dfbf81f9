"""The built wheel and its installation."""

import re
import subprocess
import sys
import zipfile
from importlib.metadata import packages_distributions, requires

import pytest
from fresh_process import python
from helpers import REPOSITORY
from test_architecture import FILES, imported


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
        *(f"extractors/synthetic_{dims}d.{ending}" for dims in (2, 3) for ending in ("pt", "json")),
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
        "import torch, nnunet_dg\nfrom lookup import trainer\n"
        "print(trainer('nnUNetTrainerDropGen_Paper'), nnunet_dg.__file__)",
        tmp_path,
    )
    assert "nnunet_dg.trainers.nnUNetTrainerDropGen_Paper" in printed
    assert str(tmp_path) in printed


def normalized(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_distributions_whose_packages_are_imported_are_those_that_are_declared():
    """So that none is there only because another package happens to depend on it."""
    installed = packages_distributions()
    packages = {module.split(".")[0] for path in FILES for module in imported(path)} - {*sys.stdlib_module_names}
    used = {normalized(installed[package][0]) for package in packages - {"nnunet_dg"}}
    used.add("snakemake")  # run as a program
    extras = r'extra == ["\'](report|teachers|benchmark)["\']'
    requirements = [r for r in requires("nnunet-dg") if "extra ==" not in r or re.search(extras, r)]
    assert used == {normalized(re.split(r"[ <>=!;\[]", requirement)[0]) for requirement in requirements}
