"""Imports point one way: from trainers, planners and cli down to extractors. The plugin imports none of our modules."""

import ast
from pathlib import Path

import pytest
from helpers import REPOSITORY

LIBRARY = REPOSITORY / "nnunet_dg"
METHODS = {"baselines", "dropgen", "mechanisms", "sgcg", "tinymig"}
BASE = {
    "errors",
    "extras",
    "fields",
    "files",
    "formats",
    "group_norm",
    "hooks",
    "method",
    "names",
    "outside",
    "step",
    "tensors",
    "threads",
}  # what every room but the plugin may import
LOWER = {"datasets", "host", "extractors", *METHODS}
SCORES = {"evaluation", "reporting", "robustness"}
ALLOWED = {  # room -> what it may import of ours, and whether it may import nnunetv2
    "plugin": (set(), False),
    "extractors": ({"extractors"}, False),
    "synthesis": ({"synthesis"}, False),
    "pretraining": ({"pretraining", "synthesis", "extractors", "robustness"}, False),
    "dropgen": ({"dropgen", "extractors"}, False),
    "sgcg": ({"sgcg", "extractors"}, False),
    "mechanisms": ({"mechanisms"}, False),
    "baselines": ({"baselines", "mechanisms", "sgcg"}, False),
    "tinymig": ({"tinymig", "extractors", "baselines", "mechanisms"}, False),
    "errors": (set(), False),
    "extras": (set(), False),
    "files": (set(), False),
    "formats": (set(), False),
    "names": (set(), False),
    "outside": (set(), False),
    "tensors": (set(), False),
    "group_norm": (set(), False),
    "threads": (set(), False),
    "fields": (set(), False),
    "hooks": (set(), False),
    "step": (set(), False),
    "method": (set(), False),
    "host": ({"host"}, True),
    "datasets": ({"datasets", "host"}, True),
    "training": ({"training", *LOWER}, True),
    "planning": ({"planning", "training", *LOWER}, True),
    "citations": (set(), False),
    "checkpoints": ({"host", "extractors"}, True),
    "export": ({"checkpoints", "training", "plugin", *LOWER}, True),
    "evaluation": ({"evaluation", "datasets", "host"}, True),
    "reporting": ({"reporting", "evaluation", "datasets", "host"}, True),
    "robustness": ({"robustness", "reporting", "evaluation", "checkpoints", *LOWER}, True),
    "adaptation": ({"adaptation", *SCORES, "checkpoints", *LOWER}, True),
    "doctor": ({"doctor", "planning", "training", "plugin", *LOWER}, True),
    "demo": ({"demo"}, False),
    "benchmark": ({"benchmark", "adaptation", "training", *SCORES, *LOWER}, True),
    "trainers": ({"trainers", "training", *LOWER}, True),
    "planners": ({"planners", "planning", "training"}, True),
    "cli": (
        {
            "cli",
            "adaptation",
            "benchmark",
            "citations",
            "demo",
            "doctor",
            "export",
            "pretraining",
            "training",
            *SCORES,
            *LOWER,
        },
        False,
    ),
    "ext_trainers": (set(), False),
    "__init__": (set(), False),
}
FILES = [*LIBRARY.rglob("*.py"), *(REPOSITORY / "trainers").glob("*.py"), *(REPOSITORY / "planners").glob("*.py")]


def room(path: Path) -> str:
    relative = path.relative_to(LIBRARY if path.is_relative_to(LIBRARY) else REPOSITORY)
    return relative.parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules |= {f"{node.module}.{alias.name}" for alias in node.names}
    return modules


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_imports_point_one_way(path):
    ours, host = ALLOWED[room(path)]
    if room(path) not in ("plugin", "__init__", "ext_trainers"):
        ours = ours | BASE
    for module in imported(path):
        if module.startswith("nnunet_dg."):
            assert module.split(".")[1] in ours, f"{room(path)} must not import {module}"
        assert host or module.split(".")[0] != "nnunetv2", f"{room(path)} must not import nnunetv2"


def test_the_plugin_imports_the_standard_library_only():
    import sys

    modules = {module.split(".")[0] for module in imported(LIBRARY / "plugin.py")}
    assert modules <= {*sys.stdlib_module_names}
