"""Declarations of a method's settings: each field carries its default and its check.

The check completes the sentence "NAME must be ...", from which error messages and the reference of the settings are
made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from nnunet_dg.errors import SettingsError

LARGEST_WEIGHT = 1e6


@dataclass(frozen=True)
class Check:
    """What a setting accepts.

    Attributes:
        accepted: Completes "must be ...".
        accepts: Whether a value is accepted.
        convert: Brings an accepted value into the form that is kept; JSON has no tuples.
    """

    accepted: str
    accepts: Callable[[Any], bool]
    convert: Callable[[Any], Any] = lambda value: value

    def checked(self, name: str, value: Any) -> Any:
        """The value in the form that is kept.

        Raises:
            SettingsError: By name of the setting.
        """
        if not self.accepts(value):
            raise SettingsError(f"{name} must be {self.accepted}; got {value!r}.")
        return self.convert(value)


def setting(
    default: Any, accepted: str, accepts: Callable[[Any], bool], convert: Callable[[Any], Any] = lambda value: value
) -> Any:
    """A field with a check of its own, see `Check`."""
    return field(default=default, metadata={"check": Check(accepted, accepts, convert)})


def number(
    default: float | None,
    low: float | None = None,
    high: float | None = None,
    *,
    above: float | None = None,
    whole: bool = False,
    null: bool = False,
) -> Any:
    """A number in a range.

    Args:
        default: Default value.
        low: Smallest accepted value.
        high: Largest accepted value; at most 1e6 where it is not given.
        above: In place of `low`: only larger values are accepted.
        whole: Accept whole numbers only.
        null: Accept None as well.
    """
    largest = LARGEST_WEIGHT if high is None else high
    what = "a whole number" if whole else "a number"
    left = f"({above:g}" if above is not None else f"[{-largest if low is None else low:g}"

    def accepts(value: Any) -> bool:
        if value is None:
            return null
        if not is_number(value, whole):
            return False
        return value <= largest and (low is None or value >= low) and (above is None or value > above)

    return setting(default, f"{what} in {left}, {largest:g}]{', or null' if null else ''}", accepts)


def probability(default: float, high: float = 1.0) -> Any:
    """A probability, at most ``high``."""
    return setting(
        default, f"a probability in [0, {high:g}]", lambda value: is_number(value, False) and 0 <= value <= high
    )


def flag(default: bool) -> Any:
    """True or False."""
    return setting(default, "true or false", lambda value: isinstance(value, bool))


def choice(default: Any, *others: Any) -> Any:
    """One of several names; None among them is null."""
    accepted = (default, *others)
    names = ", ".join(str(value) for value in accepted if value is not None)
    null = ", or null" if None in accepted else ""
    return setting(default, f"one of {names}{null}", lambda value: any(value is a or value == a for a in accepted))


def text(default: str | None, accepted: str, accepts: Callable[[str], bool] = lambda value: value != "") -> Any:
    """A non-empty string, for example a path, or None."""
    return setting(default, accepted, lambda v: v is None or (isinstance(v, str) and "\0" not in v and accepts(v)))


def subset(*names: str) -> Any:
    """Any of several names, none by default; kept sorted, each once."""
    return setting(
        (),
        f"a list of {', '.join(names)}",
        lambda value: isinstance(value, (list, tuple)) and all(part in names for part in value),
        lambda value: tuple(sorted(set(value))),
    )


def found(where: str) -> Any:
    """A dict that the start of a training finds out, see `nnunet_dg.method.Method.completed`; users leave it unset."""
    return setting(None, f"left unset: {where}", lambda value: value is None or isinstance(value, dict))


def numbers(default: tuple[float, ...], names: Sequence[str], instead_of_zero: str) -> Any:
    """Positive numbers, one for each name; what to do instead of setting one to zero is part of the message."""

    def accepts(value: Any) -> bool:
        given = value if isinstance(value, (list, tuple)) else ()
        return len(given) == len(names) and all(is_number(v, False) and 0 < v <= LARGEST_WEIGHT for v in given)

    accepted = (
        f"{len(names)} positive numbers, of {', '.join(names)}, each at most {LARGEST_WEIGHT:g} ({instead_of_zero})"
    )
    return setting(default, accepted, accepts, lambda value: tuple(float(v) for v in value))


def is_number(value: Any, whole: bool) -> bool:
    """Whether a value is an int, or where ``whole`` is False a float; True and False are not numbers here."""
    return isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
