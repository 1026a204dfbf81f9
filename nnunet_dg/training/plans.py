"""Settings of methods: those in ``plans["nnunet_dg"][<method>]`` take precedence over the trainer's defaults."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, fields, replace
from difflib import SequenceMatcher
from typing import Any, TypeVar

from nnunet_dg.errors import SettingsError
from nnunet_dg.method import Method
from nnunet_dg.names import did_you_mean, letters
from nnunet_dg.training.catalog import METHODS
from nnunet_dg.training.overview import trainers_by_method

KEY = "nnunet_dg"
PLANNED_FOR = "planned_for"  # the settings that a planner assumed, which are not settings of a method
TRAINING = "training"  # seed and length of the training, see `nnunet_dg.training.planned_run`
NO_METHODS = {PLANNED_FOR, TRAINING}
SIMILAR = 0.85  # keys with this difflib ratio or more are misspelled ones of ours; "nnunet_tta" has 0.71
LARGEST = 1e15  # largest absolute value of a setting; it fits into float32 and int64

T = TypeVar("T", bound=Method)


def sections_of(plans: dict[str, Any], methods: Iterable[str] = ()) -> dict[str, Any]:
    """``plans["nnunet_dg"]``: settings by method, and the settings that a planner assumed.

    Args:
        plans: Plans of nnU-Net.
        methods: Keys of methods that are accepted in addition to those of this package.

    Raises:
        SettingsError: The section is not a dict, or names an unknown method.
    """
    sections = plans.get(KEY, {})
    if not isinstance(sections, dict):
        raise SettingsError(f'plans["{KEY}"] must look like {{"dropgen": {{setting: value}}}}; got {sections!r}.')
    known = list(dict.fromkeys((*METHODS, *methods)))
    if set(sections) - {*known, *NO_METHODS}:  # the sections may be those of other packages' methods
        known = list(dict.fromkeys((*known, *(method.key for method in trainers_by_method()))))
    if unknown := set(sections) - {*known, *NO_METHODS}:
        names, known = ", ".join(sorted(map(repr, unknown))), [*known, TRAINING]
        raise SettingsError(
            f'Unknown section in plans["{KEY}"]: {names}.{_suggestions(unknown, known)} Accepted are '
            f'{", ".join(known)}. Put settings into the section of their method, as in {{"dropgen": {{setting: '
            f"value}}}}."
        )
    return sections


def resolve(plans: dict[str, Any], defaults: T, methods: Iterable[str] = ()) -> T:
    """The settings of one method.

    Args:
        plans: Plans of nnU-Net; ``plans["nnunet_dg"][key]`` may contain some of the settings by name.
        defaults: Method with the trainer's settings, over which those in the plans take precedence.
        methods: Keys of the trainer's other methods.

    Raises:
        SettingsError: The plans have an unknown method or setting, or a value that is not accepted.
    """
    sections = sections_of(plans, (defaults.key, *methods))
    place, settings = f'plans["{KEY}"]["{defaults.key}"]', sections.get(defaults.key, {})
    if not isinstance(settings, dict):
        example = f'{{"{defaults.key}": {{setting: value}}}}'
        raise SettingsError(f'plans["{KEY}"] must look like {example}; got {sections!r}.')
    settings = defaults.upgraded(settings)
    accepted = [field.name for field in fields(defaults)]
    if unknown := set(settings) - set(accepted):
        raise SettingsError(
            f"Unknown setting in {place}: {', '.join(sorted(map(repr, unknown)))}.{_suggestions(unknown, accepted)} "
            f"Accepted are {', '.join(accepted)}."
        )
    for name, value in settings.items():
        _check_numbers(value, f"{place}: {name}")
    try:
        return replace(defaults, **settings)
    except ValueError as error:
        raise SettingsError(f"{place}: {error}") from error
    except (TypeError, OverflowError) as error:  # for example a list that is compared with a number
        raise SettingsError(f"{place}: a value has a type that is not accepted: {error}. Got {settings!r}.") from error


def refuse_misplaced(plans: dict[str, Any]) -> None:
    """Raise an error for settings in a place from which no method reads them, where they would be ignored silently.

    Raises:
        SettingsError: There are such settings. The message names the place.
    """
    places = [(key, value, f'plans["{key}"]') for key, value in plans.items() if key != KEY]
    configurations = plans.get("configurations")
    for name, configuration in (configurations if isinstance(configurations, dict) else {}).items():
        keys = configuration if isinstance(configuration, dict) else {}
        places += [(key, value, f'plans["configurations"]["{name}"]["{key}"]') for key, value in keys.items()]
    for key, value, place in places:
        if _looks_like_ours(key, value):
            raise SettingsError(
                f'{place} is not read. Settings are at the top level of the plans file, in "{KEY}": {{"dropgen": '
                f"{{setting: value}}}}. Move it there."
            )


def unused(plans: dict[str, Any], methods: Iterable[str]) -> list[str]:
    """The keys of methods that have settings in the plans but are not among ``methods``."""
    used = list(methods)
    return sorted(set(sections_of(plans, used)) - {*used, *NO_METHODS})


def refuse_other_settings(now: T, earlier: T, subject: str = "This checkpoint was trained", advice: str = "") -> None:
    """Raise an error if settings differ from those of a checkpoint or another fold, except ``weights``.

    Args:
        now: Settings of this training.
        earlier: Settings of the checkpoint or of the other fold.
        subject: Start of the message.
        advice: Further advice, which continues the last sentence of the message; default empty.

    Raises:
        SettingsError: Settings have changed. The message names them.
    """
    before, after = as_json(earlier), as_json(now)
    changed = {
        field.name: (getattr(earlier, field.name), getattr(now, field.name))
        for field in fields(now)
        if field.name != "weights" and before[field.name] != after[field.name]
    }
    if changed:
        changes = ", ".join(f"{name} was {then!r} and is {today!r}" for name, (then, today) in changed.items())
        raise SettingsError(
            f'{subject} with other settings: {changes}. Restore them in plans["{KEY}"], or train with another '
            f"plans_name{advice}."
        )


def as_json(settings: Any) -> dict[str, Any]:
    """All settings of a method in the types of JSON: lists in place of tuples."""
    values: dict[str, Any] = json.loads(json.dumps(asdict(settings)))
    return values


def record(plans: dict[str, Any], method: Method) -> None:
    """Write all settings of a method into the plans, so that plans.json and checkpoints rebuild the same network."""
    plans.setdefault(KEY, {})[method.key] = as_json(method)


def _suggestions(unknown: Iterable[Any], accepted: Iterable[str]) -> str:
    accepted = list(accepted)
    return "".join(did_you_mean(name, accepted) for name in sorted(map(str, unknown)))


def _looks_like_ours(key: str, value: Any) -> bool:
    """Whether a key is one of ours except for ``-``, ``_``, spaces and case, or a similar one that contains a method.

    Other packages add keys to the plans as well, so that similarity is not sufficient.
    """
    spelled = letters(str(key))
    ours = [letters(name) for name in (KEY, *METHODS)]
    if spelled in ours:
        return True
    names_a_method = isinstance(value, dict) and not {letters(str(name)) for name in value}.isdisjoint(ours)
    return names_a_method and any(SequenceMatcher(None, spelled, name).ratio() >= SIMILAR for name in ours)


def _check_numbers(value: Any, name: str) -> None:
    """Raise an error for NaN, infinity, and numbers too large for float32 or int64, also inside lists and dicts."""
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
    """A warning if settings that determine memory use differ from those that the planner assumed; otherwise empty."""
    planned = plans.get(KEY, {}).get(PLANNED_FOR, {}).get(f"{spatial_dims}d", {})
    names = [n for n in method.memory_settings if n in planned and planned[n] != getattr(method, n)]
    if not names:
        return ""
    differences = ", ".join(f"{n} {planned[n]!r}, but this training has {getattr(method, n)!r}" for n in names)
    return (
        f"The patch and batch size of these plans were chosen for {differences}. Training may run out of memory or "
        f"use less than planned. Plan with a planner that has the same {method.key} settings."
    )
