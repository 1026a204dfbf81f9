"""The labels in ``dataset.json``, interpreted as nnU-Net's own ``LabelManager`` does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunet_dg.errors import DataError

HIGHEST = 65535  # nnU-Net writes segmentations as 8 or 16 bits


@dataclass(frozen=True)
class Labels:
    """The labels of a dataset.

    Attributes:
        foreground: ``{name: integers}`` of foreground labels and regions.
        ignore: Value of the ignore label, or None.
    """

    foreground: dict[str, list[int]]
    ignore: int | None

    @property
    def values(self) -> list[int]:
        """All values allowed in a segmentation, sorted."""
        ignored = set() if self.ignore is None else {self.ignore}
        return sorted({0, *(value for values in self.foreground.values() for value in values)} | ignored)

    @classmethod
    def of_dataset(cls, dataset: Mapping[str, Any], source: Path | str = "dataset.json") -> Labels:
        """Read ``labels`` as nnU-Net does, which for example accepts numbers in quotes unless there are regions.

        Args:
            dataset: Content of ``dataset.json``.
            source: Path of that file, for error messages.

        Raises:
            DataError: nnU-Net refuses the labels, none is foreground, or one has a value that no voxel can have.
        """
        labels = dataset["labels"]
        try:
            manager = LabelManager(labels, dataset.get("regions_class_order"))
        except Exception as error:  # LabelManager raises AssertionError, and all that int() raises
            raise DataError(f"{source}: nnU-Net does not accept these labels: {_line(error)}") from error
        values = {name: _values(value) for name, value in labels.items() if name != "ignore"}
        for name, numbers in values.items():
            _check(name, labels[name], numbers, manager.has_regions, source)
        foreground = {name: numbers for name, numbers in values.items() if any(numbers)}
        if not foreground:
            raise DataError(f"{source} has no label other than the background. Name the foreground under 'labels'.")
        return cls(foreground, manager.ignore_label)


def _values(value: Any) -> list[int]:
    return [int(number) for number in (value if isinstance(value, list | tuple) else [value])]


def _check(name: str, given: Any, numbers: list[int], has_regions: bool, source: Path | str) -> None:
    each = given if isinstance(given, list | tuple) else [given]
    if has_regions and any(isinstance(number, str) for number in each):
        raise DataError(
            f"{source}: the label {name!r} is {given!r}. In a dataset with regions nnU-Net does not convert text to "
            f"numbers, and finds no voxel of this label. Write {numbers[0] if len(numbers) == 1 else numbers}."
        )
    whole = all(isinstance(number, str) or number == integer for number, integer in zip(each, numbers, strict=True))
    if not numbers or not whole or not all(0 <= number <= HIGHEST for number in numbers):
        raise DataError(f"{source}: the label {name!r} must be one or more integers in [0, {HIGHEST}]; got {given!r}.")


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[-1]
