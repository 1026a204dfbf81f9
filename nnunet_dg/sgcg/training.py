"""The loss terms of SgCG in a training step.

Semantic-Guided Contrastive Generalization for Medical Image Segmentation, submission to ICLR 2025,
https://openreview.net/search?term=Semantic-Guided+Contrastive+Generalization.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from nnunet_dg.method import Batch, Step, Student, TrainingModule, full_resolution
from nnunet_dg.sgcg.class_contrast import ClassContrast
from nnunet_dg.sgcg.mixup import Partners, random_amplitude_mixup, random_ratio
from nnunet_dg.sgcg.restoration import RestorationDecoder, restoration_loss
from nnunet_dg.tensors import symmetric_kl, to_device

if TYPE_CHECKING:
    from nnunet_dg.sgcg.method import SgCG

FORM = "statistics from start_epoch on, restoration weighed per domain and upsampled last"


class SgCGTraining(TrainingModule):
    """Computes segmentation losses of the image and its amplitude-mixed twin, consistency, restoration and contrast.

    Args:
        settings: Settings, see `SgCG`.
        student: Network in training.
    """

    compiled_parts = ("contrast", "restoration")

    def __init__(self, settings: SgCG, student: Student) -> None:
        super().__init__()
        self.settings, self.student = settings, student
        self.penultimate = student.tap("penultimate")
        self.partners = Partners()
        domains = student.domain_names
        if settings.contrast:
            self.contrast = ClassContrast(
                student.num_classes, student.penultimate_width, settings.temperature, settings.voxels_per_class,
                settings.max_count, settings.memory,
            )  # fmt: skip
        if self.restores:
            self.bottleneck = student.tap(-1)
            self.restoration = RestorationDecoder(student.widths, student.strides, student.image_channels, len(domains))

    @property
    def restores(self) -> bool:
        """Whether the original image is restored from its twin."""
        return self.settings.amplitude_mixup and self.settings.restoration > 0

    @property
    def statistics_epoch(self) -> int:
        """The epoch in which the class statistics are collected."""
        if self.settings.start_epoch is not None:
            return self.settings.start_epoch
        return 0 if self.student.pretrained else self.student.num_epochs // 5

    def collects_statistics(self, epoch: int) -> bool:
        """Whether class statistics are collected in this epoch, without a contrastive loss."""
        return self.settings.contrast > 0 and epoch == self.statistics_epoch

    def weights(self, epoch: int) -> dict[str, float]:
        """Weights of the terms. That of the contrast is 0 until the statistics have been collected for an epoch."""
        settings = self.settings
        weights = {"segmentation": 1.0}
        if settings.amplitude_mixup:
            weights |= {"segmentation_mixed": 1.0, "consistency": settings.consistency}
        if self.restores:
            weights["restoration"] = settings.restoration * len(self.student.training_domains)
        if settings.contrast:
            weights["contrast"] = settings.contrast if epoch > self.statistics_epoch else 0.0
        return weights

    def losses(self, step: Step) -> dict[str, Tensor]:
        """The terms of eq. 13 by name."""
        terms = {"segmentation": step.segmentation(step.output)}
        features = [step.own.features(self.penultimate)]
        if self.settings.amplitude_mixup:
            terms |= self._mixed(step, features)
        if self.settings.contrast:
            terms |= self._contrast(step, features)
        return terms

    def _mixed(self, step: Step, features: list[Tensor]) -> dict[str, Tensor]:
        """The terms of the amplitude-mixed twin. Its penultimate features are appended to ``features``."""
        domains = self.student.domains(step.batch.keys)
        mixed = step.forward(self.mix(step.batch, domains).data)
        features.append(mixed.features(self.penultimate))
        terms = {"segmentation_mixed": step.segmentation(mixed.output)}
        if self.settings.consistency:
            outputs = full_resolution(step.output), full_resolution(mixed.output)
            terms["consistency"] = symmetric_kl(*outputs, self.student.regions)
        if self.restores:
            bottleneck = mixed.features(self.bottleneck)
            restored = self.restoration(bottleneck, to_device(domains, bottleneck.device))
            terms["restoration"] = restoration_loss(restored, step.batch.images)
        return terms

    def _contrast(self, step: Step, features: list[Tensor]) -> dict[str, Tensor]:
        if step.epoch > self.statistics_epoch:
            return {"contrast": self.contrast(features, self.classes_inside(step.batch))}
        if self.collects_statistics(step.epoch):
            self.contrast.observe(features, self.classes_inside(step.batch))
        return {}

    def mix(self, batch: Batch, domains: Tensor) -> Batch:
        """The batch with amplitude-mixed images; voxels outside a mask and padding stay zero."""
        image = batch.images
        ratio = random_ratio(len(image), image.device)
        mixed = random_amplitude_mixup(image, self.partners.of(image, domains), ratio, self.settings.half_width)
        return batch.with_images(mixed.masked_fill_(self.student.outside.channels(image), 0))

    def classes_inside(self, batch: Batch) -> Tensor:
        """The class of each voxel, ``(B, *spatial)``; -1 outside the mask of masked images and in padding."""
        return self.student.classes(batch.target).masked_fill(self.student.outside.voxels(batch.images), -1)

    def conditions(self) -> dict[str, Any]:
        """The version of the method and the domains, which must be unchanged when a training resumes."""
        return {"form of SgCG": FORM, "domains": list(self.student.domain_names)}

    def prepare(self) -> None:
        """Log from which epochs on statistics are collected and the contrastive loss is used."""
        if not self.settings.contrast:
            return
        start, epochs = self.statistics_epoch, self.student.num_epochs
        self.student.log(f"Contrast: statistics from epoch {start} on, loss from epoch {start + 1} on")
        if start + 1 >= epochs:
            self.student.log(
                f"WARNING: the training has {epochs} epochs, so the contrastive loss is never used. Set an earlier "
                f"start_epoch, or train longer."
            )

    def start_epoch(self, epoch: int) -> None:
        """Reset the statistics before the epoch that collects them."""
        if self.collects_statistics(epoch):
            self.contrast.statistics.reset()
