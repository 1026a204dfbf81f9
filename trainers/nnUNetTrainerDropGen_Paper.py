"""DropGen with the paper's own recipe around it (arXiv 2604.02564, appendix C), for those who want it whole."""

import torch
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.remove_label import RemoveLabelTansform
from nnunet_dg.trainers.nnUNetTrainerDropGen import nnUNetTrainerDropGen

from nnunet_dg.dropgen import DropGenSettings
from nnunet_dg.outside import Outside
from nnunet_dg.training.paper_augmentation import paper_augmentation
from nnunet_dg.training.schedules import CosinePerStep


class nnUNetTrainerDropGen_Paper(nnUNetTrainerDropGen):
    """AdamW 2e-4, weight decay 1e-4, cosine per step to 0, the paper's augmentation, images min-maxed per patch.

    Dice and cross entropy are nnU-Net's, as are its epochs (250 000 steps in all, the paper's number). The paper
    min-maxes whole volumes at inference, this trainer each window, so that training and inference agree. Padding and
    what is outside a mask are black in both.
    """

    dropgen = DropGenSettings(image_scaling="minmax")

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),
    ):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.initial_lr = 2e-4
        self.weight_decay = 1e-4

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.network.parameters(), lr=self.initial_lr, weight_decay=self.weight_decay)
        schedule = CosinePerStep(optimizer, self.initial_lr, self.num_iterations_per_epoch, self.num_epochs)
        return optimizer, schedule

    def train_step(self, batch):
        result = super().train_step(batch)
        self.lr_scheduler.advance()
        return result

    @staticmethod
    def get_training_transforms(
        patch_size, rotation_for_DA, deep_supervision_scales, mirror_axes, do_dummy_2d_data_aug,
        use_mask_for_norm=None, **kwargs,
    ):  # fmt: skip
        planned = nnUNetTrainerDropGen.get_training_transforms(
            patch_size, rotation_for_DA, deep_supervision_scales, mirror_axes, do_dummy_2d_data_aug,
            use_mask_for_norm=use_mask_for_norm, **kwargs,
        ).transforms  # fmt: skip
        # what nnU-Net does after augmenting stays: label handling, the cascade's channels, deep supervision. Not its
        # masking, which is gray in a min-maxed image: `keep_padding` makes the outside black, as it is at inference
        labels = next(i for i, t in enumerate(planned) if isinstance(t, RemoveLabelTansform))
        # the normalization is not known here; where zero is not the mean, it is black already, as in colors
        outside = Outside.zeros(use_mask_for_norm) if use_mask_for_norm is not None else None
        augmentation = paper_augmentation(tuple(patch_size), mirror_axes, do_dummy_2d_data_aug, outside)
        return ComposeTransforms([*augmentation, *planned[labels:]])
