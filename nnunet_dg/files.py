"""How this package reads text and JSON files, and how it writes files.

Reading: UTF-8 text and JSON, validated against a type with pydantic. Writing: to a temporary file in the same folder,
which then replaces the target, so that an interruption leaves either the old content or the new.
"""

from __future__ import annotations

import codecs
import json
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from nnunet_dg.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

T = TypeVar("T")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_FORMULA = re.compile(r"^[=+\-@\t\r]")


def check_regular(path: Path) -> None:
    """Refuse a path that is not a regular file. Reading a pipe, for example, would block forever.

    Raises:
        DataError: There is no such file, it is a link to a missing file, or it is not a regular file.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:  # ValueError: a NUL character in the path
        if path.is_symlink():
            target = os.readlink(path)
            raise DataError(
                f"{path} is a link to {target}, which does not exist. Restore that file, or remove the link."
            ) from error
        raise DataError(f"There is no file {path}.") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {_reason(error)}.") from error
    if not stat.S_ISREG(mode):
        raise DataError(f"{path} is not a regular file, but {_kind(mode)}.")


def read_text(path: Path) -> str:
    """The text of a regular file, UTF-8 with or without a byte order mark.

    Raises:
        DataError: There is no such file, it is not a regular file, it cannot be read, or it is not text.
    """
    check_regular(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {_reason(error)}.") from error
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError(f"{path} is UTF-16 text. Save it as UTF-8.")
    if b"\0" in content:
        raise DataError(
            f"{path} contains NUL bytes: it is binary, or was damaged by a power cut. Restore or remove it."
        )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}. Save it as UTF-8.") from error


def last_line(log: Path) -> str:
    """The last line of a log that is not empty, at most 400 characters; empty if there is none."""
    text = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n")
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1][:400] if lines else ""


def read_json(path: Path, model: type[T], advice: str = "") -> T:
    """The content of a JSON file, validated against ``model``.

    Args:
        path: JSON file.
        model: Expected type, normally one of `nnunet_dg.formats`; any type that pydantic can validate.
        advice: One sentence that tells the user what to do about an invalid file.

    Returns:
        The validated content.

    Raises:
        DataError: The file cannot be read, is not JSON, repeats a key, or does not match the model. The message names
            the file, the place in it, what is expected there, and the advice.
    """
    try:
        return validate(parse_json(read_text(path)), model)
    except DataError as error:
        text = str(error) if str(path) in str(error) else f"{path}: {error}"
        raise DataError(f"{text} {advice}".rstrip()) from error


def parse_json(text: str) -> Any:
    """JSON as Python values; NaN and Infinity are accepted, since nnU-Net writes them.

    Raises:
        DataError: The text is not JSON, is nested too deeply, repeats a key in an object, or has a string that is not
            Unicode.
    """
    try:
        content = json.loads(text, object_pairs_hook=_unique)
        if _SURROGATE.search(text):  # Python reads a lone surrogate, but cannot write it
            json.dumps(content, ensure_ascii=False).encode("utf-8")
        return content
    except RecursionError as error:
        raise DataError("the JSON is nested too deeply.") from error
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise DataError(f"not valid JSON, or cut off: {error.msg} at {place}.") from error
    except UnicodeEncodeError as error:
        found = error.object[error.start]
        raise DataError(f"a string contains {found!r}, half of a surrogate pair. Correct the string.") from error
    except DataError:
        raise
    except ValueError as error:  # such as a number with thousands of digits
        raise DataError(f"not valid JSON: {error}.") from error


def validate(content: Any, model: type[T]) -> T:
    """Validate ``content`` against the type ``model``, and return it.

    Raises:
        DataError: The content does not match; the message says where, and what is expected there.
    """
    try:
        adapter: TypeAdapter[T] = _adapter(model)  # type: ignore[arg-type]
        return adapter.validate_python(content)
    except ValidationError as error:
        first, *others = error.errors(include_url=False)
        more = f" ({len(others)} more problems)" if others else ""
        place = _place(first["loc"])
        expected = first["msg"].removeprefix("Value error, ")
        got = f"; got {_shortened(first['input'])}" if first["type"] != "missing" else ""
        raise DataError(f"{place or 'the content'}: {expected}{got}{more}.") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file next to ``path``, which replaces ``path`` when the block ends and is removed if it raises.

    A link at ``path`` is replaced, never followed. Permissions are set by `share`.

    Raises:
        OSError: The folder cannot be written to, or the disk is full.
    """
    partial = path.with_name(f".{path.name[:40]}.{secrets.token_hex(4)}.partial")  # names have at most 255 bytes
    os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())  # without it, a power cut can leave NUL bytes under the final name
        share(partial)
        partial.replace(path)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text with Unix line endings, atomically; see `replacing`.

    Raises:
        DataError: The text contains a lone surrogate, for example from a file name that is not UTF-8.
        OSError: The folder cannot be written to, or the disk is full.
    """
    try:
        content = text.encode("utf-8")
    except UnicodeEncodeError as error:
        near = text[max(error.start - 40, 0) : error.end + 40]
        raise DataError(f"{path} cannot be written as UTF-8: a name in it is not UTF-8, near {near!r}.") from error
    with replacing(path) as partial:
        partial.write_bytes(content)


def write_json(path: Path, content: Any, indent: int | None = 1) -> None:
    """Write JSON as UTF-8, atomically; see `write_text` for what it raises."""
    write_text(path, json.dumps(content, indent=indent, ensure_ascii=False) + "\n")


def share(path: Path) -> None:
    """Give a file the usual permissions, but none that its folder lacks, and never write permission for all users.

    The usual permissions follow the process's umask. In folders that users other than the owner may write to, the umask
    is ignored, and the file is as accessible as the folder.
    """
    folder = stat.S_IMODE(path.parent.stat().st_mode)
    shared = 0o064 if folder & (stat.S_IWGRP | stat.S_IWOTH) else 0
    with suppress(PermissionError):  # on file systems without permissions, such as network shares, the mount decides
        path.chmod(0o600 | (folder & 0o064 & (~_umask() | shared)))


def write_csv(path: Path, table: pd.DataFrame) -> None:
    """Write a table as CSV, atomically. `cell` keeps spreadsheets from running its text as formulas."""
    text = table.map(cell).to_csv(index=False, lineterminator="\n")
    write_text(path, text.encode("utf-8", "backslashreplace").decode())


def cell(value: Any) -> Any:
    """A value for a CSV file. Text that a spreadsheet would run as a formula gets an apostrophe in front."""
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value


def _umask() -> int:
    mask = os.umask(0o077)  # the umask can be read only by setting it
    os.umask(mask)
    return mask


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise DataError(f"the key {repeated!r} appears more than once. Keep one.")
    return result


@lru_cache(maxsize=64)
def _adapter(model: Any) -> TypeAdapter[Any]:
    return TypeAdapter(model)


def _place(location: tuple[int | str, ...]) -> str:
    """``("metric_per_case", 0, "metrics") -> 'metric_per_case[0].metrics'``."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.lstrip(".")


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _kind(mode: int) -> str:
    kinds = {stat.S_ISDIR: "a folder", stat.S_ISFIFO: "a pipe", stat.S_ISSOCK: "a socket"}
    return next((name for is_kind, name in kinds.items() if is_kind(mode)), "a device")


@contextmanager
def locked(folder: Path, what: str, result: str = "", required: bool = True) -> Iterator[None]:
    """Lock a folder for a command that resumes earlier work in it. The lock ends with the process at the latest.

    Args:
        folder: Existing folder. A file ``.nnunet-dg.lock``, or ``.RESULT.lock``, stays in it.
        what: Name of the command, for the message.
        result: A file in the folder, if the command writes that one alone. Others can be written at the same time.
        required: Whether a file system without locks is refused. If not, nothing is locked there.

    Raises:
        DataError: Another process holds the lock.
        OSError: The folder cannot be written to.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(folder / (f".{result}.lock" if result else ".nnunet-dg.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        place, kind = (folder / result, "file") if result else (folder, "folder")
        raise DataError(f"Another {what} is running in {place}. Wait for it, or choose another {kind}.") from error
    except NotImplementedError as error:
        if required:
            raise DataError(f"The file system of {folder} has no locks. Choose a folder on another one.") from error
    try:
        yield
    finally:
        lock.release()
