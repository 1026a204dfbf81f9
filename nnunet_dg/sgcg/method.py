"""SgCG as a method: its settings and its training module."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from nnunet_dg.method import Method, Paper, Student, flag, number
from nnunet_dg.sgcg.training import SgCGTraining


@dataclass(frozen=True)
class SgCG(Method):
    """SgCG: class-distribution contrast on amplitude-mixed images. The network is the planned one.

    Semantic-Guided Contrastive Generalization for Medical Image Segmentation, submission to ICLR 2025: L = L_ram +
    lambda L_feat (eq. 13) in place of nnU-Net's loss. L_ram (Z. Zhou, L. Qi, Y. Shi, Generalizable Medical Image
    Segmentation via Random Amplitude Mixup and Domain-Specific Image Restoration, ECCV 2022,
    https://arxiv.org/abs/2208.03901) is the segmentation loss on the image and on its amplitude-mixed twin, their
    consistency, and the restoration of the image from the twin. L_feat is the contrast of the penultimate features of
    both. ``domains.json`` says which case is from which domain. With it, batches are balanced over the domains; without
    it, any two samples are mixed. The defaults are the method as published, where the paper says.

    The paper starts from a trained network. Here the class statistics are collected in epoch `start_epoch`, and the
    contrast counts from the next epoch on; before, it is not computed. Voxels outside the mask of masked images and
    zero padding belong to no class.

    Attributes:
        contrast: lambda (eq. 13), the weight of the contrastive loss; 0 leaves it out.
        temperature: tau of the contrastive loss, positive.
        voxels_per_class: Maximum number of randomly chosen voxels per class and step, in statistics and contrastive
            loss. More than four classes share the voxels of four.
        start_epoch: The epoch that collects the class statistics; the contrastive loss counts from the next one. null:
            a fifth of the training, or 0 with ``-pretrained_weights``, since the method starts from a trained network.
        memory: Training steps that the class statistics remember, see `ClassStatistics`; null: all (as published).
        max_count: See `ClassStatistics`; null: no limit.
        amplitude_mixup: Train on amplitude-mixed images as well (RAM-DSIR). Without it, the contrastive loss is added
            to nnU-Net's own, at little more than nnU-Net's cost.
        half_width: Of the window whose amplitudes are mixed, a fraction of the patch's shortest side in [0, 0.5].
        consistency: Weight of the symmetric KL divergence between the two predictions; 0 leaves it out.
        restoration: Weight, per domain, of restoring the original image from the mixed one's features; 0 leaves it out.
            The term is the mean over the batch, times this weight and the number of domains in training.
        balanced_batches: With ``domains.json``, draw the samples of a batch from as many domains as possible, equally
            often. nnU-Net's oversampling of foreground is not changed.

    Raises:
        SettingsError: A value that is not accepted, by name.
    """

    key: ClassVar[str] = "sgcg"
    slot: ClassVar[str] = "auxiliary task"
    paper: ClassVar[Paper] = Paper(
        "Semantic-Guided Contrastive Generalization for Medical Image Segmentation",
        "Anonymous",
        "Submission to ICLR 2025",
        2024,
        "https://openreview.net/search?term=Semantic-Guided+Contrastive+Generalization",
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

    def balances_domains(self) -> bool:
        """Whether training batches are balanced over the domains."""
        return self.balanced_batches

    def training_module(self, student: Student) -> SgCGTraining:
        """Contrast and restoration."""
        return SgCGTraining(self, student)
