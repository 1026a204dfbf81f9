"""The shapes of the JSON files that are not ours, for `nnunet_dg.files.read_json`.

Keys that are not named here are kept. The types say what this package relies on, not all that nnU-Net writes.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import ConfigDict, Field
from typing_extensions import NotRequired, TypedDict

Name = Annotated[str, Field(min_length=1)]
_KEEP = ConfigDict(extra="allow")
_STRICT = ConfigDict(extra="allow", strict=True)


class Dataset(TypedDict):
    """nnU-Net's ``dataset.json``. What the values of ``labels`` mean is `LabelManager`'s to say."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    labels: Annotated[dict[str, Any], Field(min_length=1)]
    file_ending: Annotated[str, Field(pattern=r"^\.[^/\\]+$")]
    channel_names: NotRequired[dict[str, Any]]
    regions_class_order: NotRequired[list[Any]]


class Plans(TypedDict):
    """nnU-Net's plans."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    dataset_name: Name
    plans_name: NotRequired[Name]
    configurations: NotRequired[dict[str, dict[str, Any]]]


class Fold(TypedDict):
    """One fold of nnU-Net's ``splits_final.json``."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    train: list[Name]
    val: list[Name]


Splits = list[Fold]
Domains = dict[Name, Name]
"""``domains.json`` and groups: ``{case: domain}``."""


class CaseSummary(TypedDict):
    """One case in nnU-Net's ``summary.json``."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    reference_file: Name
    prediction_file: str
    metrics: dict[str, dict[str, Any]]


class Summary(TypedDict):
    """nnU-Net's ``summary.json``."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    metric_per_case: list[CaseSummary]


class ModelPlans(TypedDict):
    """``plans.json`` of a trained model that is used as an extractor."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    configurations: Annotated[dict[str, dict[str, Any]], Field(min_length=1)]
