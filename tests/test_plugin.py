"""The plugin in fresh processes with the real nnU-Net: it works in any import order, changes no other lookup, and never
raises."""

import importlib.util
import json
import os
import re
import subprocess
import sys
import sysconfig
from importlib.metadata import entry_points, version
from pathlib import Path

import pytest
from fresh_process import python
from helpers import SUPPORT
from nnunet_host import declare

from nnunet_dg import plugin

HAS_EXT_TRAINER = importlib.util.find_spec("nnunetv2.utilities.find_objects") is not None  # nnU-Net 2.8


@pytest.mark.parametrize(
    "first",
    [
        "import torch",
        "from nnunetv2.utilities.find_class_by_name import recursive_find_python_class as bound",
        "import nnunetv2.utilities.plans_handling.plans_handler",
        "import torch; import nnunetv2.run.run_training",
    ],
)
def test_trainers_are_found_in_any_import_order(first):
    printed = python(
        f"{first}\nimport torch\nfrom lookup import *\nprint(trainer('nnUNetTrainerDropGen_MIND').__module__)"
    )
    assert "nnunet_dg.trainers.nnUNetTrainerDropGen" in printed


def test_modules_that_imported_the_lookup_before_torch_use_the_extended_one():
    printed = python(
        "import sys; from nnunetv2.utilities.find_class_by_name import recursive_find_python_class\n"
        "assert 'torch' not in sys.modules\nimport torch, os, nnunetv2\n"
        "folder = os.path.join(nnunetv2.__path__[0], 'training', 'nnUNetTrainer')\n"
        "print(recursive_find_python_class(folder, 'nnUNetTrainerDropGen', 'nnunetv2.training.nnUNetTrainer'))"
    )
    assert "nnunet_dg.trainers.nnUNetTrainerDropGen.nnUNetTrainerDropGen" in printed


def test_trainers_are_found_in_a_spawned_worker():
    command = [sys.executable, SUPPORT / "lookup_in_a_worker.py"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "nnUNetTrainerDropGen" in done.stdout


@pytest.mark.parametrize(
    ("group", "package"),
    [
        ("nnunetv2.trainers", "'training', 'nnUNetTrainer'"),
        ("nnunetv2.planners", "'experiment_planning'"),
        ("nnunetv2.preprocessors", "'preprocessing'"),
    ],
)
def test_any_package_can_declare_its_classes(group, package, tmp_path):
    declare(tmp_path, "foreign", "class TheirClass: pass\n", f"[{group}]\nTheirClass = foreign:TheirClass\n")
    printed = python(f"import torch\nfrom lookup import *\nprint(look_up('TheirClass', {package}))", tmp_path)
    assert "<class 'foreign.TheirClass'>" in printed


def test_declared_classes_are_found_before_the_tree_walk(tmp_path):
    """Otherwise a broken module in nnU-Net's tree would stop the walk before it reaches them."""
    declare(tmp_path, "foreign", "class TheirClass: pass\n", "[nnunetv2.trainers]\nTheirClass = foreign:TheirClass\n")
    code = (
        "import torch\nfrom lookup import *\nimport importlib\n"
        "def broken(*args, **kwargs): raise ImportError('a broken module in the tree')\n"
        "importlib_import, importlib.import_module = importlib.import_module, broken\n"
        "import nnunetv2.utilities.find_class_by_name as f\n"
        "try: trainer('nnUNetTrainer_5epochs')\n"
        "except ImportError as e: print(e)\n"
        "f.importlib = type('x', (), {'import_module': broken})\n"
        "importlib.import_module = importlib_import\n"
        "print(trainer('TheirClass'))"
    )
    printed = python(code, tmp_path)
    assert "a broken module in the tree" in printed
    assert "foreign.TheirClass" in printed


def test_other_names_are_looked_up_as_before():
    names = ("nnUNetTrainer_5epochs", "nnUNetTrainerNoSuchThing")
    code = f"import torch\nfrom lookup import *\nprint(*map(trainer, {names}))"
    with_plugin = python(code)
    assert with_plugin == python(code, TORCH_DEVICE_BACKEND_AUTOLOAD="0")
    assert "nnUNetTrainer_5epochs" in with_plugin
    assert "None" in with_plugin


def test_trainers_are_not_found_in_other_packages_of_nnunet():
    printed = python("import torch\nfrom lookup import *\nprint(look_up('nnUNetTrainerDropGen', 'imageio'))")
    assert printed.strip().endswith("None")


def test_a_declaration_that_cannot_be_loaded_names_its_package(tmp_path):
    declare(tmp_path, "foreign", "import no_such_module\n", "[nnunetv2.trainers]\nBroken = foreign:Broken\n")
    printed = python(
        "import torch\nfrom lookup import *\ntry: trainer('Broken')\nexcept ImportError as e: print(e)",
        tmp_path,
    )
    assert "'Broken' is declared by foreign as foreign:Broken, which cannot be loaded: No module named" in printed


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("import sys; sys.exit(0)", r"cannot be loaded: 0 \(SystemExit\)"),
        ("class Mine(BaseException): pass\nraise Mine('their own')", r"cannot be loaded: their own \(Mine\)"),
        ("X = 5", "is not a class, but of type int"),
        ("def X(): pass", "is not a class, but of type function"),
    ],
)
def test_a_declaration_that_is_not_a_class_or_exits_names_its_package(module, message, tmp_path):
    declare(tmp_path, "foreign", f"{module}\n", "[nnunetv2.trainers]\nBroken = foreign:X\n")
    printed = python(
        "import torch\nfrom lookup import *\ntry: trainer('Broken')\nexcept ImportError as e: print(e)",
        tmp_path,
    )
    assert re.search(f"'Broken' is declared by foreign as foreign:X, which {message}", printed), printed


def test_names_that_nnunet_defines_are_never_replaced(tmp_path):
    """The declaring package is not even imported. Names that nnU-Net does not define are still found."""
    names = {"trainers": "nnUNetTrainer", "planners": "ResEncUNetPlanner", "preprocessors": "DefaultPreprocessor"}
    points = "".join(f"[nnunetv2.{group}]\n{name} = hostile:X\n" for group, name in names.items())
    declare(tmp_path, "hostile", "raise SystemExit('imported')\n", points)
    declare(tmp_path, "foreign", "class TheirClass: pass\n", "[nnunetv2.trainers]\nTheirClass = foreign:TheirClass\n")
    code = (
        "import torch\nfrom lookup import *\n"
        "for _ in range(2): print(trainer('nnUNetTrainer'))\n"
        "print(look_up('ResEncUNetPlanner', 'experiment_planning'), look_up('DefaultPreprocessor', 'preprocessing'))\n"
        "print(trainer('TheirClass'))"
    )
    printed = python(code, tmp_path)
    assert printed.count("nnunetv2.training.nnUNetTrainer.nnUNetTrainer.nnUNetTrainer'") == 2
    assert "nnunetv2.experiment_planning" in printed
    assert "nnunetv2.preprocessing" in printed
    assert "foreign.TheirClass" in printed
    assert printed.count("nnU-Net itself defines 'nnUNetTrainer'. Its declaration by hostile") == 1


def test_subpackages_use_the_entry_point_group_of_their_package(tmp_path):
    """For normalization schemes and for resampling functions, which are not classes."""
    points = (
        "[nnunetv2.preprocessors]\nTheirScheme = foreign:TheirScheme\ntheir_resampling = foreign:their_resampling\n"
    )
    module = "class TheirScheme: pass\ndef their_resampling(): pass\n"
    declare(tmp_path, "foreign", module, points)
    printed = python(
        "import torch\nfrom lookup import *\nprint(look_up('their_resampling', 'preprocessing', 'resampling'))\n"
        "print(look_up('ZScoreNormalization', 'preprocessing', 'normalization'))",
        tmp_path,
    )
    assert "<function their_resampling" in printed
    assert "ZScoreNormalization" in printed


def test_two_packages_that_declare_one_name_are_both_named(tmp_path):
    for name in ("one", "two"):
        declare(tmp_path, name, "class Mine: pass\n", f"[nnunetv2.trainers]\nMine = {name}:Mine\n")
    printed = python(
        "import torch\nfrom lookup import *\ntry: trainer('Mine')\nexcept ImportError as e: print(e)",
        tmp_path,
    )
    assert "declared more than once" in printed
    assert "one (one:Mine)" in printed
    assert "two (two:Mine)" in printed


def test_activating_twice_has_no_further_effect():
    printed = python(
        "import torch, nnunet_dg.plugin as p, sys; p.activate(); p.activate()\n"
        "assert sum(type(f).__module__ == 'nnunet_dg.plugin' for f in sys.meta_path) == 1\n"
        "import nnunetv2.utilities.find_class_by_name as f; once = f.recursive_find_python_class\n"
        "p.activate(); p.activate(); assert f.recursive_find_python_class is once\n"
        "assert not any(type(f).__module__ == 'nnunet_dg.plugin' for f in sys.meta_path); print('fine')"
    )
    assert "fine" in printed


def test_never_raises_into_import_torch():
    printed = python(
        "import sys\nclass Hostile(list):\n    def __iter__(self): raise RuntimeError('hostile')\n"
        "import nnunet_dg.plugin as p\nreal = sys.meta_path\nsys.meta_path = Hostile(real)\n"
        "import warnings; warnings.simplefilter('always')\n"
        "try: p.activate()\nfinally: sys.meta_path = real\nprint('survived')"
    )
    assert "survived" in printed
    assert "nnunet-dg could not register its trainers" in printed


@pytest.mark.parametrize(
    "order", ["sys.meta_path.insert(0, shared); import torch", "import torch; sys.meta_path.insert(0, shared)"]
)
def test_a_loader_that_modules_share_is_not_changed(order):
    """Placed before or after our finder, with warnings as errors: our trainers are found, and nothing is printed."""
    printed = python(
        f"import sys; from shared_loader import Shared, shared\n{order}\n"
        "import warnings; warnings.simplefilter('error', UserWarning)\nfrom lookup import *\n"
        "import nnunetv2.utilities.find_class_by_name as f, nnunetv2.utilities.json_export as other\n"
        "assert f.__loader__ is f.__spec__.loader is other.__loader__ is shared\n"
        "assert shared.exec_module.__func__ is Shared.exec_module and other.__name__ in shared.executed\n"
        "import colorsys\nprint(trainer('nnUNetTrainerDropGen'))"  # our finder, if it comes second, acts at this import
    )
    assert "nnUNetTrainerDropGen.nnUNetTrainerDropGen" in printed
    assert "could not register" not in printed


def test_activation_does_not_raise_where_warnings_are_errors():
    printed = python(
        "import warnings; warnings.simplefilter('error')\nimport nnunet_dg.plugin as p\n"
        "import sys; sys.meta_path = None\np.activate()\nprint('survived')"
    )
    assert "survived" in printed
    assert "nnunet-dg could not register its trainers" in printed


def test_a_lookup_takes_less_than_50_milliseconds(tmp_path):
    declare(tmp_path, "foreign", "class TheirClass: pass\n", "[nnunetv2.trainers]\nTheirClass = foreign:TheirClass\n")
    printed = python(
        "import torch, time\nfrom lookup import *\ntrainer('nnUNetTrainerDropGen')\nstart = time.process_time()\n"
        "trainer('TheirClass'); print(time.process_time() - start)",
        tmp_path,
    )
    assert float(printed.splitlines()[-1]) < 0.05  # nnU-Net may print other lines first


def test_find_spec_of_the_lookup_module_does_not_disable_the_plugin():
    printed = python(
        "import torch, importlib.util\nimportlib.util.find_spec('nnunetv2.utilities.find_class_by_name')\n"
        "from lookup import *\nprint(trainer('nnUNetTrainerDropGen').__module__)"
    )
    assert "nnunet_dg.trainers" in printed


def test_an_nnunet_without_the_lookup_function_can_still_be_imported(tmp_path):
    package = tmp_path / "nnunetv2" / "utilities"
    package.mkdir(parents=True)
    (tmp_path / "nnunetv2" / "__init__.py").touch()
    (package / "__init__.py").touch()
    (package / "find_class_by_name.py").write_text("def renamed(): return 'works'\n")
    printed = python(
        "import warnings; warnings.simplefilter('always')\nimport nnunet_dg.plugin as p; p.activate()\n"
        "from nnunetv2.utilities.find_class_by_name import renamed; print(renamed())", tmp_path
    )  # fmt: skip
    assert "works" in printed
    assert "nnunet-dg could not register its trainers" in printed


def test_imports_nothing_heavy():
    printed = python(
        "import sys, importlib.metadata; before = set(sys.modules)\nimport nnunet_dg.plugin as p; p.activate()\n"
        "print(sorted(m.split('.')[0] for m in set(sys.modules) - before))"
    )
    loaded = set(json.loads(printed.replace("'", '"')))
    assert loaded - set(sys.stdlib_module_names) == {"nnunet_dg"}


def test_no_file_is_written_into_nnunets_folder():
    folder = Path(importlib.util.find_spec("nnunetv2").origin).parent
    assert not [path for path in folder.rglob("*") if "DropGen" in path.name or "nnunet_dg" in path.name]


@pytest.mark.skipif(not HAS_EXT_TRAINER, reason="nnU-Net 2.7 has no nnUNet_extTrainer")
def test_without_autoload_nnunet_finds_the_same_classes_through_the_environment(tmp_path):
    cli = Path(sysconfig.get_path("scripts")) / "nnunet-dg"
    environment = os.environ | {"nnUNet_extTrainer": "/somewhere/of mine"}
    line = subprocess.run([cli, "env"], env=environment, capture_output=True, text=True, check=True).stdout.strip()
    shell = f'{line}; printf %s "$nnUNet_extTrainer"'
    value = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, check=True).stdout
    assert value.startswith("/somewhere/of mine:")
    code = (
        "import torch, sys\nfrom nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find\n"
        "found = find('nnUNetTrainerDropGen_MIND')\n"
        "from nnunet_dg.trainers.nnUNetTrainerDropGen import nnUNetTrainerDropGen_MIND as ours\n"
        "assert found is ours\nprint('the same')"
    )
    assert "the same" in python(code, TORCH_DEVICE_BACKEND_AUTOLOAD="0", nnUNet_extTrainer=value)
    again = subprocess.run([cli, "env"], env=environment | {"nnUNet_extTrainer": value}, capture_output=True, text=True)
    assert again.stdout.strip() == line


def test_every_entry_point_loads_the_class_it_names():
    groups = {group: entry_points(group=group) for group in plugin.GROUPS.values()}
    ours = [e for found in groups.values() for e in found if e.value.startswith("nnunet_dg.")]
    assert len(ours) >= 6
    for entry_point in ours:
        assert entry_point.load().__name__ == entry_point.name


@pytest.mark.skipif(version("nnunetv2").startswith("2.7."), reason="nnU-Net 2.7 has no unit tests beside its package")
def test_nnunets_own_tests_pass_with_the_plugin():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--pyargs", "nnunetv2.tests"]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", check=False)
    assert done.returncode == 0, done.stdout[-3000:]
