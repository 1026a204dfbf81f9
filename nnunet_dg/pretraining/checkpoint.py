"""The checkpoint of a training, next to the file that the training results in."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch

from nnunet_dg.errors import DataError
from nnunet_dg.files import replacing
from nnunet_dg.pretraining.state import TrainingState

VERSIONS = ("nnunet-dg", "torch", "network", "recipe")  # settings that an installation has, and no user chooses


def checkpoint_of(output: Path) -> Path:
    """The path of the checkpoint of a training with this output."""
    return output.with_name(f"{output.name}.checkpoint")


def save(
    output: Path, state: TrainingState, settings: dict[str, Any], log: list[dict[str, float]], seconds: float
) -> None:
    """Write the checkpoint atomically: settings, state, measures so far and the time spent.

    Raises:
        OSError: The folder cannot be written to, or the disk is full.
    """
    content = {"settings": settings, "state": state.state_dict(), "log": log, "seconds": seconds}
    write_bytes(checkpoint_of(output), serialized(content))


def resume(output: Path, state: TrainingState, settings: dict[str, Any]) -> tuple[list[dict[str, float]], float]:
    """Continue from the checkpoint, if there is one.

    Args:
        output: Result of the training.
        state: State of a new training, which is changed in place.
        settings: Everything that the result depends on.

    Returns:
        Measures so far, and the seconds spent. Empty and 0 without a checkpoint.

    Raises:
        DataError: The checkpoint is damaged, or is from a training with other settings.
    """
    path = checkpoint_of(output)
    if not path.exists():
        return [], 0.0
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        given = dict(content["settings"])
        log, seconds = list(content["log"]), float(content["seconds"])
    except Exception as error:  # PyTorch raises many types of exceptions for damaged archives
        raise DataError(_damaged(path)) from error
    other = [name for name in settings if given.get(name) != settings[name]]
    if other:
        raise DataError(_differs(path, other[0], given.get(other[0], "unknown"), settings[other[0]]))
    try:
        state.load_state_dict(content["state"])
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise DataError(_damaged(path)) from error
    return log, seconds


def _differs(path: Path, name: str, given: Any, now: Any) -> str:
    shown = name
    if isinstance(given, dict) and isinstance(now, dict):  # only the part that differs
        part = next(part for part in (*now, *given) if given.get(part) != now.get(part))
        shown, given, now = f"{name} {part}", given.get(part, "unknown"), now.get(part, "unknown")
    how = {
        **dict.fromkeys(VERSIONS, "Resume with the version that wrote it"),
        "threads": f"Set OMP_NUM_THREADS={given} to resume",
        **dict.fromkeys(("precision", "processor"), "Resume on the same kind of processor"),
    }
    then = how.get(name, "Use the same settings to resume, another `output`")
    return (
        f"{path} was written with {shown} {given}, but this training has {shown} {now}. {then}, or remove the "
        f"checkpoint to start again."
    )


def _damaged(path: Path) -> str:
    return f"{path} is damaged, or is not a checkpoint of this command. Remove it to start again."


def serialized(content: Any) -> bytes:
    """What `torch.save` makes of the content. The same content gives the same bytes, unlike in files of other names."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically.

    Raises:
        OSError: The folder cannot be written to, or the disk is full.
    """
    with replacing(path) as partial:
        partial.write_bytes(content)
