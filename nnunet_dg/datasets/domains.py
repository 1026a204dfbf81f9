"""The domain of each case, such as its site, scanner or contrast: ``domains.json`` in the raw dataset folder."""

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
UNNAMED = ""  # the only domain of a dataset without domains.json, where names must not be empty


@dataclass(frozen=True)
class Domains:
    """The domain of every training case.

    Attributes:
        names: Domain names, sorted; a domain's number is its index. (`UNNAMED`,) without ``domains.json``.
        of_case: ``{case: number of its domain}``.
    """

    names: tuple[str, ...]
    of_case: dict[str, int]

    def of_batch(self, keys: Iterable[str]) -> Tensor:
        """Domain numbers ``(B,)``, int64, on the CPU, of the cases in ``keys``, an entry of nnU-Net's batch."""
        return torch.tensor([self.of_case[key] for key in keys])


def read_domains(
    raw: Path | None, preprocessed: Path, cases: Iterable[str], log: Callable[[str], None] = print
) -> Domains:
    """Read the domains of a dataset's cases. Without ``domains.json`` there is one domain, `UNNAMED`.

    The raw dataset's file is copied to the preprocessed folder, for machines that have only preprocessed data. If the
    raw dataset folder exists, the copy is ignored, even if the raw folder has no ``domains.json``.

    Args:
        raw: Raw dataset folder, which may be missing; None if nnUNet_raw is not set.
        preprocessed: Preprocessed dataset folder.
        cases: Training cases of all folds of the dataset.
        log: Function that receives messages for the user, such as one about a domain with a single case.

    Raises:
        DataError: The file is not ``{case: domain}``, is a folder or a broken link, lacks a case, or has an unknown
            case.
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
            f"{path}: there is a single case from {', '.join(map(printable, single))}. A fold can either train or "
            f"validate on that domain, not both."
        )
    if path.parent != preprocessed:
        _copy(path, preprocessed / FILE, log)
    names = tuple(sorted(set(given.values())))
    log(f"Domains: {', '.join(map(printable, names))}, from {path}")
    return Domains(names, {case: names.index(domain) for case, domain in given.items()})


def _copy(source: Path, target: Path, log: Callable[[str], None]) -> None:
    """Copy the file. The trainings of other folds may copy and read it at the same time."""
    content = source.read_bytes()
    if target.is_file() and target.read_bytes() == content:
        return
    try:
        with replacing(target) as partial:
            partial.write_bytes(content)
    except OSError as error:  # the copy is not needed for this training
        log(f"{source} could not be copied to {target.parent}: {error}")


def locate(raw: Path | None, preprocessed: Path) -> Path:
    """Path of a dataset's ``domains.json``: in its raw folder if that exists, else in the preprocessed one.

    The file itself may be missing.
    """
    return (raw if raw is not None and raw.is_dir() else preprocessed) / FILE


def read_file(path: Path, what: str = "domain") -> dict[str, str]:
    """The content ``{case: domain}`` or ``{case: group}`` of a JSON file.

    Args:
        path: JSON file.
        what: What the values are, for error messages.

    Raises:
        DataError: The file cannot be read, or has other content.
    """
    return read_json(path, formats.Domains, f'It must look like {{"case": "{what}", ...}}.')


def _some(cases: list[str]) -> str:
    more = f" and {len(cases) - 1} more are" if len(cases) > 1 else " is"
    return f"case {cases[0]!r}{more}"
