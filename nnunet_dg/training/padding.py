"""Transforms that keep padding exactly zero during nnU-Net's augmentation, as it is at inference.

nnU-Net pads images smaller than the patch with zeros, and its spatial augmentation fills voxels from beyond the patch
with zeros. In training, the noise, contrast and gamma transforms then change these zeros, so that `nnunet_dg.outside`
could no longer tell padding from the image. Two transforms mark padding in the segmentation before the augmentation,
and set it to zero in the image afterwards.
"""

from __future__ import annotations

from typing import Any

from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.remove_label import RemoveLabelTansform

UNLABELED = -1  # nnU-Net's value in the segmentation for padding and voxels outside the nonzero mask
PADDING = -2


def keep_padding(planned: BasicTransform) -> BasicTransform:
    """nnU-Net's training transforms, with padding marked at the start and set to zero at the end of the augmentation.

    The augmentation ends at the transform that removes `UNLABELED` from the segmentation. Without such a transform,
    ``planned`` is returned unchanged. Voxels that a `SpatialTransform` samples from beyond the patch count as padding.
    """
    transforms = list(planned.transforms) if isinstance(planned, ComposeTransforms) else []
    ends = [i for i, t in enumerate(transforms) if isinstance(t, RemoveLabelTansform) and t.label_value == UNLABELED]
    if not ends:
        return planned
    for transform in transforms[: ends[0]]:
        if isinstance(transform, SpatialTransform) and getattr(transform, "padding_value_seg", None) == UNLABELED:
            transform.padding_value_seg = PADDING
    return ComposeTransforms([MarkPadding(), *transforms[: ends[0]], ZeroPadding(), *transforms[ends[0] :]])


class MarkPadding(BasicTransform):
    """Set the segmentation to `PADDING` where it is `UNLABELED` and the image is exactly zero in all channels.

    With ``use_mask_for_norm``, this includes voxels outside the mask, which nnU-Net itself sets to zero.
    """

    def apply(self, data_dict: dict[str, Any], **params: Any) -> dict[str, Any]:
        segmentation = data_dict["segmentation"]
        outside = segmentation[0] == UNLABELED
        if outside.any():
            for channel in data_dict["image"]:
                outside &= channel == 0
            segmentation = segmentation.clone()  # the original may be a read-only view of the preprocessed file
            segmentation[0][outside] = PADDING
            data_dict["segmentation"] = segmentation
        return data_dict


class ZeroPadding(BasicTransform):
    """Set the image to zero where the first channel of the segmentation is `PADDING`, and restore `UNLABELED` there."""

    def apply(self, data_dict: dict[str, Any], **params: Any) -> dict[str, Any]:
        segmentation = data_dict["segmentation"]
        padding = segmentation == PADDING
        if padding.any():
            data_dict["image"] = data_dict["image"].masked_fill(padding[0], 0)
            data_dict["segmentation"] = segmentation.masked_fill(padding, UNLABELED)
        return data_dict
