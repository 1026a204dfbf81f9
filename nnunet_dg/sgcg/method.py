"""SgCG as a method: its settings and its training module.

Semantic-Guided Contrastive Generalization for Medical Image Segmentation, submission to ICLR 2025,
https://openreview.net/search?term=Semantic-Guided+Contrastive+Generalization.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar

from nnunet_dg.errors import SettingsError
from nnunet_dg.method import Method, Paper, Student, flag, number
from nnunet_dg.sgcg.training import SgCGTraining

OF_CONTRAST = ("temperature", "voxels_per_class", "start_epoch", "memory", "max_count")  # used by the contrastive loss
OF_MIXUP = ("half_width", "consistency", "restoration")  # used with amplitude-mixed images


@dataclass(frozen=True)
class SgCG(Method):
    """SgCG: class-distribution contrast on amplitude-mixed images. The network is the planned one.

    Semantic-Guided Contrastive Generalization for Medical Image Segmentation, submission to ICLR 2025,
    https://openreview.net/search?term=Semantic-Guided+Contrastive+Generalization.

    The loss is L_ram + lambda L_feat (eq. 13), in place of nnU-Net's. L_ram (Z. Zhou, L. Qi, Y. Shi, Generalizable
    Medical Image Segmentation via Random Amplitude Mixup and Domain-Specific Image Restoration, ECCV 2022,
    https://arxiv.org/abs/2208.03901) consists of the segmentation losses of the image and of its amplitude-mixed twin,
    the consistency of both predictions, and the restoration of the image from the twin. L_feat is the contrastive loss
    of the penultimate features of both. ``domains.json`` assigns cases to domains. With it, batches are balanced over
    the domains; without it, any two samples are mixed. The defaults follow the paper where it gives values.

    The paper starts from a trained network. Here the class statistics are collected in epoch `start_epoch`, and the
    contrastive loss is computed from the next epoch on. Zero padding and voxels outside the mask of masked images are
    excluded from all classes.

    Attributes:
        contrast: Weight of the contrastive loss, lambda in eq. 13; 0 disables the loss.
        temperature: Temperature of the contrastive loss, tau; positive.
        voxels_per_class: Maximum number of randomly chosen voxels per class and step that enter the statistics and the
            contrastive loss. More than four classes share the voxels of four.
        start_epoch: Epoch in which the class statistics are collected; the contrastive loss is used from the next epoch
            on. None: after a fifth of the training, or 0 with ``-pretrained_weights``, since the method starts from a
            trained network.
        memory: Number of training steps after which a feature has lost 1 - 1/e of its weight in the class statistics;
            None: all features keep their weight (as published).
        max_count: Upper limit of the number of features that a class's statistics count, so that older features lose
            weight; None: no limit.
        amplitude_mixup: Whether the network is also trained on amplitude-mixed images (RAM-DSIR). Without them, the
            contrastive loss is added to nnU-Net's own loss, at little more than nnU-Net's cost.
        half_width: Half-width of the frequency window in which amplitudes are mixed, as a fraction of the patch's
            shortest side, in [0, 0.5].
        consistency: Weight of the symmetric KL divergence between the two predictions; 0 disables the term.
        restoration: Weight, per domain, of restoring the original image from the features of the mixed image; 0
            disables the term. The mean over the batch is multiplied by this weight and by the number of training
            domains.
        balanced_batches: Whether, with ``domains.json``, the samples of a batch come from as many domains as possible,
            equally often. nnU-Net's foreground oversampling is not changed.

    Raises:
        SettingsError: A setting has a value that is not accepted. The message names the setting.
    """

    key: ClassVar[str] = "sgcg"
    slot: ClassVar[str] = "auxiliary task"
    paper: ClassVar[Paper] = Paper(
        "Semantic-Guided Contrastive Generalization for Medical Image Segmentation",
        "Anonymous",
        "Submission to ICLR 2025",
        2024,
        "https://openreview.net/search?term=Semantic-Guided+Contrastive+Generalization",
        "misc",
    )

    contrast: float = number(0.1, 0)
    temperature: float = number(0.1, 1e-3, 1e3)
    voxels_per_class: int = number(4096, 2, 10**9, whole=True)
    start_epoch: int | None = number(None, 0, 10**9, whole=True, null=True)
    memory: int | None = number(250, 1, 10**9, whole=True, null=True)
    max_count: float | None = number(None, 2, 1e30, null=True)
    amplitude_mixup: bool = flag(True)
    half_width: float = number(0.1, 0, 0.5)
    consistency: float = number(0.5, 0)
    restoration: float = number(0.1, 0)
    balanced_batches: bool = flag(True)

    def check(self) -> None:
        """Refuse settings of a disabled term. None is accepted: the paper's recipe has `memory` None."""
        default = {field.name: field.default for field in fields(self)}
        disabled = {} if self.contrast else dict.fromkeys(OF_CONTRAST, "contrast 0")
        if not self.amplitude_mixup:
            disabled |= dict.fromkeys(OF_MIXUP, "amplitude_mixup false")
        for name, reason in disabled.items():
            if getattr(self, name) not in (default[name], None):
                raise SettingsError(
                    f"{name} {getattr(self, name)!r} has no effect with {reason}. Leave {name} unset, or change the "
                    f"other setting."
                )

    def balances_domains(self) -> bool:
        """Whether training batches are balanced over the domains."""
        return self.balanced_batches

    def training_module(self, student: Student) -> SgCGTraining:
        """The training module, with the class statistics and the restoration decoder."""
        return SgCGTraining(self, student)
