"""Names of cases, domains, labels and trainers may contain any character; these functions display them safely."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from pathlib import PurePath, PurePosixPath, PureWindowsPath

CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
LONGEST = 80  # characters of a name that go into a file name; file systems allow 255 bytes


def printable(text: str) -> str:
    r"""The text on one line: like `printable_lines`, with line breaks written as ``\n``."""
    return printable_lines(text).replace("\n", "\\n")


def printable_lines(text: str) -> str:
    r"""The text with control characters, direction overrides and non-UTF-8 bytes written as escapes such as ``\x1b``.

    So names in messages and tables cannot control the terminal. Line breaks are kept.
    """
    return CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """``" Did you mean 'x'?"``, with a leading space, if a known name is similar; otherwise an empty string."""
    spelled = {known_name.casefold(): known_name for known_name in known}
    close = difflib.get_close_matches(str(name).casefold(), spelled, 1)
    return f" Did you mean {spelled[close[0]]!r}?" if close else ""


def letters(name: str) -> str:
    """A name in lower case without spaces and punctuation, to detect another spelling of a domain.

    >>> letters("Site 3")
    'site3'
    """
    return "".join(c for c in name.casefold() if c.isalnum())


def is_fold(folder_name: str) -> bool:
    """Whether this is nnU-Net's name for the folder of a fold: ``fold_all`` or ``fold_0``, but not ``fold_0_old``."""
    return re.fullmatch(r"fold_(all|[0-9]+)", folder_name) is not None


def file_names(names: Iterable[str]) -> dict[str, str]:
    """A file name without extension for each name, made of letters, digits, ``.``, ``-`` and ``_``.

    File names are unique, even on file systems that ignore case: repeated ones get a number.
    """
    result: dict[str, str] = {}
    taken: set[str] = set()
    for name in dict.fromkeys(names):
        stem = re.sub(r"[^A-Za-z0-9.-]+", "_", name)[:LONGEST].strip("_.") or "unnamed"
        candidate, number = stem, 1
        while candidate.casefold() in taken:
            number += 1
            candidate = f"{stem}-{number}"
        taken.add(candidate.casefold())
        result[name] = candidate
    return result


def foreign_path(text: str) -> PurePath:
    """A path from any operating system. Windows paths have a drive letter, or backslashes and no slashes."""
    windows = re.match(r"[A-Za-z]:[\\/]", text) or ("\\" in text and "/" not in text)
    return PureWindowsPath(text) if windows else PurePosixPath(text)
