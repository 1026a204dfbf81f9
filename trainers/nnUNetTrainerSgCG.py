"""SgCG in nnU-Net: class-distribution contrast on amplitude-mixed images. The network is the planned one."""

from pathlib import Path

import torch
from nnunetv2.paths import nnUNet_raw

from nnunet_dg.datasets.domains import read_domains
from nnunet_dg.outside import Outside
from nnunet_dg.sgcg import (
    ClassContrast,
    Partners,
    RestorationDecoder,
    SgCGSettings,
    random_amplitude_mixup,
    random_ratio,
    restoration_loss,
)
from nnunet_dg.tensors import symmetric_kl
from nnunet_dg.training.auxiliary_trainer import AuxiliaryTrainer
from nnunet_dg.training.balanced_batches import CASES, balanced_data_loaders, cases_by_domain, is_balanced
from nnunet_dg.training.taps import planned_network, tap_encoder, tap_penultimate
from nnunet_dg.training.voxel_classes import Classes

FORM = "statistics from start_epoch on, restoration weighed per domain and upsampled last"


class nnUNetTrainerSgCG(AuxiliaryTrainer):
    """nnU-Net's own recipe, with ``L = L_ram + lambda L_feat`` (eq. 13) in place of its loss.

    SgCG: Semantic-Guided Contrastive Generalization for Medical Image Segmentation, ICLR 2025 submission. L_ram
    (RAM-DSIR: Zhou et al., Generalizable Medical Image Segmentation via Random Amplitude Mixup and Domain-Specific
    Image Restoration, ECCV 2022) is the segmentation loss on the image and on its amplitude-mixed twin, their
    consistency, and the restoration of the image from the twin. L_feat is the contrast of the penultimate features of
    both. ``domains.json`` says which case is from which domain. With it, batches are balanced over the domains; without
    it, any two samples are mixed.

    The paper starts from a trained network. Here the class statistics are collected in epoch `start_epoch`, and the
    contrast counts from the next epoch on; before, it is not computed. Voxels outside the mask of masked images and
    zero padding belong to no class.
    """

    sgcg = SgCGSettings()

    def build_auxiliary(self):
        settings = self.settings("sgcg")
        self.classes, self.outside = Classes(self.label_manager), Outside.of(self.configuration_manager)
        self.penultimate = tap_penultimate(self.network)
        self.partners = Partners()
        cases = self.dataset_class.get_identifiers(self.preprocessed_dataset_folder)
        raw = Path(nnUNet_raw, self.plans_manager.dataset_name) if nnUNet_raw else None
        self.domains = read_domains(raw, Path(self.preprocessed_dataset_folder_base), cases, self.print_to_log_file)
        self.domains_in_training = len(self.domains.names)
        network = planned_network(self.network)
        modules = {}
        if settings.contrast:
            modules["contrast"] = ClassContrast(
                self.classes.num, network.decoder.seg_layers[-1].in_channels, settings.temperature,
                settings.voxels_per_class, settings.max_count, settings.memory,
            )  # fmt: skip
        if settings.amplitude_mixup and settings.restoration:
            self.bottleneck = tap_encoder(self.network, -1)
            encoder = network.encoder
            modules["restoration"] = RestorationDecoder(
                encoder.output_channels, encoder.strides, self.num_images, len(self.domains.names)
            )
        return modules

    @property
    def start_epoch(self):
        """The epoch that collects the class statistics."""
        start = self.settings("sgcg").start_epoch
        if start is not None:
            return start
        return 0 if self.pretrained else self.num_epochs // 5

    def term_weights(self):
        settings = self.settings("sgcg")
        weights = {"segmentation": 1.0}
        if settings.amplitude_mixup:
            weights |= {"segmentation_mixed": 1.0, "consistency": settings.consistency}
            restoration = settings.restoration * self.domains_in_training
            weights |= {"restoration": restoration} if settings.restoration else {}
        if settings.contrast:
            weights["contrast"] = settings.contrast if self.current_epoch > self.start_epoch else 0.0
        return weights

    def loss_terms(self, data, target, keys):
        weights = self.term_weights()
        output = self.network(data)
        terms = {"segmentation": self.loss(output, target)}
        features = [self.penultimate.take()]
        if "segmentation_mixed" in weights:
            domains = self.domains.of_batch(keys)
            mixed_output = self.network(self.mix(data, domains, self.settings("sgcg").half_width))
            features.append(self.penultimate.take())
            terms["segmentation_mixed"] = self.loss(mixed_output, target)
            if weights["consistency"]:
                first, second = self.at_full_resolution(output), self.at_full_resolution(mixed_output)
                terms["consistency"] = symmetric_kl(first, second, self.label_manager.has_regions)
            if "restoration" in weights:
                restored = self.auxiliary["restoration"](self.bottleneck.take(), domains)
                terms["restoration"] = restoration_loss(restored, data[:, : self.num_images])
        if weights.get("contrast"):
            terms["contrast"] = self.auxiliary["contrast"](features, self.classes_inside(data, target))
        elif self.collects_statistics():
            self.auxiliary["contrast"].observe(features, self.classes_inside(data, target))
        return terms

    def collects_statistics(self):
        """Whether this epoch collects class statistics and computes no contrastive loss yet."""
        return "contrast" in self.auxiliary and self.current_epoch == self.start_epoch

    def classes_inside(self, data, target):
        """The class of each voxel, ``(B, *spatial)``; -1 where the image does not show the subject."""
        outside = self.outside.voxels(data[:, : self.num_images])
        return self.classes.of_target(target).masked_fill(outside, -1)

    def mix(self, data, domains, half_width):
        """The batch with amplitudes of other samples in its image channels; what is outside a mask stays zero."""
        image, rest = data[:, : self.num_images], data[:, self.num_images :]
        ratio = random_ratio(len(image), image.device)
        mixed = random_amplitude_mixup(image, self.partners.of(image, domains), ratio, half_width)
        mixed = mixed.masked_fill_(self.outside.channels(image), 0)
        return torch.cat([mixed, rest], 1) if rest.shape[1] else mixed

    def conditions(self):
        return {"form of SgCG": FORM, "domains": list(self.domains.names)}

    def get_tr_and_val_datasets(self):
        training, validation = super().get_tr_and_val_datasets()
        cases = cases_by_domain(list(training.identifiers), self.domains.of_case)
        self.domains_in_training = len(cases)
        if self.settings("sgcg").balanced_batches and len(cases) > 1:
            setattr(training, CASES, cases)
        return training, validation

    def get_dataloaders(self):
        with balanced_data_loaders():
            training, validation = super().get_dataloaders()
        if is_balanced(training):
            self.print_to_log_file(f"Batches are balanced over {self.domains_in_training} domains")
        return training, validation

    def on_train_start(self):
        super().on_train_start()
        if self.settings("sgcg").contrast:
            self.log_contrast_schedule()

    def log_contrast_schedule(self):
        """Say in the log from which epochs on statistics are collected and the contrast counts."""
        start = self.start_epoch
        self.print_to_log_file(f"Contrast: statistics from epoch {start} on, loss from epoch {start + 1} on")
        if start + 1 >= self.num_epochs:
            self.print_to_log_file(
                f"WARNING: the training has {self.num_epochs} epochs, so the contrast never counts. Set an earlier "
                f"start_epoch, or train longer."
            )

    def on_train_epoch_start(self):
        super().on_train_epoch_start()
        if self.collects_statistics():
            self.auxiliary["contrast"].statistics.reset()
