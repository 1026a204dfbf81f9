"""Checks of the installation: versions, device, weights, and whether nnU-Net finds all registered classes."""

from __future__ import annotations

import io
import os
import platform
from contextlib import redirect_stderr, redirect_stdout
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, version

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from nnunet_dg.extractors import vit
from nnunet_dg.extractors import weights as weight_files
from nnunet_dg.names import printable
from nnunet_dg.plugin import GROUPS

MISSING = "not installed"


def report(dataset: str | None = None, plans: str = "nnUNetPlans") -> bool:
    """Print the results of all checks.

    Args:
        dataset: Name or number of a dataset to check as well; None for none.
        plans: Name of the dataset's plans.

    Returns:
        Whether nnU-Net finds every registered class.

    Raises:
        UserError: The dataset or its plans are missing, unreadable or invalid.
    """
    console = Console()
    console.print(versions_table())
    if _version("nnunetv2") == MISSING:
        console.print(weights_table())
        console.print("nnU-Net is not installed. Training needs it: pip install nnunetv2")
        return False
    classes, all_found = classes_table()
    console.print(classes)
    console.print(weights_table())
    if _autoload_is_off():
        console.print(
            "TORCH_DEVICE_BACKEND_AUTOLOAD=0 switches off PyTorch's autoload, through which nnU-Net finds registered "
            'classes. Unset it, or run, for trainers only and with nnU-Net 2.8 or newer: eval "$(nnunet-dg env)"'
        )
    if dataset is None:
        return all_found
    from nnunet_dg.doctor.dataset import dataset_table

    table, notes = dataset_table(dataset, plans)
    console.print(table)
    for note in notes:
        console.print(escape(note))
    return all_found


def _autoload_is_off() -> bool:
    return os.environ.get("TORCH_DEVICE_BACKEND_AUTOLOAD") == "0"


def versions_table() -> Table:
    """A table of versions and the device."""
    table = Table(title="versions", show_header=False)
    for name in ("nnunet-dg", "nnunetv2", "torch"):
        table.add_row(name, _version(name))
    table.add_row("python", platform.python_version())
    table.add_row("device", _device())
    return table


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return MISSING


def classes_table() -> tuple[Table, bool]:
    """A table of the classes that packages declare and nnU-Net's result for each, and whether all were found."""
    table = Table(title="registered classes")
    for column in ("class", "declared by", "found"):
        table.add_column(column, overflow="fold")
    all_found = True
    packages = {group: package for package, group in reversed(GROUPS.items())}  # the first package of each group
    for group, package in reversed(packages.items()):
        for name in sorted({entry_point.name for entry_point in entry_points(group=group)}):
            declared = list(entry_points(group=group, name=name))
            found, text = _find(package, name, declared)
            all_found &= found
            owners = ", ".join(sorted({e.dist.name if e.dist else "unknown" for e in declared}))
            table.add_row(escape(name), escape(printable(owners)), escape(printable(text)))
    return table, all_found


def _find(package: str, name: str, declared: list[EntryPoint]) -> tuple[bool, str]:
    """Whether nnU-Net finds the declared class, and its module or the problem."""
    from nnunet_dg.host import look_up

    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):  # nnU-Net and the modules print lines
            found = look_up(package, name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # importing a package may raise anything, even SystemExit, which users need to see
        if _autoload_is_off() and "nnUNet_extTrainer" not in os.environ:
            return False, "NOT FOUND"  # without nnU-Net's long advice for each class; ours is printed once, below
        return False, f"FAILED: {str(error) or type(error).__name__}"
    if found is None:
        return False, "NOT FOUND"
    if not isinstance(found, type):
        return False, f"FAILED: it is not a class, but of type {type(found).__name__}"
    if _is_nnunets(found.__module__) and not any(_is_nnunets(e.module) for e in declared):
        return False, f"IGNORED: nnU-Net has a class of this name, in {found.__module__}. Rename the declared one."
    return True, found.__module__


def _is_nnunets(module: str) -> bool:
    return module.split(".")[0] == "nnunetv2"


def weights_table() -> Table:
    """A table with one row per published weights file, and per ViT that was fetched."""
    table = Table("weights", title="weights of extractors and teachers")
    table.add_column("state", overflow="fold")
    table.add_column("where", overflow="fold")
    for weights in weight_files.PUBLISHED.values():
        path = weight_files.cached_path(weights)
        table.add_row(weights.name, escape(weight_files.state(weights)), escape(str(path)))
    for name, path in vit.on_this_machine():
        table.add_row(name, "fetched", escape(str(path)))
    return table


def _device() -> str:
    if torch.cuda.is_available():
        return ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    return "Apple MPS" if torch.backends.mps.is_available() else "CPU only"
