"""Plans files of a preprocessed dataset: sharing preprocessed data, and keeping the settings of an earlier file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nnunet_dg.datasets.split_dataset import number_of
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
    """The plans in a JSON file; None if the file contains something else.

    Raises:
        DataError: The file is damaged, or its plans do not have the expected format.
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

    A file that cannot be read as plans is renamed, since nnU-Net's planner would fail on it.

    Raises:
        SettingsError: The section does not contain settings by method.
    """
    if not path.is_file():
        return {}
    try:
        plans = read_plans(path)
        problem = f"{path} does not contain plans."
    except DataError as error:
        plans, problem = None, str(error)
    if plans is None:
        backup = path.with_name(f"{path.name}.damaged")
        path.replace(backup)
        print(f"{problem} It is kept as {backup.name}, and plans are made from scratch.")
        return {}
    try:
        return sections_of(plans)
    except SettingsError as error:
        raise SettingsError(f"{path}: {error}") from error


def share_data(plans: dict[str, Any], folder: Path) -> None:
    """Let configurations use the preprocessed data of other plans in ``folder`` if the data would be the same.

    They are the same if the dataset's transposition, reader and intensities, and all entries of the configuration in
    `WHAT_MAKES_THE_DATA`, are equal. Existing data are preferred to data that are only planned, and data of nnU-Net's
    default plans to those of others. Files that cannot be read are reported in a printed line.

    Args:
        plans: New plans; their data identifiers are changed in place.
        folder: Preprocessed dataset folder.
    """
    others = _other_plans(folder, plans["plans_name"])
    same_dataset = [other for other in others if all(plans[key] == other.get(key) for key in WHAT_MAKES_THE_DATASET)]
    to_do, shared = [], False
    for name, configuration in plans["configurations"].items():
        if "spacing" not in configuration:
            continue
        same = _same_data(name, configuration, same_dataset)
        identifiers = [*same, configuration["data_identifier"]]
        existing = [identifier for identifier in identifiers if (folder / identifier).is_dir()]
        configuration["data_identifier"] = (existing or identifiers)[0]
        if existing:
            print(f"{name}: uses the existing preprocessed data in {existing[0]}.")
            shared = shared or existing[0] in same
        else:
            to_do.append(name)
    if shared:
        print("nnUNetv2_plan_and_preprocess deletes and recreates these data; nnUNetv2_plan_experiment does not.")
    if to_do:
        number = number_of(plans["dataset_name"])
        options = f"-d {number} -plans_name {plans['plans_name']} -c {' '.join(to_do)}"
        print(f"Still to preprocess: nnUNetv2_preprocess {options}")


def _other_plans(folder: Path, own_name: str) -> list[dict[str, Any]]:
    paths = sorted(folder.glob("*.json"), key=lambda path: (path.stem != "nnUNetPlans", path.stem))
    others = []
    for path in paths:
        if path.stem == own_name or path.name in NOT_PLANS or path.name.startswith("."):
            continue
        try:
            others.append(read_plans(path))
        except DataError as error:
            print(f"{error} The data of these plans are not shared.")
    return [plans for plans in others if plans is not None]


def _same_data(name: str, configuration: dict[str, Any], others: list[dict[str, Any]]) -> list[str]:
    """The data identifiers of other plans' configurations with this name whose data are the same."""
    candidates = [other["configurations"].get(name, {}) for other in others]
    same = [c for c in candidates if all(configuration[key] == c.get(key) for key in WHAT_MAKES_THE_DATA)]
    return [c["data_identifier"] for c in same if isinstance(c.get("data_identifier"), str)]
