"""The record of `nnunet-dg stress`: measurements in a file, robust against interruptions and damage."""

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
    """Identifies a measurement: kind and strength of the change, case, hash of its files, and number of the draw."""

    kind: str
    strength: float
    case: str
    files: str
    draw: int = 0


class RecordError(DataError, RuntimeError):
    """A record cannot be resumed; the message says why."""


class Record:
    """Measurements in a file: one line of settings, then one line of JSON per measurement.

    Lines are only appended. If some are damaged (cut off, blank, binary, NUL bytes after a power cut), the file is
    replaced by one with the valid lines, and `damaged` is the number of invalid ones. Every line contains the hash of
    its settings, so measurements remain valid if the line of settings is lost.

    Args:
        path: File, which may be missing.
        settings: Settings that all measurements in the file must share.

    Raises:
        RecordError: The file has measurements with other settings, or is not a regular file.
        OSError: The file cannot be read or written.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path, self.settings = path, settings
        self.scores: dict[Measurement, Scores] = {}
        if path.exists() and not path.is_file():
            raise RecordError(f"{path} is not a regular file. Remove it, or choose another folder.")
        lines = path.read_bytes().split(b"\n") if path.exists() else [b""]
        torn = lines.pop() != b""  # the last line does not end in a line break
        valid = self._read(lines)
        self.damaged = len(lines) - len(valid) + torn
        if self.damaged or path.is_symlink() or not path.exists():  # a link is replaced, never followed
            has_settings = bool(valid) and _as_settings(valid[0]) is not None
            self._replace(valid if has_settings else [_line(settings), *valid])

    def _read(self, lines: list[bytes]) -> list[bytes]:
        """Read measurements into `scores`, and return the valid lines in order."""
        known, valid = False, []
        for line in lines:
            if (found := _as_settings(line)) is not None:
                self._refuse_other(found)
                known = True
            elif (entry := _as_entry(line)) is None or entry.get("settings", self._hash if known else "") != self._hash:
                continue
            else:
                self.scores[Measurement(**entry["measurement"])] = entry["scores"]
            valid.append(line)
        return valid

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
        """Append one measurement and flush it to the disk."""
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
