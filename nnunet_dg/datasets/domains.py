"""Which case comes from which domain: a site, a scanner, a contrast. ``domains.json`` in the raw dataset folder."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from nnunet_dg import formats
from nnunet_dg.errors import DataError
from nnunet_dg.files import read_json, replacing
from nnunet_dg.names import printable

FILE = "domains.json"
UNNAMED = ""  # the one domain of a dataset without domains.json; in that file, a name is never empty


@dataclass(frozen=True)
class Domains:
    """The domain of every training case.

    Attributes:
        names: The domains, sorted; a domain's number is its place here. (`UNNAMED`,) without ``domains.json``.
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
    """The domains of a dataset's cases; one domain, `UNNAMED`, where there is no ``domains.json``.

    The raw dataset's file is copied to the preprocessed folder, for machines that have only preprocessed data. Where
    there is a raw dataset folder, only its file counts, also if it has none.

    Args:
        raw: The raw dataset folder, which may be missing; None where nnUNet_raw is not set.
        preprocessed: The preprocessed dataset folder.
        cases: All training cases of the dataset, of all folds.
        log: Called with what a user should know, such as a domain with a single case.

    Raises:
        DataError: The file is not ``{case: domain}``, is a folder or a link to nowhere, a case has no domain, or a case
            is unknown.
    """
    cases = sorted(cases)
    path = locate(raw, preprocessed)
    if not os.path.lexists(path):
        log(f"Domains: one, because there is no {path}")
        return Domains((UNNAMED,), dict.fromkeys(cases, 0))
    given = read_file(path)
    if missing := [case for case in cases if case not in given]:
        raise DataError(f"{path}: {_some(missing)} without a domain. Add every training case, or remove the file.")
    if unknown := sorted(set(given) - set(cases)):
        raise DataError(f"{path}: {_some(unknown)} not in the dataset. Remove every case that is not a training case.")
    if single := sorted(domain for domain, count in Counter(given.values()).items() if count == 1):
        log(
            f"{path}: there is a single case from {', '.join(map(printable, single))}. Where that case is validated "
            f"on, the domain is not trained on; where it is trained on, it is never validated."
        )
    if path.parent != preprocessed:
        _carry(path, preprocessed / FILE, log)
    names = tuple(sorted(set(given.values())))
    log(f"Domains: {', '.join(map(printable, names))}, from {path}")
    return Domains(names, {case: names.index(domain) for case, domain in given.items()})


def _carry(source: Path, target: Path, log: Callable[[str], None]) -> None:
    """Copy the file; other folds may copy and read it at the same time."""
    content = source.read_bytes()
    if target.is_file() and target.read_bytes() == content:
        return
    try:
        with replacing(target) as partial:
            partial.write_bytes(content)
    except OSError as error:  # the training has what it needs
        log(f"{source} could not be copied to {target.parent}: {error}")


def locate(raw: Path | None, preprocessed: Path) -> Path:
    """Where a dataset's domains are given: in its raw folder, where there is one. The file may be missing."""
    return (raw if raw is not None and raw.is_dir() else preprocessed) / FILE


def read_file(path: Path, what: str = "domain") -> dict[str, str]:
    """``{case: domain}`` as it is written, or ``{case: group}``.

    Raises:
        DataError: The file cannot be read, or holds something else.
    """
    return read_json(path, formats.Domains, f'It must look like {{"case": "{what}", ...}}.')


def _some(cases: list[str]) -> str:
    more = f" and {len(cases) - 1} more are" if len(cases) > 1 else " is"
    return f"case {cases[0]!r}{more}"
