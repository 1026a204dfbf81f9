"""Which case comes from which domain: a site, a scanner, a contrast. ``domains.json`` in the raw dataset folder."""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

FILE = "domains.json"


@dataclass(frozen=True)
class Domains:
    """The domain of every training case.

    Attributes:
        names: of the domains, sorted; a domain's number is its place here.
        of_case: ``{case: number}``.
    """

    names: tuple[str, ...]
    of_case: dict[str, int]

    def of_batch(self, keys: Iterable[str]) -> Tensor:
        """Numbers ``(B,)``, int64, on the CPU, of the cases that nnU-Net's batch dictionary names under ``keys``."""
        return torch.tensor([self.of_case[key] for key in keys])


def read_domains(
    raw: Path | None, preprocessed: Path, cases: Iterable[str], log: Callable[[str], None] = print
) -> Domains:
    """The domains of a dataset's cases; one domain where there is no ``domains.json``.

    The raw dataset's file is carried to the preprocessed folder, for machines with nothing but preprocessed data. Where
    there is a raw dataset folder, what it says counts, also if it has no such file.

    Args:
        raw: the raw dataset folder, which may be missing; None where nnUNet_raw is not set.
        preprocessed: the preprocessed dataset folder.
        cases: all training cases of the dataset, of all folds.
        log: is told of domains with one case, which is allowed.

    Raises:
        ValueError: the file is no ``{case: domain}``, a case has no domain, or a case is unknown.
    """
    cases = sorted(cases)
    path = locate(raw, preprocessed)
    if not path.is_file():
        log(f"Domains: one, for there is no {path}")
        return Domains(("all",), dict.fromkeys(cases, 0))
    given = read_file(path)
    if missing := [case for case in cases if case not in given]:
        raise ValueError(f"{path}: {_some(missing)} without a domain. Add every training case, or remove the file.")
    if unknown := sorted(set(given) - set(cases)):
        raise ValueError(f"{path}: {_some(unknown)} not in the dataset. Remove what is no training case.")
    if single := sorted(domain for domain, count in Counter(given.values()).items() if count == 1):
        log(
            f"{path}: one case alone is from {', '.join(single)}. Where that case is validated on, the domain is not "
            f"trained on; where it is trained on, it is never validated."
        )
    if path.parent != preprocessed:
        _carry(path, preprocessed / FILE, log)
    names = tuple(sorted(set(given.values())))
    log(f"Domains: {', '.join(names)}, from {path}")
    return Domains(names, {case: names.index(domain) for case, domain in given.items()})


def _carry(source: Path, target: Path, log: Callable[[str], None]) -> None:
    """A copy that other folds may make and read at the same time."""
    content = source.read_bytes()
    if target.is_file() and target.read_bytes() == content:
        return
    try:
        with tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as temporary:
            temporary.write(content)
        os.replace(temporary.name, target)
    except OSError as error:  # the training has what it needs
        log(f"{source} could not be carried to {target.parent}: {error}")


def locate(raw: Path | None, preprocessed: Path) -> Path:
    """Where a dataset's domains are said: in its raw folder, where there is one. The file may be missing."""
    return (raw if raw is not None and raw.is_dir() else preprocessed) / FILE


def read_file(path: Path) -> dict[str, str]:
    """``{case: domain}`` as it is written.

    Raises:
        ValueError: it cannot be read, or is something else.
    """
    try:
        given = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not isinstance(given, dict) or not all(isinstance(domain, str) for domain in given.values()):
        raise ValueError(f'{path} must look like {{"case": "domain", ...}}.')
    return given


def _some(cases: list[str]) -> str:
    more = f" and {len(cases) - 1} more are" if len(cases) > 1 else " is"
    return f"case {cases[0]!r}{more}"
