"""Declarations of a method's settings: each field has a default and a check.

The description of a check completes the sentence "NAME must be ..." in error messages. The reference of the settings
prints it as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from nnunet_dg.errors import SettingsError

LARGEST_WEIGHT = 1e6
MOST_STAGES = 32


@dataclass(frozen=True)
class Check:
    """The check of a setting.

    Attributes:
        accepted: Accepted values in words, which complete "must be ...".
        accepts: Function that says whether a value is accepted.
        convert: Function from an accepted value to the stored one, for example from a list of JSON to a tuple.
    """

    accepted: str
    accepts: Callable[[Any], bool]
    convert: Callable[[Any], Any] = lambda value: value

    def checked(self, name: str, value: Any) -> Any:
        """The value as it is stored.

        Raises:
            SettingsError: The value is not accepted. The message names the setting.
        """
        if not self.accepts(value):
            raise SettingsError(f"{name} must be {self.accepted}; got {value!r}.")
        return self.convert(value)


def setting(
    default: Any, accepted: str, accepts: Callable[[Any], bool], convert: Callable[[Any], Any] = lambda value: value
) -> Any:
    """A field with a custom check, see `Check`."""
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
        high: Largest accepted value; None: 1e6.
        above: Exclusive lower bound, in place of `low`.
        whole: Whether only whole numbers are accepted; default False.
        null: Whether None is accepted as well; default False.
    """
    largest = LARGEST_WEIGHT if high is None else high
    kind = "a whole number" if whole else "a number"
    lower_end = f"({above:g}" if above is not None else f"[{-largest if low is None else low:g}"

    def accepts(value: Any) -> bool:
        if value is None:
            return null
        if not is_number(value, whole):
            return False
        smallest = -largest if low is None else low
        return smallest <= value <= largest and (above is None or value > above)

    return setting(default, f"{kind} in {lower_end}, {largest:g}]{', or null' if null else ''}", accepts)


def probability(default: float, high: float = 1.0) -> Any:
    """A probability in [0, ``high``]."""
    return setting(
        default, f"a probability in [0, {high:g}]", lambda value: is_number(value, False) and 0 <= value <= high
    )


def flag(default: bool) -> Any:
    """True or False."""
    return setting(default, "true or false", lambda value: isinstance(value, bool))


def choice(default: Any, *others: Any) -> Any:
    """One of several names. None is written as null in the plans."""
    accepted = (default, *others)
    names = ", ".join(str(value) for value in accepted if value is not None)
    null = ", or null" if None in accepted else ""
    return setting(default, f"one of {names}{null}", lambda value: any(value is a or value == a for a in accepted))


def text(default: str | None, accepted: str, accepts: Callable[[str], bool] = lambda value: value != "") -> Any:
    """A non-empty string, for example a path, or None."""
    return setting(default, accepted, lambda v: v is None or (isinstance(v, str) and "\0" not in v and accepts(v)))


def subset(*names: str) -> Any:
    """A list of some of the names; empty by default. It is stored sorted and without duplicates."""
    return setting(
        (),
        f"a list of {', '.join(names)}",
        lambda value: isinstance(value, (list, tuple)) and all(part in names for part in value),
        lambda value: tuple(sorted(set(value))),
    )


def found(where: str) -> Any:
    """A dict that a training fills in when it starts, see `nnunet_dg.method.Method.completed`. Users leave it unset."""
    return setting(None, f"left unset: {where}", lambda value: value is None or isinstance(value, dict))


def encoder_stages(*default: int, null: bool = False) -> Any:
    """A list of different encoder stages.

    Args:
        default: Default stages.
        null: Whether None is accepted as well, and is the default; default False.
    """

    def accepts(value: Any) -> bool:
        if value is None:
            return null
        return (
            isinstance(value, (list, tuple))
            and len(value) == len({*map(repr, value)}) > 0
            and all(is_number(stage, whole=True) and 0 <= stage < MOST_STAGES for stage in value)
        )

    accepted = f"a list of different encoder stages, numbered from 0{', or null' if null else ''}"
    return setting(None if null else default, accepted, accepts, lambda value: None if value is None else tuple(value))


def numbers(default: tuple[float, ...], names: Sequence[str], instead_of_zero: str) -> Any:
    """Positive numbers, one for each name.

    Args:
        default: Default values.
        names: Names of the numbers.
        instead_of_zero: Advice for the message, for users who want to set a number to zero.
    """

    def accepts(value: Any) -> bool:
        values = value if isinstance(value, (list, tuple)) else ()
        return len(values) == len(names) and all(is_number(v, False) and 0 < v <= LARGEST_WEIGHT for v in values)

    accepted = (
        f"{len(names)} positive numbers, for {', '.join(names)}, each at most {LARGEST_WEIGHT:g} ({instead_of_zero})"
    )
    return setting(default, accepted, accepts, lambda value: tuple(float(v) for v in value))


def is_number(value: Any, whole: bool) -> bool:
    """Whether a value is an int or, unless ``whole``, a float. True and False do not count as numbers."""
    return isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
