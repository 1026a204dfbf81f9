"""The door: nnU-Net finds what installed packages declare under its name.

nnU-Net looks for trainers, planners and preprocessors by walking its own source tree. PyTorch calls the entry points of
the group ``torch.backends`` at the end of ``import torch``; ours is `activate`. It makes nnU-Net's lookup ask the
entry-point groups below first, so that any installed package can declare classes like this::

    [project.entry-points."nnunetv2.trainers"]
    nnUNetTrainerMine = "my_package.my_module:nnUNetTrainerMine"

A name that no package declares is looked up by nnU-Net exactly as before. Nothing is written anywhere.

This module runs inside every ``import torch``: standard library only, and nothing here may raise into it.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
import warnings
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import Any

LOOKUP_MODULE = "nnunetv2.utilities.find_class_by_name"
LOOKUP_NAME = "recursive_find_python_class"

GROUPS = {  # the package that nnU-Net walks -> the entry-point group that is asked first
    "nnunetv2.training.nnUNetTrainer": "nnunetv2.trainers",
    "nnunetv2.experiment_planning": "nnunetv2.planners",
    "nnunetv2.preprocessing": "nnunetv2.preprocessors",
    "nnunetv2.preprocessing.normalization": "nnunetv2.preprocessors",
}


def activate() -> None:
    """Make nnU-Net's class lookup ask entry points first, now or as soon as nnU-Net is imported. Idempotent."""
    try:
        lookup = sys.modules.get(LOOKUP_MODULE)
        if lookup is not None and hasattr(lookup, LOOKUP_NAME):
            _extend(lookup)
        elif not any(isinstance(finder, _OnLookupImport) for finder in sys.meta_path):
            sys.meta_path.insert(0, _OnLookupImport())
    except Exception as error:  # an exception here would break `import torch` for every program on this machine
        _warn(error)


def _warn(error: Exception) -> None:
    warnings.warn(f"nnunet-dg could not register its trainers with nnU-Net: {error!r}", stacklevel=2)


def declared_class(package: str | None, name: str) -> type | None:
    """The class that an installed package declares for what nnU-Net looks up in ``package``, or None.

    Raises:
        ImportError: the entry point exists but cannot be loaded, or two packages declare different classes for it.
    """
    group = GROUPS.get(package or "")
    found = entry_points(group=group, name=name) if group else ()
    targets = {entry_point.value: entry_point for entry_point in found}
    if not targets:
        return None
    if len(targets) > 1:
        claims = ", ".join(f"{_distribution(e)} ({e.value})" for e in targets.values())
        raise ImportError(
            f"'{name}' is declared more than once in the entry points '{group}': {claims}. Uninstall one."
        )
    (entry_point,) = targets.values()
    try:
        return entry_point.load()
    except Exception as error:  # whatever their module raises, users need to know whose it is
        raise ImportError(
            f"'{name}' is declared by {_distribution(entry_point)} as {entry_point.value}, which cannot be loaded: "
            f"{error}"
        ) from error


def _distribution(entry_point: EntryPoint) -> str:
    return entry_point.dist.name if entry_point.dist is not None else "an unnamed distribution"


def _extend(lookup: ModuleType) -> None:
    original: Callable[..., Any] = getattr(lookup, LOOKUP_NAME)
    if hasattr(original, "_asks_entry_points"):
        return

    @functools.wraps(original)
    def recursive_find_python_class(
        folder: str, class_name: str, current_module: str | None = None, *args: Any, **kwargs: Any
    ) -> type | None:
        found = declared_class(current_module, class_name)
        return original(folder, class_name, current_module, *args, **kwargs) if found is None else found

    recursive_find_python_class._asks_entry_points = True  # type: ignore[attr-defined]
    for module in list(sys.modules.values()):  # callers that were imported before torch have bound the original
        if getattr(module, "__dict__", {}).get(LOOKUP_NAME) is original:
            setattr(module, LOOKUP_NAME, recursive_find_python_class)


class _OnLookupImport(MetaPathFinder):
    """Waits for the import of nnU-Net's lookup module, extends it once it has run, and leaves."""

    searching = False

    def find_spec(self, fullname: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname != LOOKUP_MODULE or self.searching:
            return None
        self.searching = True  # so that the search below asks the other finders
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self.searching = False
        if spec is None or spec.loader is None:
            return spec
        run = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            run(module)
            try:
                _extend(module)
                sys.meta_path.remove(self)
            except Exception as error:  # nnU-Net without our trainers is better than no nnU-Net
                _warn(error)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
