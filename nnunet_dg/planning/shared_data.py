"""Plans files of a preprocessed dataset: the data that several plans share, the settings that an earlier one has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nnunet_dg.errors import DataError, SettingsError
from nnunet_dg.files import read_json, validate
from nnunet_dg.formats import Plans
from nnunet_dg.training.plans import sections_of

NOT_PLANS = ("dataset.json", "dataset_fingerprint.json", "splits_final.json", "domains.json")
WHAT_MAKES_THE_DATASET = ("transpose_forward", "image_reader_writer", "foreground_intensity_properties_per_channel")
WHAT_MAKES_THE_DATA = (
    "preprocessor_name", "spacing", "normalization_schemes", "use_mask_for_norm", "resampling_fn_data",
    "resampling_fn_seg", "resampling_fn_data_kwargs", "resampling_fn_seg_kwargs",
)  # fmt: skip


def read_plans(path: Path) -> dict[str, Any] | None:
    """The plans in a JSON file; None where the file holds something else.

    Raises:
        DataError: The file is damaged, or holds plans of another shape.
    """
    content: Any = read_json(path, object)
    if not isinstance(content, dict) or "configurations" not in content:
        return None
    try:
        return dict(validate(content, Plans))
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def kept_sections(path: Path) -> dict[str, Any]:
    """``plans["nnunet_dg"]`` of an earlier plans file that is about to be replaced.

    A file that cannot be read as plans is kept under another name, since nnU-Net's planner would stop at it.

    Raises:
        SettingsError: The section is not one of settings by method.
    """
    if not path.is_file():
        return {}
    try:
        plans = read_plans(path)
        problem = f"{path} does not hold plans."
    except DataError as error:
        plans, problem = None, str(error)
    if plans is None:
        aside = path.with_name(f"{path.name}.damaged")
        path.replace(aside)
        print(f"{problem} It is kept as {aside.name}, and plans are made from scratch.")
        return {}
    try:
        return sections_of(plans)
    except SettingsError as error:
        raise SettingsError(f"{path}: {error}") from error


def share_data(plans: dict[str, Any], folder: Path) -> None:
    """Let configurations use the data of other plans in the preprocessed ``folder``, where the data are the same.

    The same are: transposition, reader and intensities of the dataset, and in the configuration everything in
    `WHAT_MAKES_THE_DATA`. Data that exist come before data that are only planned, and nnU-Net's own before others'.
    Files that cannot be read are named in a printed line.
    """
    others = _other_plans(folder, plans["plans_name"])
    same_dataset = [o for o in others if all(plans[key] == o.get(key) for key in WHAT_MAKES_THE_DATASET)]
    to_do, shared = [], False
    for name, configuration in plans["configurations"].items():
        if "spacing" not in configuration:
            continue
        same = _same_data(name, configuration, same_dataset)
        identifiers = [*same, configuration["data_identifier"]]
        there = [identifier for identifier in identifiers if (folder / identifier).is_dir()]
        configuration["data_identifier"] = (there or identifiers)[0]
        if there:
            print(f"{name}: the preprocessed data of {there[0]} are used.")
            shared = shared or there[0] in same
        else:
            to_do.append(name)
    if shared:
        print("nnUNetv2_plan_and_preprocess deletes them and makes them again; nnUNetv2_plan_experiment does not.")
    if to_do:
        print(f"To be preprocessed: nnUNetv2_preprocess -plans_name {plans['plans_name']} -c {' '.join(to_do)}")


def _other_plans(folder: Path, own_name: str) -> list[dict[str, Any]]:
    paths = sorted(folder.glob("*.json"), key=lambda path: (path.stem != "nnUNetPlans", path.stem))
    others = []
    for path in paths:
        if path.stem == own_name or path.name in NOT_PLANS or path.name.startswith("."):
            continue
        try:
            others.append(read_plans(path))
        except DataError as error:
            print(f"{error} Its data are not shared.")
    return [plans for plans in others if plans is not None]


def _same_data(name: str, configuration: dict[str, Any], others: list[dict[str, Any]]) -> list[str]:
    """The data identifiers of the configurations with this name that ask for the same data."""
    theirs = [other["configurations"].get(name, {}) for other in others]
    same = [t for t in theirs if all(configuration[key] == t.get(key) for key in WHAT_MAKES_THE_DATA)]
    return [t["data_identifier"] for t in same if isinstance(t.get("data_identifier"), str)]
