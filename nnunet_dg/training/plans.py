"""Settings in the plans: ``plans["nnunet_dg"][<method>]``, then the trainer class's own."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from dataclasses import asdict, fields, replace
from difflib import SequenceMatcher
from typing import Any, TypeVar

from nnunet_dg.errors import SettingsError
from nnunet_dg.method import Method
from nnunet_dg.names import did_you_mean
from nnunet_dg.training.catalog import METHODS

KEY = "nnunet_dg"
PLANNED_FOR = "planned_for"  # what a planner counted; not a setting
SIMILAR = 0.85  # the ratio of difflib from which a key is a misspelled one of ours; "nnunet_tta" has 0.71
LARGEST = 1e15  # the largest number that a setting may be: float32 and int64 hold it

T = TypeVar("T", bound=Method)


def sections_of(plans: dict[str, Any], methods: Iterable[str] = ()) -> dict[str, Any]:
    """``plans["nnunet_dg"]``: settings by method, and what a planner counted.

    Args:
        plans: nnU-Net's plans.
        methods: Keys of methods that are known in addition to this package's own.

    Raises:
        SettingsError: It is not a dict, or names an unknown method.
    """
    sections = plans.get(KEY, {})
    if not isinstance(sections, dict):
        raise SettingsError(f'plans["{KEY}"] must look like {{"dropgen": {{setting: value}}}}; got {sections!r}.')
    known = [*METHODS, *(method for method in methods if method not in METHODS)]
    if unknown := set(sections) - {*known, PLANNED_FOR}:
        names = ", ".join(sorted(map(repr, unknown)))
        raise SettingsError(
            f'plans["{KEY}"] knows {", ".join(known)}; got {names}.{_suggestions(unknown, known)} Settings go '
            f'below their method, as in {{"dropgen": {{setting: value}}}}.'
        )
    return sections


def resolve(plans: dict[str, Any], defaults: T, methods: Iterable[str] = ()) -> T:
    """The settings of one method.

    Args:
        plans: nnU-Net's plans; ``plans["nnunet_dg"][key]`` may hold some settings by name.
        defaults: The method with the trainer's settings; those in the plans come first.
        methods: Keys of the trainer's other methods.

    Raises:
        SettingsError: An unknown method or setting in the plans, or a value that is not accepted.
    """
    sections = sections_of(plans, (defaults.key, *methods))
    place, given = f'plans["{KEY}"]["{defaults.key}"]', sections.get(defaults.key, {})
    if not isinstance(given, dict):
        example = f'{{"{defaults.key}": {{setting: value}}}}'
        raise SettingsError(f'plans["{KEY}"] must look like {example}; got {sections!r}.')
    given = defaults.upgraded(given)
    accepted = [field.name for field in fields(defaults)]
    if unknown := set(given) - set(accepted):
        raise SettingsError(
            f"Unknown setting in {place}: {', '.join(sorted(map(repr, unknown)))}.{_suggestions(unknown, accepted)} "
            f"Accepted are {', '.join(accepted)}."
        )
    for name, value in given.items():
        _check_numbers(value, f"{place}: {name}")
    try:
        return replace(defaults, **given)
    except ValueError as error:
        raise SettingsError(f"{place}: {error}") from error
    except (TypeError, OverflowError) as error:  # a list where a number is compared
        raise SettingsError(f"{place}: a value is of a type that is not accepted: {error}. Got {given!r}.") from error


def refuse_misplaced(plans: dict[str, Any]) -> None:
    """Stop where settings are in a place from which no method reads them: they would be ignored silently.

    Raises:
        SettingsError: By the name of the place.
    """
    places = [(key, value, f'plans["{key}"]') for key, value in plans.items() if key != KEY]
    configurations = plans.get("configurations")
    for name, configuration in (configurations if isinstance(configurations, dict) else {}).items():
        keys = configuration if isinstance(configuration, dict) else {}
        places += [(key, value, f'plans["configurations"]["{name}"]["{key}"]') for key, value in keys.items()]
    for key, value, place in places:
        if _looks_like_ours(key, value):
            raise SettingsError(
                f'{place} is not read. Settings go to the top level of the plans file: "{KEY}": {{"dropgen": '
                f"{{setting: value}}}}. Move it there."
            )


def unused(plans: dict[str, Any], methods: Iterable[str]) -> list[str]:
    """The methods that have settings in the plans and are not among ``methods``."""
    used = list(methods)
    return sorted(set(sections_of(plans, used)) - {*used, PLANNED_FOR})


def refuse_other_settings(now: T, earlier: T, whose: str = "This checkpoint was trained", others: str = "") -> None:
    """A checkpoint means what it meant when it was written: stop where a setting that decides this has changed since.

    Args:
        now: The settings of this training.
        earlier: Those of the checkpoint, or of another fold.
        whose: The start of the message.
        others: What else the user can do, in addition to the advice in the message; it continues a sentence.

    Raises:
        SettingsError: By name of the settings. Where the weights came from may change.
    """
    changed = {
        field.name: (getattr(earlier, field.name), getattr(now, field.name))
        for field in fields(now)
        if field.name != "weights" and getattr(earlier, field.name) != getattr(now, field.name)
    }
    if changed:
        what = ", ".join(f"{name} was {then!r} and is {today!r}" for name, (then, today) in changed.items())
        raise SettingsError(
            f"{whose} with other settings: {what}. Put them back in "
            f'plans["{KEY}"], or train under another plans_name{others}.'
        )


def as_json(settings: Any) -> dict[str, Any]:
    """All settings of a method as they are after a passage through JSON: no tuples."""
    values: dict[str, Any] = json.loads(json.dumps(asdict(settings)))
    return values


def record(plans: dict[str, Any], method: Method) -> None:
    """Write all settings of a method into the plans, so that plans.json and checkpoints rebuild the same network."""
    plans.setdefault(KEY, {})[method.key] = as_json(method)


def _suggestions(unknown: Iterable[Any], accepted: Iterable[str]) -> str:
    accepted = list(accepted)
    return "".join(did_you_mean(name, accepted) for name in sorted(map(str, unknown)))


def _looks_like_ours(key: str, value: Any) -> bool:
    """Written as ours but for ``-``, ``_``, spaces and case, or similar, with a method in it: others add keys too."""
    letters = _letters(key)
    ours = [_letters(name) for name in (KEY, *METHODS)]
    if letters in ours:
        return True
    names_a_method = isinstance(value, dict) and not {_letters(name) for name in value}.isdisjoint(ours)
    return names_a_method and any(SequenceMatcher(None, letters, name).ratio() >= SIMILAR for name in ours)


def _letters(name: object) -> str:
    return re.sub(r"[-_\s]", "", str(name).casefold())


def _check_numbers(value: Any, name: str) -> None:
    """No NaN, no infinity, and nothing that float32 or int64 cannot hold, also inside lists and dicts."""
    if isinstance(value, (list, tuple)):
        for part in value:
            _check_numbers(part, name)
    elif isinstance(value, dict):
        for part in value.values():
            _check_numbers(part, name)
    elif isinstance(value, (int, float)) and not (math.isfinite(_as_float(value)) and abs(value) <= LARGEST):
        shown = repr(value) if isinstance(value, float) else f"a number of {len(str(abs(value)))} digits"
        raise SettingsError(f"{name} must be a finite number of at most {LARGEST:g} in size; got {shown}.")


def _as_float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def planned_for_other(plans: dict[str, Any], method: Method, spatial_dims: int) -> str:
    """A warning where a training takes other memory than the planner counted; empty where it does not."""
    counted = plans.get(KEY, {}).get(PLANNED_FOR, {}).get(f"{spatial_dims}d", {})
    names = [n for n in method.memory_settings if n in counted and counted[n] != getattr(method, n)]
    if not names:
        return ""
    differ = ", ".join(f"{name} {counted[name]!r}, and this training has {getattr(method, name)!r}" for name in names)
    return (
        f"These plans' patch and batch size were chosen for {differ}. Training may run out of memory or "
        f"use less than planned. Plan with a planner that has the same {method.key} settings."
    )
