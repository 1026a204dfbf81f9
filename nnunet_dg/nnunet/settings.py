"""Settings in the plans: ``plans["nnunet_dg"][<method>]``, then the trainer class's own."""

from __future__ import annotations

from dataclasses import asdict, fields, replace
from typing import Any, TypeVar

KEY = "nnunet_dg"
METHODS = ("dropgen",)

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
    if unknown := set(sections) - set(METHODS):
        raise ValueError(f'plans["{KEY}"] knows {", ".join(METHODS)}; got {", ".join(sorted(map(repr, unknown)))}.')
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


def record(plans: dict[str, Any], method: str, settings: Any) -> None:
    """Write all settings of a method into the plans, so that plans.json and checkpoints rebuild the same network."""
    plans.setdefault(KEY, {})[method] = asdict(settings)
