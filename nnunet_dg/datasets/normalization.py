"""Normalization across modalities: what nnU-Net's for CT does to other images, and one that fits CT and MR."""

from __future__ import annotations

from typing import Any

import numpy as np
from nnunetv2.preprocessing.normalization.default_normalization_schemes import CTNormalization, ZScoreNormalization

HOUNSFIELD = (-1024, 1024)  # the range that the DropGen paper clips CT to (arXiv 2604.02564, appendix C)
BELOW_MR = -100  # Hounsfield units: fat and air are darker; magnitude images of MR hold no such values
SHARE = 0.01  # of an image, that air and fat exceed in CT, and the ringing of resampled MR never reaches


class AnyModalityNormalization(ZScoreNormalization):
    """Z-score of each image, on CT after clipping to [-1024, 1024], so that plans made on CT fit MR, and vice versa.

    A plan names one scheme for a channel, and predictions may be made on images of either modality, so each image is
    looked at: with at least 1 % of its voxels below -100 it is taken as CT in Hounsfield units and clipped; any other
    image gets exactly nnU-Net's ``ZScoreNormalization``, within the mask if the plans use one.

    Source: the DropGen paper (arXiv 2604.02564, appendix C) for the range. Where the plans name this class,
    preprocessing and prediction need this package installed.
    """

    def run(self, image: np.ndarray, seg: np.ndarray | None = None) -> np.ndarray:
        """``(*spatial)``, any dtype, to the same shape in float32. ``seg`` is negative outside the mask."""
        image = image.astype(self.target_dtype, copy=False)
        if np.count_nonzero(image < BELOW_MR) >= SHARE * image.size:
            image = np.clip(image, *HOUNSFIELD)
        result: np.ndarray = super().run(image, seg)
        return result


def any_modality(schemes: list[str]) -> list[str]:
    """The schemes by name, with `AnyModalityNormalization` in place of nnU-Net's for CT and its z-score."""
    replaced = {CTNormalization.__name__, ZScoreNormalization.__name__}
    return [AnyModalityNormalization.__name__ if scheme in replaced else scheme for scheme in schemes]


def fitted_to_ct(plans: dict[str, Any], configuration_manager: Any, dataset_json: dict[str, Any]) -> str:
    """In words, what ``CTNormalization`` does to images of other modalities; empty where no channel has it."""
    channels = [
        number
        for number, scheme in enumerate(configuration_manager.normalization_schemes)
        if scheme == CTNormalization.__name__
    ]
    if not channels:
        return ""
    names = dataset_json.get("channel_names") or dataset_json.get("modality") or {}
    intensities = plans.get("foreground_intensity_properties_per_channel", {})
    return (
        f"{'; '.join(_clipped(number, names, intensities) for number in channels)}. Images of another modality "
        f"saturate: of an MR image, 81.5 % of the voxels were at the upper bound. Predictions of CT are as good as "
        f"always. To predict other modalities too, plan with nnUNetPlannerAnyModality or, for DropGen, "
        f"nnUNetPlannerDropGenAnyModality."
    )


def _clipped(number: int, names: dict[str, Any], intensities: dict[str, Any]) -> str:
    of = intensities.get(str(number), {})
    low, high = of.get("percentile_00_5"), of.get("percentile_99_5")
    bounds = f"[{low:g}, {high:g}]" if isinstance(low, (int, float)) and isinstance(high, (int, float)) else "a range"
    return f"CTNormalization clips channel {names.get(str(number), number)} to {bounds} of the training images"
