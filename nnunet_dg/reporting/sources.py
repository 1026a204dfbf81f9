"""Where results are, and what they are called."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunet_dg.errors import SettingsError
from nnunet_dg.evaluation.records import ResultsError


@dataclass(frozen=True)
class Source:
    """The location of results, and optionally a name for them, as given by the user."""

    path: Path
    name: str | None

    @classmethod
    def parse(cls, text: str) -> Source:
        """Parse ``PATH`` or ``NAME=PATH``. Text that is an existing path is a path, even if it contains ``=``.

        Raises:
            SettingsError: The name or the path is empty.
        """
        name, equals, path = text.partition("=")
        if not equals or Path(text).exists():
            return cls(Path(text), None)
        if not name.strip() or not path:
            raise SettingsError(f"Results must be given as PATH or NAME=PATH; got {text!r}.")
        return cls(Path(path), name)


def names_of(sources: Sequence[Source]) -> list[str]:
    """The name of each source: the given one, or that of its trainer.

    Raises:
        ResultsError: A folder does not exist, or several results of one trainer have no given names.
    """
    for source in sources:
        if not source.path.is_dir():
            raise ResultsError(f"There is no folder {source.path}.")
    names = [source.name or default_name(source.path) for source in sources]
    unnamed = [name for name, source in zip(names, sources, strict=True) if source.name is None]
    if repeated := sorted(name for name in unnamed if names.count(name) > 1):
        raise ResultsError(
            f"Several results are from {repeated[0]}. Name them as NAME=PATH: with different names, or with the same "
            f"name for repeated trainings of one trainer."
        )
    return names


def default_name(path: Path) -> str:
    """The trainer of a results folder, followed by its plans unless they are nnUNetPlans."""
    trainer, *others = path.resolve().name.split("__")
    return " ".join([trainer, *(p for p in others[:1] if p != "nnUNetPlans")])
