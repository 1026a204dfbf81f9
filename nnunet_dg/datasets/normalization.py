"""Normalization that fits both CT and MR, and a description of what nnU-Net's CT normalization does to other images."""

from __future__ import annotations

from typing import Any

import numpy as np
from nnunetv2.preprocessing.normalization.default_normalization_schemes import (
    CTNormalization,
    RescaleTo01Normalization,
    ZScoreNormalization,
)

HOUNSFIELD = (-1024, 1024)  # the range that the DropGen paper clips CT to (arXiv 2604.02564, appendix C)
BELOW_MR = -100  # Hounsfield units: fat and air in CT are darker; MR magnitude images have no such values
MIDDLE = 1e-6  # in place of exact zeros, which mark padding, see `nnunet_dg.outside`
SHARE = 0.01  # fraction of voxels: air and fat exceed it in CT, ringing of resampled MR stays below it


class AnyModalityNormalization(ZScoreNormalization):
    """Z-score of each image, after clipping CT to [-1024, 1024], so that plans made on CT fit MR, and vice versa.

    Plans name one scheme per channel, but predictions may be made on images of either modality. So each image decides:
    if at least 1 % of its voxels are below -100, it is treated as CT in Hounsfield units and clipped first. Every other
    image gets exactly nnU-Net's ``ZScoreNormalization``. Both respect the mask if the plans use one.

    The range is that of the DropGen paper, appendix C: Diaz et al., "Why Invariance is Not Enough for Biomedical Domain
    Generalization and How to Fix It", 2026, https://arxiv.org/abs/2604.02564. If the plans name this class,
    preprocessing and prediction need this package.
    """

    def run(self, image: np.ndarray, seg: np.ndarray | None = None) -> np.ndarray:
        """Normalize ``(*spatial)`` of any dtype to float32 of the same shape. ``seg`` is negative outside the mask."""
        image = image.astype(self.target_dtype, copy=False)
        if _is_ct(image):
            image = np.clip(image, *HOUNSFIELD)
        result: np.ndarray = super().run(image, seg)
        return result


class UnitRangeNormalization(RescaleTo01Normalization):
    """Whole images scaled to [0, 1] as in the DropGen paper: CT from [-1024, 1024], others from their own range.

    Each image decides whether it is CT, as in `AnyModalityNormalization`. If the plans name this class, preprocessing
    and prediction need this package.
    """

    def run(self, image: np.ndarray, seg: np.ndarray | None = None) -> np.ndarray:
        """Scale ``(*spatial)`` of any dtype to float32 of the same shape. Constant images become zero."""
        image = image.astype(self.target_dtype)  # a copy, since nnU-Net's class works in place
        if _is_ct(image):
            low, high = HOUNSFIELD
            clipped: np.ndarray = (np.clip(image, low, high) - low) / (high - low)
            return clipped
        result: np.ndarray = super().run(image, seg)
        return result


class SymmetricRangeNormalization(UnitRangeNormalization):
    """Whole images scaled to [-1, 1], as in SgCG's experiments; CT from [-1024, 1024], others from their own range.

    Semantic-Guided Contrastive Generalization for Medical Image Segmentation, submission to ICLR 2025,
    https://openreview.net/search?term=Semantic-Guided+Contrastive+Generalization. If the plans name this class,
    preprocessing and prediction need this package.
    """

    def run(self, image: np.ndarray, seg: np.ndarray | None = None) -> np.ndarray:
        """Scale ``(*spatial)`` of any dtype to float32 of the same shape. Constant images become -1.

        Voxels at the middle of the range become `MIDDLE` instead of 0, so that exact zeros are nnU-Net's padding only.
        """
        scaled: np.ndarray = 2 * super().run(image, seg) - 1
        scaled[scaled == 0] = MIDDLE
        return scaled


def _is_ct(image: np.ndarray) -> bool:
    return bool(np.count_nonzero(image < BELOW_MR) >= SHARE * image.size)


def any_modality(schemes: list[str]) -> list[str]:
    """The names of the schemes, with `AnyModalityNormalization` in place of nnU-Net's CT and z-score normalization."""
    replaced = {CTNormalization.__name__, ZScoreNormalization.__name__}
    return [AnyModalityNormalization.__name__ if scheme in replaced else scheme for scheme in schemes]


def fitted_to_ct(plans: dict[str, Any], configuration_manager: Any, dataset_json: dict[str, Any]) -> str:
    """A sentence on what ``CTNormalization`` does to images of other modalities; empty if no channel uses it."""
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
        f"{'; '.join(_clipped(number, names, intensities) for number in channels)}. Images of other modalities "
        f"saturate: in one MR image, 81.5 % of the voxels were at the upper bound. Predictions on CT are not affected. "
        f"To predict other modalities too, plan with nnUNetPlannerAnyModality or, for DropGen, "
        f"nnUNetPlannerDropGenAnyModality."
    )


def _clipped(number: int, names: dict[str, Any], intensities: dict[str, Any]) -> str:
    properties = intensities.get(str(number), {})
    low, high = properties.get("percentile_00_5"), properties.get("percentile_99_5")
    bounds = f"[{low:g}, {high:g}]" if isinstance(low, (int, float)) and isinstance(high, (int, float)) else "a range"
    return f"CTNormalization clips channel {names.get(str(number), number)} to {bounds} of the training images"
