"""nnU-Net's training transforms, with the augmentation of a method if it has one, and with padding that stays zero."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.nnunet_masking import MaskImageTransform
from batchgeneratorsv2.transforms.utils.remove_label import RemoveLabelTansform
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_dg.errors import HostError
from nnunet_dg.outside import Outside
from nnunet_dg.training.padding import keep_padding

if TYPE_CHECKING:
    from nnunet_dg.training.trainer import MethodsTrainer

HOST_SIGNATURE = inspect.signature(nnUNetTrainer.get_training_transforms)  # with which nnU-Net calls all trainers
KEPT = (MirrorTransform, MaskImageTransform, RemoveLabelTansform)  # the first of them ends the augmentation


def replace_augmentation(planned: BasicTransform, augmentation: Sequence[BasicTransform]) -> ComposeTransforms:
    """Training transforms with another augmentation.

    Mirroring, masking, and the handling of labels, cascades and deep supervision are kept.

    Args:
        planned: Training transforms of nnU-Net.
        augmentation: Transforms that replace those up to mirroring, including the crop to the patch.

    Raises:
        HostError: The transforms of the trainer are not those of nnU-Net.
    """
    transforms = list(planned.transforms) if isinstance(planned, ComposeTransforms) else []
    kept = next((i for i, transform in enumerate(transforms) if isinstance(transform, KEPT)), None)
    if kept is None:
        raise HostError(
            "The trainer's augmentation cannot be replaced: its training transforms have no step that nnU-Net's have "
            "after the augmentation (MirrorTransform, MaskImageTransform or RemoveLabelTansform). Use a trainer with "
            "nnU-Net's get_training_transforms."
        )
    return ComposeTransforms([*augmentation, *transforms[kept:]])


@contextmanager
def own_training_transforms(trainer: MethodsTrainer) -> Iterator[None]:
    """Inside this context, the trainer's `get_training_transforms` is adapted to its methods and normalization.

    The augmentation of a method replaces nnU-Net's, see `nnunet_dg.method.Method.augmentation`. Padding stays exactly
    zero, as it is at inference, if zero is the mean of the images.

    Args:
        trainer: Trainer whose data loaders are created in the context.
    """
    planned = trainer.get_training_transforms  # nnU-Net's method is static, so it knows neither methods nor the plans
    keeps_padding = all(Outside.of(trainer.configuration_manager).centered)

    def transforms(*args: Any, **kwargs: Any) -> BasicTransform:
        result = planned(*args, **kwargs)
        given = HOST_SIGNATURE.bind(*args, **kwargs).arguments
        patch_size, in_plane_only = tuple(map(int, given["patch_size"])), bool(given["do_dummy_2d_data_aug"])
        for method in trainer.methods:
            if augmentation := method.augmentation(patch_size, in_plane_only):
                result = replace_augmentation(result, augmentation)
        return keep_padding(result) if keeps_padding else result

    trainer.__dict__["get_training_transforms"] = transforms
    try:
        yield
    finally:
        del trainer.__dict__["get_training_transforms"]
