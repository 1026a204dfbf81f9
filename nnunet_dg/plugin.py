"""Entry-point discovery: nnU-Net finds the trainers, planners and preprocessors that installed packages declare.

nnU-Net looks for trainers, planners and preprocessors by walking its own source tree. PyTorch calls the entry points of
the group ``torch.backends`` at the end of ``import torch``; ours is `activate`. It makes nnU-Net's lookup search the
entry-point groups below first, so that any installed package can declare classes like this::

    [project.entry-points."nnunetv2.trainers"]
    nnUNetTrainerMine = "my_package.my_module:nnUNetTrainerMine"

Names that no package declares, and names that nnU-Net's own source defines, are looked up exactly as before. No file is
written.

This module runs inside every ``import torch``, so it imports only the standard library and must never raise. Messages
are printed to stderr rather than issued as warnings, which ``-W error`` would turn into exceptions.
"""

from __future__ import annotations

import functools
import importlib.util
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

LOOKUP_MODULE = "nnunetv2.utilities.find_class_by_name"
LOOKUP_NAME = "recursive_find_python_class"

GROUPS = {  # package that nnU-Net searches, including subpackages -> entry-point group that is searched first
    "nnunetv2.training.nnUNetTrainer": "nnunetv2.trainers",
    "nnunetv2.experiment_planning": "nnunetv2.planners",
    "nnunetv2.preprocessing": "nnunetv2.preprocessors",
}
FUNCTIONS = "nnunetv2.preprocessing.resampling"  # nnU-Net looks up functions in this package, not classes


def activate() -> None:
    """Make nnU-Net's class lookup search entry points first, now or as soon as nnU-Net is imported. Idempotent."""
    try:
        if not _extend_loaded() and not any(isinstance(finder, _OnLookupImport) for finder in sys.meta_path):
            sys.meta_path.insert(0, _OnLookupImport())
    except Exception as error:  # an exception here would break `import torch` for every program on this machine
        _warn(error)


def _warn(error: Exception) -> None:
    _say(f"nnunet-dg could not register its trainers with nnU-Net: {error!r}")


@functools.lru_cache(maxsize=256)  # each message once per process
def _say(message: str) -> None:
    with suppress(Exception):  # stderr may be closed, or None
        print(message, file=sys.stderr)


def walked_package(package: str | None) -> str | None:
    """The package in `GROUPS` that is ``package`` or its closest parent; None if there is none."""
    while package and package not in GROUPS:
        package = package.rpartition(".")[0]
    return package or None


def declared_class(package: str | None, name: str, folder: str | None = None) -> type | None:
    """The class that an installed package declares under ``name`` for lookups in nnU-Net's ``package``, or None.

    Args:
        package: The package that nnU-Net searches, for example ``"nnunetv2.training.nnUNetTrainer"``.
        name: Name of the class.
        folder: Folder of that package. If its source defines ``name``, other packages' declarations of it are ignored,
            with a message on stderr.

    Raises:
        ImportError: The entry point exists but cannot be loaded or is not a class, or two packages declare different
            classes under this name.
    """
    walked = walked_package(package)
    if package is None or walked is None:
        return None
    group = GROUPS[walked]
    found = _declared(group, name)
    targets = {entry_point.value: entry_point for entry_point in found}
    if not targets:
        return None
    if folder is not None and defines(_parent(folder, package.count(".") - walked.count(".")), name):
        owners = ", ".join(sorted({_distribution(e) for e in targets.values()}))
        _say(f"nnunet-dg: nnU-Net itself defines {name!r}. Its declaration by {owners} in {group!r} is ignored.")
        return None
    if len(targets) > 1:
        claims = ", ".join(f"{_distribution(e)} ({e.value})" for e in targets.values())
        raise ImportError(
            f"'{name}' is declared more than once in the entry-point group '{group}': {claims}. Uninstall all but one."
        )
    (entry_point,) = targets.values()
    return _load(entry_point, callable if package.startswith(FUNCTIONS) else _is_class)


@functools.lru_cache(maxsize=256)  # reading all packages' metadata takes milliseconds, once per subpackage otherwise
def _declared(group: str, name: str) -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group=group, name=name))


def _parent(folder: str, levels: int) -> str:
    """The folder ``levels`` above: nnU-Net's lookup recurses into subpackages, and a sibling may define the name."""
    return str(Path(folder, *[".."] * levels).resolve())


@functools.lru_cache(maxsize=256)
def defines(folder: str, name: str) -> bool:
    """Whether a source file below ``folder`` defines ``name`` at its top level. Nothing is imported."""
    definition = re.compile(rb"^(?:(?:class|def)\s+%b\b|%b\s*=[^=])" % (2 * (re.escape(name).encode(),)), re.M)
    for path in Path(folder).rglob("*.py"):
        with suppress(OSError):
            if definition.search(path.read_bytes()):
                return True
    return False


def _is_class(found: Any) -> bool:
    return isinstance(found, type)


def _load(entry_point: EntryPoint, accepts: Callable[[Any], bool]) -> Any:
    declaration = f"{entry_point.name!r} is declared by {_distribution(entry_point)} as {entry_point.value}, which"
    try:
        found = entry_point.load()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # including SystemExit, so that the message names the package at fault
        reason = f"{str(error) or 'no message'} ({type(error).__name__})"
        raise ImportError(f"{declaration} cannot be loaded: {reason}") from error
    if not accepts(found):
        kind = type(found).__name__
        raise ImportError(f"{declaration} is not a class, but of type {kind}. Correct or uninstall that package.")
    return found


def _distribution(entry_point: EntryPoint) -> str:
    return entry_point.dist.name if entry_point.dist is not None else "an unnamed distribution"


def _extend_loaded() -> bool:
    """Extend nnU-Net's lookup module if it is loaded; return whether it is."""
    lookup = sys.modules.get(LOOKUP_MODULE)
    if lookup is None or not hasattr(lookup, LOOKUP_NAME):
        return False
    _extend(lookup)
    return True


def _extend(lookup: ModuleType) -> None:
    original: Callable[..., Any] = getattr(lookup, LOOKUP_NAME)
    if hasattr(original, "_asks_entry_points"):
        return

    @functools.wraps(original)
    def recursive_find_python_class(
        folder: str, class_name: str, current_module: str | None = None, *args: Any, **kwargs: Any
    ) -> type | None:
        found = declared_class(current_module, class_name, folder)
        return original(folder, class_name, current_module, *args, **kwargs) if found is None else found

    recursive_find_python_class._asks_entry_points = True  # type: ignore[attr-defined]
    for module in list(sys.modules.values()):  # callers that were imported before torch have bound the original
        if getattr(module, "__dict__", {}).get(LOOKUP_NAME) is original:
            setattr(module, LOOKUP_NAME, recursive_find_python_class)


class _OnLookupImport(MetaPathFinder):
    """Import hook that extends nnU-Net's lookup module right after its import, and then removes itself."""

    searching = False

    def find_spec(self, fullname: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname != LOOKUP_MODULE:
            self._leave_if_done()
            return None
        if self.searching:
            return None
        self.searching = True  # so that the search below uses the other finders
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self.searching = False
        if spec is not None and spec.loader is not None:
            spec.loader = _Extending(spec.loader, self)
        return spec

    def _leave_if_done(self) -> None:
        """Leave if a finder placed before this one, such as pytest's, has already loaded the module."""
        try:
            if LOOKUP_MODULE in sys.modules and _extend_loaded():
                self.leave()
        except Exception as error:  # nnU-Net without our trainers is better than no nnU-Net
            _warn(error)

    def leave(self) -> None:
        if self in sys.meta_path:
            sys.meta_path.remove(self)


class _Extending(Loader):
    """Loads one module with its own loader, then extends it. Several modules may share that loader: it stays as is."""

    def __init__(self, loader: Any, finder: _OnLookupImport) -> None:
        self.loader, self.finder = loader, finder

    def __getattr__(self, name: str) -> Any:
        if name == "loader":  # not set yet, while this object is being copied or unpickled
            raise AttributeError(name)
        return getattr(self.loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        created: ModuleType | None = self.loader.create_module(spec)
        return created

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self.loader
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        self.loader.exec_module(module)
        try:
            _extend(module)
            self.finder.leave()
        except Exception as error:  # nnU-Net without our trainers is better than no nnU-Net
            _warn(error)
