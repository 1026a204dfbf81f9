"""A class of nnU-Net's by its name, as nnU-Net itself looks it up, on every release that we accept."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import nnunetv2
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class


def look_up(package: str, name: str) -> type | None:
    """As nnU-Net does it: trainers by the function of its commands where there is one (2.8), else the tree walk."""
    if package.endswith("nnUNetTrainer") and find_spec("nnunetv2.utilities.find_objects"):
        from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

        return recursive_find_trainer_class_by_name(name)
    folder = Path(next(iter(nnunetv2.__path__))).joinpath(*package.split(".")[1:])
    return recursive_find_python_class(str(folder), name, package)
