"""Checks of a dataset and its plans, for `nnunet-dg doctor`."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from rich.markup import escape
from rich.table import Table

from nnunet_dg.datasets.domains import locate, read_domains, read_file
from nnunet_dg.datasets.normalization import fitted_to_ct
from nnunet_dg.datasets.split_dataset import cases_of, dataset_name
from nnunet_dg.errors import DataError, SettingsError
from nnunet_dg.files import read_json
from nnunet_dg.formats import Dataset
from nnunet_dg.names import printable
from nnunet_dg.planning.shared_data import read_plans
from nnunet_dg.training.overview import default_methods
from nnunet_dg.training.planned_run import PlannedRun
from nnunet_dg.training.plans import PLANNED_FOR, refuse_misplaced, resolve, sections_of


def dataset_table(dataset: str, plans_name: str) -> tuple[Table, list[str]]:
    """The results of checking a dataset and its plans.

    Args:
        dataset: Dataset name or number.
        plans_name: Name of the plans.

    Returns:
        A table with normalization, settings and domains, and notes as sentences.

    Raises:
        HostError: nnU-Net does not know the dataset, or its folders are not set.
        DataError: The plans or ``dataset.json`` are missing or unreadable, or ``domains.json`` does not match the cases
            of the dataset.
        SettingsError: Settings in the plans are unknown, invalid, or in the wrong place.
    """
    name = dataset_name(dataset)
    folder = Path(nnUNet_preprocessed) / name
    path = folder / f"{plans_name}.json"
    plans: Any = read_plans(path)
    if plans is None:
        raise DataError(f"{path} does not contain plans. Plan with nnUNetv2_plan_experiment, or choose other `plans`.")
    sections = _checked_sections(plans, path)
    content: Any = read_json(folder / "dataset.json", Dataset)
    table = Table(title=escape(f"{name}, {plans_name}"), show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    notes = [_other_name(plans, plans_name)]
    for configuration, manager in _configurations(plans, path).items():
        names = (content.get("channel_names") or content.get("modality") or {}).values()
        channels = zip(names, manager.normalization_schemes, strict=False)
        normalization = ", ".join(f"{channel}: {scheme}" for channel, scheme in channels)
        table.add_row(escape(configuration), escape(normalization))
        notes += [fitted_to_ct(plans, manager, content)]
    counted = sections.get(PLANNED_FOR, {})
    extractors = [f"{dims}: {what.get('extractor')}" for dims, what in counted.items() if isinstance(what, dict)]
    table.add_row("planned for", escape(", ".join(extractors)) or "images without DropGen's features")
    settings = ", ".join(sorted(set(sections) - {PLANNED_FOR}))
    table.add_row("settings", escape(settings) or "none in the plans; each trainer uses its defaults")
    table.add_row("domains", escape(_domains(name, folder, notes.append)))
    return table, list(dict.fromkeys(filter(None, notes)))


def _other_name(plans: dict[str, Any], plans_name: str) -> str:
    """A note if nnU-Net will use the results folder of other plans."""
    if (inside := plans.get("plans_name")) in (None, plans_name):
        return ""
    return (
        f"The plans {plans_name} have the plans_name {inside!r}, by which nnU-Net names the results folder: trainings "
        f"would go to the folder of those plans. Set plans_name to {plans_name!r} in the file."
    )


def _checked_sections(plans: dict[str, Any], path: Path) -> dict[str, Any]:
    """Settings by method, after checking that a training would accept them."""
    try:
        refuse_misplaced(plans)
        sections = sections_of(plans)
        for method in default_methods():
            if method.key in sections:
                resolve(plans, method)
        PlannedRun.of_plans(plans)
    except SettingsError as error:
        raise SettingsError(f"{path}: {error}") from error
    return sections


def _configurations(plans: dict[str, Any], path: Path) -> dict[str, Any]:
    """nnU-Net's configuration managers by name, with inherited values."""
    manager = PlansManager(plans)
    try:
        managers = {name: manager.get_configuration(name) for name in plans["configurations"]}
        return {name: found for name, found in managers.items() if found.normalization_schemes}
    except (KeyError, ValueError, RuntimeError, TypeError) as error:
        raise DataError(f"{path}: nnU-Net cannot read its configurations: {error}. Plan the dataset again.") from error


def _domains(name: str, preprocessed: Path, log: Callable[[str], None]) -> str:
    """The names of the domains, after checking that every case has one."""
    path = locate(Path(nnUNet_raw, name) if nnUNet_raw else None, preprocessed)
    if not os.path.lexists(path):
        return f"one, because there is no {path}"
    if not (preprocessed / "gt_segmentations").is_dir():
        names = sorted(set(read_file(path).values()))
        log(f"{path} was not compared with the cases, because the dataset is not preprocessed.")
    else:
        messages: list[str] = []
        # passing the file's own folder as the preprocessed one avoids copying the file
        names = list(read_domains(None, path.parent, cases_of(preprocessed, name, log), messages.append).names)
        for warning in messages[:-1]:  # the last message lists the domains, which the table already shows
            log(warning)
    return printable(f"{', '.join(names)}, from {path}")
