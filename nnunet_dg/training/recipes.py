"""The papers' own recipes: optimizer, schedule, sampling, augmentation. Base classes in front of `MethodsTrainer`."""

from __future__ import annotations

from typing import Any

import torch
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.remove_label import RemoveLabelTansform
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_dg.errors import VersionError
from nnunet_dg.outside import Outside
from nnunet_dg.training.checkpoint import INSTEAD
from nnunet_dg.training.paper_augmentation import paper_augmentation
from nnunet_dg.training.schedules import CosinePerStep, PolynomialDecay
from nnunet_dg.training.student import planned_network


class DropGenPaperRecipe(nnUNetTrainer):
    """AdamW 2e-4, weight decay 1e-4, cosine decay to 0 in every step, and the paper's sampling and augmentation.

    Patches are drawn uniformly, without oversampling of the foreground. There is neither deep supervision nor gradient
    clipping. The loss is nnU-Net's Dice and cross entropy.

    S. Diaz, P. Golland, E. Adalsteinsson, N. Dey, Why Invariance is Not Enough for Biomedical Domain Generalization and
    How to Fix It, 2026, https://arxiv.org/abs/2604.02564, appendix C.
    """

    max_gradient_norm: float | None = None  # of MethodsTrainer

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008, nnU-Net's signature
    ) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.initial_lr = 2e-4
        self.weight_decay = 1e-4
        self.enable_deep_supervision = False
        self.oversample_foreground_percent = 0.0

    def configure_optimizers(self) -> Any:
        """AdamW, and a cosine schedule that advances in every step."""
        optimizer = torch.optim.AdamW(self.network.parameters(), lr=self.initial_lr, weight_decay=self.weight_decay)
        schedule = CosinePerStep(optimizer, self.initial_lr, self.num_iterations_per_epoch, self.num_epochs)
        return optimizer, schedule

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """A training step, then a step of the schedule."""
        result = super().train_step(batch)
        self.lr_scheduler.advance()
        return result

    @staticmethod
    def get_training_transforms(
        patch_size: Any,
        rotation_for_DA: Any,  # noqa: N803
        deep_supervision_scales: Any,
        mirror_axes: Any,
        do_dummy_2d_data_aug: bool,
        use_mask_for_norm: Any = None,
        **kwargs: Any,
    ) -> Any:
        """The paper's augmentation, then nnU-Net's handling of labels, cascades and deep supervision.

        nnU-Net's masking is left out, since its zeros would be gray in an image scaled to [0, 1]. `keep_padding` makes
        voxels outside the mask black, as they are at inference.
        """
        planned = nnUNetTrainer.get_training_transforms(
            patch_size, rotation_for_DA, deep_supervision_scales, mirror_axes, do_dummy_2d_data_aug,
            use_mask_for_norm=use_mask_for_norm, **kwargs,
        ).transforms  # fmt: skip
        labels = next(i for i, t in enumerate(planned) if isinstance(t, RemoveLabelTansform))
        # the normalization is unknown here; if zero is not the mean, as in color images, it is already black
        outside = Outside.zeros(use_mask_for_norm) if use_mask_for_norm is not None else None
        augmentation = paper_augmentation(tuple(patch_size), mirror_axes, do_dummy_2d_data_aug, outside)
        return ComposeTransforms([*augmentation, *planned[labels:]])


class FewShotRecipe(nnUNetTrainer):
    """40 000 steps of the DropGen paper's experiments with five training cases, as 160 epochs of 250."""

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008, nnU-Net's signature
    ) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = 160


class PaperEpochs(nnUNetTrainer):
    """Base of recipes with a number of epochs of their own. An epoch has 250 steps, as in nnU-Net.

    Attributes:
        paper_epochs: Number of epochs.
    """

    paper_epochs: int

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008, nnU-Net's signature
    ) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = self.paper_epochs

    def on_train_start(self) -> None:
        """As nnU-Net, which would end a training beyond the last epoch at once and call its checkpoint final.

        Raises:
            VersionError: The checkpoint is from a longer training, such as one by an earlier version of this package.
        """
        if self.current_epoch > self.num_epochs:
            raise VersionError(
                f"This checkpoint has {self.current_epoch} epochs, but {type(self).__name__} trains {self.num_epochs}. "
                f"Continue with the version of nnunet-dg that wrote it, {INSTEAD}. nnUNetv2_predict accepts it."
            )
        super().on_train_start()


class TinyMIGPaperRecipe(PaperEpochs):
    """AdamW 1e-4, polynomial decay with exponent 0.9, 200 epochs (those of prostate).

    C. Liu, H. Xu, Y. Cao, X. Su, Z. Qu, T. Li, S. An, H. Zhu, TinyMIG: Transferring Generalization from Vision
    Foundation Models to Single-Domain Medical Imaging, ICML 2025, https://proceedings.mlr.press/v267, appendix B.2.
    """

    paper_epochs = 200

    def configure_optimizers(self) -> Any:
        """AdamW and the polynomial decay."""
        self.initial_lr = 1e-4
        self.weight_decay = 1e-2  # PyTorch's default for AdamW; the paper gives no value
        optimizer = torch.optim.AdamW(self.network.parameters(), lr=self.initial_lr, weight_decay=self.weight_decay)
        return optimizer, PolyLRScheduler(optimizer, self.initial_lr, self.num_epochs, exponent=0.9)


class SgCGPaperRecipe(PaperEpochs):
    """Adam 1e-3, half of it for the encoder, polynomial decay with exponent 0.9, 400 epochs (those of fundus).

    Semantic-Guided Contrastive Generalization for Medical Image Segmentation, submission to ICLR 2025,
    https://openreview.net/search?term=Semantic-Guided+Contrastive+Generalization, section 4.1. The encoder's rate and
    the exponent are those of Z. Zhou, L. Qi, Y. Shi, Generalizable Medical Image Segmentation via Random Amplitude
    Mixup and Domain-Specific Image Restoration, ECCV 2022, https://arxiv.org/abs/2208.03901, whose settings it keeps.
    """

    paper_epochs = 400

    def configure_optimizers(self) -> Any:
        """Adam with two parameter groups, and the polynomial decay."""
        self.initial_lr, self.weight_decay = 1e-3, 0.0
        encoder = list(planned_network(self.network).encoder.parameters())
        ids = {id(parameter) for parameter in encoder}
        others = [parameter for parameter in self.network.parameters() if id(parameter) not in ids]
        groups = [{"params": encoder, "rate": 0.5}, {"params": others, "rate": 1.0}]
        optimizer = torch.optim.Adam(groups, lr=self.initial_lr)
        return optimizer, PolynomialDecay(optimizer, self.initial_lr, self.num_epochs, exponent=0.9)

    def on_train_epoch_start(self) -> None:
        """As nnU-Net, which logs the rate of the first group only, that of the encoder."""
        super().on_train_epoch_start()
        encoder, others = (round(group["lr"], 7) for group in self.optimizer.param_groups[:2])
        self.print_to_log_file(f"Learning rates: {encoder} of the encoder, {others} of all other parameters")
