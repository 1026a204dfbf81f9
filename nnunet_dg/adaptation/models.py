"""Checking that two trained models see the same data."""

from __future__ import annotations

from typing import Any

from nnunet_dg.errors import DataError
from nnunet_dg.robustness.trained_model import TrainedModel

SHARED_PLANS = ("transpose_forward", "transpose_backward", "image_reader_writer")
SHARED_CONFIGURATION = (
    "preprocessor_name", "spacing", "normalization_schemes", "use_mask_for_norm", "resampling_fn_data",
    "resampling_fn_data_kwargs", "resampling_fn_probabilities", "resampling_fn_probabilities_kwargs",
)  # fmt: skip
SHARED_DATASET = ("channel_names", "labels", "regions_class_order", "file_ending")


def check_same_data(stable: TrainedModel, unstable: TrainedModel) -> None:
    """Refuse two models whose preprocessed images or outputs differ: their logits cannot be combined.

    Their networks and patch sizes may differ.

    Raises:
        DataError: Plans or labels differ; the message names the entry.
    """
    for part, names in (("plans", SHARED_PLANS), ("configuration", SHARED_CONFIGURATION), ("dataset", SHARED_DATASET)):
        for name in names:
            a, b = (_entries(model)[part].get(name) for model in (stable, unstable))
            if a != b:
                raise DataError(
                    f"The stable and the unstable model need the same preprocessing and labels, but {name} is {a} in "
                    f"{stable.folder} and {b} in {unstable.folder}. Train both with plans that share their data."
                )
    if "CTNormalization" in _entries(stable)["configuration"]["normalization_schemes"]:
        name = "foreground_intensity_properties_per_channel"
        if _entries(stable)["plans"].get(name) != _entries(unstable)["plans"].get(name):
            raise DataError(
                f"The stable and the unstable model need the same {name} for CTNormalization, but {stable.folder} and "
                f"{unstable.folder} have different ones. Train both with the same plans."
            )


def _entries(model: TrainedModel) -> dict[str, Any]:
    predictor = model.predictor
    return {
        "plans": predictor.plans_manager.plans,
        "configuration": predictor.configuration_manager.configuration,
        "dataset": predictor.dataset_json,
    }
