"""Types of the JSON files that this package reads, for `nnunet_dg.files.read_json`.

Keys that are not named here are kept. The types cover what this package relies on, not everything that nnU-Net writes.
"""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import AfterValidator, ConfigDict, Field
from typing_extensions import NotRequired, TypedDict

Name = Annotated[str, Field(min_length=1)]
_KEEP = ConfigDict(extra="allow")
_STRICT = ConfigDict(extra="allow", strict=True)


class Dataset(TypedDict):
    """nnU-Net's ``dataset.json``. nnU-Net's ``LabelManager`` interprets the values of ``labels``."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    labels: Annotated[dict[str, Any], Field(min_length=1)]
    file_ending: Annotated[str, Field(pattern=r"^\.[^/\\]+$")]
    channel_names: NotRequired[dict[str, Any]]
    regions_class_order: NotRequired[list[Any] | None]
    overwrite_image_reader_writer: NotRequired[str]


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


# Read by `nnunet-dg evaluate`


class TiffSpacing(TypedDict):
    """The file next to a 3-D TIFF from which nnU-Net's ``Tiff3DIO`` reads the spacing."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    spacing: Annotated[list[Annotated[float, Field(gt=0, allow_inf_nan=False)]], Field(min_length=3, max_length=3)]


# Read by `nnunet-dg report`


def _in_unit_interval(value: float | None) -> float:
    if value is None:  # NaN in strict JSON
        return math.nan
    if not (math.isnan(value) or 0 <= value <= 1):
        raise ValueError("Input should be a number from 0 to 1, or NaN if both masks are empty")
    return value


def _distance(value: float | None) -> float:
    if value is None:
        return math.nan
    if not (math.isnan(value) or 0 <= value < math.inf):
        raise ValueError("Input should be a distance in mm, 0 or more, or NaN if both masks are empty")
    return value


Overlap = Annotated[float | None, AfterValidator(_in_unit_interval)]
Distance = Annotated[float | None, AfterValidator(_distance)]


class LabelScores(TypedDict):
    """The metrics of one label of one case in ``summary.json``."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    Dice: Overlap


class CaseScores(TypedDict):
    """One case in ``summary.json``, with the values that the report reads."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    reference_file: Name
    prediction_file: str
    metrics: Annotated[dict[str, LabelScores], Field(min_length=1)]


class ValidationSummary(TypedDict):
    """nnU-Net's ``summary.json`` of a validation."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    metric_per_case: Annotated[list[CaseScores], Field(min_length=1)]


class EvaluatedLabel(TypedDict):
    """One row of ``evaluation.json``. Other columns are dropped: the report adds trainer, domain and setting itself."""

    __pydantic_config__ = ConfigDict(extra="ignore", strict=True)  # type: ignore[misc]
    case: Name
    label: Name
    dice: Overlap
    hd95_mm: NotRequired[Distance]
    assd_mm: NotRequired[Distance]
    nsd: NotRequired[Overlap]
    prediction_file: str
    reference_file: str


class EvaluationSettings(TypedDict):
    """The settings that `nnunet-dg evaluate` was run with."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    tolerance_mm: Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Evaluation(TypedDict):
    """``evaluation.json``, which `nnunet-dg evaluate` writes. Hashes are ``{path: SHA-256}``."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    settings: EvaluationSettings
    cases: Annotated[list[EvaluatedLabel], Field(min_length=1)]
    sha256: dict[str, str]
    sha256_of_truths: dict[str, str]


class ValidationSet(TypedDict):
    """The cases on which a method of test-time adaptation chose a number."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    cases: list[Name]


class Adaptation(TypedDict):
    """``adaptation.json``, which `nnunet-dg predict` writes."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    method: Name
    validation: ValidationSet | None
    seconds: NotRequired[dict[Name, Annotated[float, Field(ge=0, allow_inf_nan=False)]]]


class ListedCase(TypedDict):
    """A training case of a ``dataset.json`` that lists its files; paths may be relative to its folder."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    images: Annotated[list[Name], Field(min_length=1)]
    label: Name


class ListedDataset(Dataset):
    """``dataset.json`` of a raw dataset, which may list the files of its training cases under ``dataset``."""

    dataset: NotRequired[dict[Name, ListedCase]]


# Trained models and results of trainings


Sections = dict[str, dict[str, Any]]
"""Settings by method, as in ``plans["nnunet_dg"]``: ``{method: {setting: value}}``."""


class TrainedPlans(Plans):
    """``plans.json`` of a trained model."""

    image_reader_writer: Name
    transpose_forward: list[int]
    transpose_backward: list[int]


class PlannedConfiguration(TypedDict):
    """One configuration of the plans, with inherited values."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    preprocessor_name: Name
    patch_size: Annotated[list[int], Field(min_length=2, max_length=3)]
    spacing: list[float]
    normalization_schemes: Annotated[list[Name], Field(min_length=1)]
    use_mask_for_norm: list[bool]
    resampling_fn_data: Name
    resampling_fn_data_kwargs: dict[str, Any]
    resampling_fn_probabilities: Name
    resampling_fn_probabilities_kwargs: dict[str, Any]


class TrainedWith(TypedDict):
    """``init_args`` of a checkpoint."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    configuration: Name


class Checkpoint(TypedDict):
    """The part of nnU-Net's checkpoint that prediction needs."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    trainer_name: Name
    init_args: TrainedWith
    network_weights: Annotated[dict[str, Any], Field(min_length=1)]
    inference_allowed_mirroring_axes: NotRequired[tuple[int, ...] | list[int] | None]


class TrainedWithPlans(TrainedWith):
    """``init_args`` of a checkpoint, including the plans."""

    plans: dict[str, Any]


class ParameterGroup(TypedDict):
    """A parameter group in the state of an optimizer."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    params: list[int]


class OptimizerState(TypedDict):
    """The state of a PyTorch optimizer."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    state: dict[int, Any]
    param_groups: Annotated[list[ParameterGroup], Field(min_length=1)]


class WholeCheckpoint(Checkpoint):
    """The part of nnU-Net's checkpoint that an export copies or changes."""

    init_args: TrainedWithPlans  # type: ignore[misc]
    optimizer_state: OptimizerState
    logging: dict[str, Any]


class StressMetrics(TypedDict):
    """Metrics of one label in the record of `nnunet-dg stress`."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    dice: Overlap
    nsd: NotRequired[Overlap]
    hd95_mm: NotRequired[Distance]
    assd_mm: NotRequired[Distance]


class StressMeasurement(TypedDict):
    """Identifies one measurement; see `nnunet_dg.robustness.stress_record.Measurement`."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)  # type: ignore[misc]
    kind: Name
    strength: float
    case: Name
    files: str
    draw: int


class StressEntry(TypedDict):
    """A line of the record of `nnunet-dg stress`: one measurement, and its scores by label."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    measurement: StressMeasurement
    scores: Annotated[dict[Name, StressMetrics], Field(min_length=1)]
    settings: NotRequired[Name]


class StressSettings(TypedDict):
    """The first line of the record of `nnunet-dg stress`: the settings that its measurements share."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    checkpoints: Annotated[list[Name], Field(min_length=1)]
    seed: int
    mirroring: bool
    versions: dict[str, str]


class DemoArchitecture(TypedDict):
    """``architecture`` of a configuration."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    arch_kwargs: dict[str, Any]


class DemoConfiguration(TypedDict):
    """The configuration that the demo shrinks."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    architecture: DemoArchitecture


class DemoPlans(Plans):
    """nnU-Net's plans of the demo's dataset."""

    configurations: dict[str, DemoConfiguration]  # type: ignore[misc]


class ModelPlans(TypedDict):
    """``plans.json`` of a trained model that is used as an extractor."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    configurations: Annotated[dict[str, dict[str, Any]], Field(min_length=1)]
