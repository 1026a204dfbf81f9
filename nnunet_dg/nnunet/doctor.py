"""`nnunet-dg doctor`: does nnU-Net find what is registered, by its own functions, and is everything there to train?"""

from __future__ import annotations

import io
import os
import platform
from contextlib import redirect_stdout
from importlib.metadata import entry_points, version

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from nnunet_dg.extractors import vit
from nnunet_dg.extractors import weights as room
from nnunet_dg.nnunet.look_up import look_up
from nnunet_dg.plugin import GROUPS


def report() -> bool:
    """Print what was found; True if nnU-Net finds every registered class."""
    console = Console()
    console.print(versions_table())
    classes, all_found = classes_table()
    console.print(classes)
    console.print(weights_table())
    if _autoload_is_off():
        console.print(
            "TORCH_DEVICE_BACKEND_AUTOLOAD=0 switches off PyTorch's autoload, through which nnU-Net finds registered "
            'classes. Unset it, or for trainers (nnU-Net 2.8 or newer): eval "$(nnunet-dg env)"'
        )
    return all_found


def _autoload_is_off() -> bool:
    return os.environ.get("TORCH_DEVICE_BACKEND_AUTOLOAD") == "0"


def versions_table() -> Table:
    """Versions and device."""
    table = Table(title="versions", show_header=False)
    for name in ("nnunet-dg", "nnunetv2", "torch"):
        table.add_row(name, version(name))
    table.add_row("python", platform.python_version())
    table.add_row("device", _device())
    return table


def classes_table() -> tuple[Table, bool]:
    """One row per registered class: found by nnU-Net, or why not; and whether all were."""
    table = Table(title="what nnU-Net finds")
    table.add_column("class", overflow="fold")
    table.add_column("found", overflow="fold")
    all_found = True
    for package, group in GROUPS.items():
        for name in sorted({entry_point.name for entry_point in entry_points(group=group)}):
            try:
                with redirect_stdout(io.StringIO()):  # nnU-Net says where it searches
                    found = look_up(package, name)
                text = f"{found.__module__}" if found is not None else "NOT FOUND"
            except Exception as error:  # whatever a package's import raises is what the user needs to see
                found, text = None, f"FAILED: {error}"
                if _autoload_is_off() and "nnUNet_extTrainer" not in os.environ:
                    text = "NOT FOUND"  # nnU-Net's own advice follows, once for each; ours is below
            all_found &= found is not None
            table.add_row(name, escape(text))
    return table, all_found


def weights_table() -> Table:
    """One row per published weights file, and per ViT that was fetched."""
    table = Table("weights", title="weights of extractors and teachers")
    table.add_column("state", overflow="fold")
    table.add_column("where", overflow="fold")
    for weights in room.PUBLISHED.values():
        table.add_row(weights.name, escape(room.state(weights)), escape(str(room.cached_path(weights))))
    for name, path in vit.on_this_machine():
        table.add_row(name, "fetched", escape(str(path)))
    return table


def _device() -> str:
    if torch.cuda.is_available():
        return ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    return "Apple MPS" if torch.backends.mps.is_available() else "CPU only"
