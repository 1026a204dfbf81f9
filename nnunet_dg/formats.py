"""The shapes of the JSON files that are not ours, for `nnunet_dg.files.read_json`.

Keys that are not named here are kept. The types say what this package relies on, not all that nnU-Net writes.
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


# Trained models, for `nnunet-dg stress`, `stability reliance` and `export`


class ListedCase(TypedDict):
    """One case of a ``dataset.json`` that lists its files; paths may be relative to its folder."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    images: Annotated[list[Name], Field(min_length=1)]
    label: Name


class RawDataset(Dataset):
    """``dataset.json`` of a raw dataset, which may list where its training cases are."""

    dataset: NotRequired[dict[Name, ListedCase]]


class TrainedPlans(Plans):
    """``plans.json`` of a trained model."""

    image_reader_writer: Name
    transpose_forward: list[int]
    transpose_backward: list[int]


class PlannedConfiguration(TypedDict):
    """One configuration of the plans, with what it inherits."""

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
    """What prediction needs of nnU-Net's checkpoint."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    trainer_name: Name
    init_args: TrainedWith
    network_weights: Annotated[dict[str, Any], Field(min_length=1)]
    inference_allowed_mirroring_axes: NotRequired[tuple[int, ...] | list[int] | None]


class TrainedWithPlans(TrainedWith):
    """``init_args`` of a checkpoint, with the plans, as nnU-Net writes them."""

    plans: dict[str, Any]


class ParameterGroup(TypedDict):
    """A parameter group in the state of an optimizer."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    params: list[int]


class OptimizerState(TypedDict):
    """The state of an optimizer of PyTorch's."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    state: dict[int, Any]
    param_groups: Annotated[list[ParameterGroup], Field(min_length=1)]


class WholeCheckpoint(Checkpoint):
    """All of nnU-Net's checkpoint that an export passes on or changes."""

    init_args: TrainedWithPlans  # type: ignore[misc]
    optimizer_state: OptimizerState
    logging: dict[str, Any]


def _between_zero_and_one(value: float) -> float:
    if not (math.isnan(value) or 0 <= value <= 1):
        raise ValueError("a number from 0 to 1, or NaN where there is nothing to find")
    return value


def _at_least_zero(value: float) -> float:
    if not (math.isnan(value) or 0 <= value < math.inf):
        raise ValueError("a number of 0 or more, or NaN where there is nothing to find")
    return value


_Fraction = Annotated[float, AfterValidator(_between_zero_and_one)]
_Amount = Annotated[float, AfterValidator(_at_least_zero)]


class StressMetrics(TypedDict):
    """Metrics of one label in the record of `nnunet-dg stress`."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    dice: _Fraction
    nsd: NotRequired[_Fraction]
    hd95_mm: NotRequired[_Amount]
    assd_mm: NotRequired[_Amount]


class StressMeasurement(TypedDict):
    """What was measured, see `nnunet_dg.nnunet.stress_record.Measurement`."""

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
    """The first line of the record of `nnunet-dg stress`: what its measurements have in common."""

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
