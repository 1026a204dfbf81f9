"""Settings in the plans: ``plans["nnunet_dg"][<method>]``, then the trainer class's own."""

from __future__ import annotations

import json
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, TypeVar

KEY = "nnunet_dg"
METHODS = ("dropgen", "sgcg", "tinymig")
PLANNED_FOR = "planned_for"  # what a planner counted; no setting

T = TypeVar("T")


def resolve(plans: dict[str, Any], method: str, defaults: T) -> T:
    """The settings of one method.

    Args:
        plans: nnU-Net's plans; ``plans["nnunet_dg"][method]`` may hold some settings by name.
        method: for example ``"dropgen"``.
        defaults: the trainer class's settings, a dataclass; the plans come first.

    Raises:
        ValueError: an unknown method or setting in the plans, or a value that is not accepted.
    """
    sections = plans.get(KEY, {})
    given = sections.get(method, {}) if isinstance(sections, dict) else None
    if not isinstance(given, dict):
        raise ValueError(f'plans["{KEY}"] must look like {{"{method}": {{setting: value}}}}; got {sections!r}.')
    if unknown := set(sections) - {*METHODS, PLANNED_FOR}:
        raise ValueError(
            f'plans["{KEY}"] knows {", ".join(METHODS)}; got {", ".join(sorted(map(repr, unknown)))}. Settings go '
            f'below their method, as in {{"{method}": {{setting: value}}}}.'
        )
    upgraded: Any = getattr(defaults, "upgraded", None)
    given = upgraded(given) if upgraded else given
    accepted = [field.name for field in fields(defaults)]  # type: ignore[arg-type]
    if unknown := set(given) - set(accepted):
        raise ValueError(
            f'Unknown setting in plans["{KEY}"]["{method}"]: {", ".join(sorted(map(repr, unknown)))}. '
            f"Accepted are {', '.join(accepted)}."
        )
    try:
        return replace(defaults, **given)  # type: ignore[type-var]
    except ValueError as error:
        raise ValueError(f'plans["{KEY}"]["{method}"]: {error}') from error


def recorded(results: str | Path, method: str, defaults: T) -> T | None:
    """The settings that an earlier start of a training wrote into the ``plans.json`` of its results folder, if any.

    Args:
        results: the folder ``TRAINER__PLANS__CONFIGURATION``.
        method: for example ``"dropgen"``.
        defaults: the trainer class's settings.

    Raises:
        ValueError: they are not accepted, as those of another version may be.
    """
    path = Path(results) / "plans.json"
    if not path.is_file():
        return None
    try:
        plans = json.loads(path.read_text())
    except ValueError:  # another fold is writing it, or was killed while it did
        return None
    if method not in plans.get(KEY, {}):
        return None
    try:
        return resolve(plans, method, defaults)
    except ValueError as error:
        raise ValueError(f"{path}, of an earlier training: {error} Move that folder away to train anew.") from error


def complete(settings: T, earlier: T | None) -> T:
    """With what only the start of a training can find out, for settings that have such a thing."""
    return settings.completed(earlier) if hasattr(settings, "completed") else settings


def refuse_other_settings(now: T, earlier: T, whose: str = "This checkpoint was") -> None:
    """A checkpoint means what it meant when it was written: stop where a setting that decides this has changed since.

    Raises:
        ValueError: by name of the settings. Where the weights came from may change.
    """
    changed = {
        field.name: (getattr(earlier, field.name), getattr(now, field.name))
        for field in fields(now)  # type: ignore[arg-type]
        if field.name != "weights" and getattr(earlier, field.name) != getattr(now, field.name)
    }
    if changed:
        what = ", ".join(f"{name} was {then!r} and is {today!r}" for name, (then, today) in changed.items())
        raise ValueError(
            f"{whose} trained with other settings: {what}. Put them back in "
            f'plans["{KEY}"], or train under another plans_name.'
        )


def record(plans: dict[str, Any], method: str, settings: Any) -> None:
    """Write all settings of a method into the plans, so that plans.json and checkpoints rebuild the same network."""
    plans.setdefault(KEY, {})[method] = json.loads(json.dumps(asdict(settings)))  # no tuples, as in plans.json
