"""The record of `nnunet-dg stress`: measurements on disk, which survive interruptions and damage."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from nnunet_dg.errors import DataError
from nnunet_dg.files import parse_json, replacing, validate
from nnunet_dg.formats import StressEntry, StressSettings

Scores = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Measurement:
    """What is changed, how much, in which case, the number of the draw, and a hash of the case's files."""

    kind: str
    strength: float
    case: str
    files: str
    draw: int = 0


class RecordError(DataError, RuntimeError):
    """A record cannot be continued, and why."""


class Record:
    """Measurements in a file: a line of settings, and one line of JSON per measurement.

    Lines are only appended. Where some are damaged (cut off, blank, binary, NUL bytes after a power cut), the whole
    lines count, the file is replaced by one that holds them, and `damaged` is the number of the others. Every line
    names its settings by their hash, so that measurements count also where the line of settings is lost.

    Args:
        path: The file, which may be missing.
        settings: What all measurements in the file must have in common.

    Raises:
        RecordError: The file has measurements with other settings, or is not a regular file.
        OSError: It cannot be read or written.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path, self.settings = path, settings
        self.scores: dict[Measurement, Scores] = {}
        if path.exists() and not path.is_file():
            raise RecordError(f"{path} is not a regular file. Remove it, or choose another folder.")
        lines = path.read_bytes().split(b"\n") if path.exists() else [b""]
        torn = lines.pop() != b""  # the last line has no end
        whole = self._take(lines)
        self.damaged = len(lines) - len(whole) + torn
        if self.damaged or path.is_symlink() or not path.exists():  # a link is replaced, never written through
            has_settings = bool(whole) and _as_settings(whole[0]) is not None
            self._replace(whole if has_settings else [_line(settings), *whole])

    def _take(self, lines: list[bytes]) -> list[bytes]:
        """The lines that are whole, in their order; their measurements are in `scores` then."""
        known, whole = False, []
        for line in lines:
            if (found := _as_settings(line)) is not None:
                self._refuse_other(found)
                known = True
            elif (entry := _as_entry(line)) is None or entry.get("settings", self._hash if known else "") != self._hash:
                continue
            else:
                self.scores[Measurement(**entry["measurement"])] = entry["scores"]
            whole.append(line)
        return whole

    def _refuse_other(self, found: Mapping[str, Any]) -> None:
        if differ := [key for key, value in self.settings.items() if found.get(key) != value]:
            raise RecordError(
                f"{self.path} has measurements with other {', '.join(sorted(differ))}. Choose another folder, or "
                f"remove the file."
            )

    @property
    def _hash(self) -> str:
        return sha256(_line(self.settings)).hexdigest()[:16]

    def _replace(self, lines: list[bytes]) -> None:
        with replacing(self.path) as partial:
            partial.write_bytes(b"".join(line.rstrip(b"\n") + b"\n" for line in lines))

    def add(self, measurement: Measurement, scores: Scores) -> None:
        """Append one measurement; it is on the disk when this returns."""
        self.scores[measurement] = scores
        entry = {"measurement": asdict(measurement), "scores": scores, "settings": self._hash}
        with self.path.open("ab") as file:
            file.write(_line(entry))
            file.flush()
            os.fsync(file.fileno())


def _line(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content).encode() + b"\n"


def _as(line: bytes, model: Any) -> Any:
    try:
        return validate(parse_json(line.decode("utf-8")), model)
    except (DataError, UnicodeDecodeError):
        return None


def _as_settings(line: bytes) -> dict[str, Any] | None:
    found: dict[str, Any] | None = _as(line, StressSettings)
    return found


def _as_entry(line: bytes) -> dict[str, Any] | None:
    found: dict[str, Any] | None = _as(line, StressEntry)
    return found
