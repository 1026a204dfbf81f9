"""SgCG in nnU-Net: class-distribution contrast, on amplitude-mixed images. What is deployed is the planned network."""

from pathlib import Path

import torch
from nnunetv2.paths import nnUNet_raw

from nnunet_dg.divergence import symmetric_kl
from nnunet_dg.nnunet.auxiliary_trainer import AuxiliaryTrainer
from nnunet_dg.nnunet.classes import Classes
from nnunet_dg.nnunet.domains import read_domains
from nnunet_dg.nnunet.taps import planned_network, tap_encoder, tap_penultimate
from nnunet_dg.sgcg import (
    ClassContrast,
    Partners,
    RestorationDecoder,
    SgCGSettings,
    random_amplitude_mixup,
    random_ratio,
    restoration_loss,
)


class nnUNetTrainerSgCG(AuxiliaryTrainer):
    """nnU-Net's own recipe, with ``L = L_ram + lambda L_feat`` (eq. 13) in place of its loss.

    L_ram is the segmentation loss on the image and on its amplitude-mixed twin, their consistency, and the restoration
    of the image from the twin; L_feat is the contrast of the penultimate features of both. ``domains.json`` says which
    case is from which domain; without it, any two samples are mixed.
    """

    sgcg = SgCGSettings()

    def build_auxiliary(self):
        settings = self.settings("sgcg")
        self.classes = Classes(self.label_manager)
        self.penultimate = tap_penultimate(self.network)
        self.partners = Partners()
        cases = self.dataset_class.get_identifiers(self.preprocessed_dataset_folder)
        raw = Path(nnUNet_raw, self.plans_manager.dataset_name) if nnUNet_raw else None
        self.domains = read_domains(raw, Path(self.preprocessed_dataset_folder_base), cases, self.print_to_log_file)
        network = planned_network(self.network)
        modules = {}
        if settings.contrast:
            modules["contrast"] = ClassContrast(
                self.classes.num, network.decoder.seg_layers[-1].in_channels, settings.temperature,
                settings.voxels_per_class, settings.max_count,
            )  # fmt: skip
        if settings.amplitude_mixup and settings.restoration:
            self.bottleneck = tap_encoder(self.network, -1)
            encoder = network.encoder
            modules["restoration"] = RestorationDecoder(
                encoder.output_channels, encoder.strides, self.num_images, len(self.domains.names)
            )
        return modules

    def term_weights(self):
        settings = self.settings("sgcg")
        weights = {"segmentation": 1.0}
        if settings.amplitude_mixup:
            weights |= {"segmentation_mixed": 1.0, "consistency": settings.consistency}
            weights |= {"restoration": settings.restoration} if settings.restoration else {}
        if settings.contrast:
            weights["contrast"] = settings.contrast if self.current_epoch >= settings.start_epoch else 0.0
        return weights

    def loss_terms(self, data, target, keys):
        settings = self.settings("sgcg")
        output = self.network(data)
        terms = {"segmentation": self.loss(output, target)}
        features = [self.penultimate.take()]
        if settings.amplitude_mixup:
            domains = self.domains.of_batch(keys).to(data.device)
            mixed_output = self.network(self.mix(data, domains, settings.half_width))
            features.append(self.penultimate.take())
            terms["segmentation_mixed"] = self.loss(mixed_output, target)
            first, second = self.at_full_resolution(output), self.at_full_resolution(mixed_output)
            terms["consistency"] = symmetric_kl(first, second, self.label_manager.has_regions)
            if settings.restoration:
                restored = self.auxiliary["restoration"](self.bottleneck.take(), domains)
                terms["restoration"] = restoration_loss(restored, data[:, : self.num_images])
        if settings.contrast:
            terms["contrast"] = self.auxiliary["contrast"](features, self.classes.of_target(target))
        return terms

    def mix(self, data, domains, half_width):
        """The batch with amplitudes of other samples in its image channels."""
        image, rest = data[:, : self.num_images], data[:, self.num_images :]
        ratio = random_ratio(len(image), image.device)
        return torch.cat([random_amplitude_mixup(image, self.partners.of(image, domains), ratio, half_width), rest], 1)

    def conditions(self):
        return {"domains": list(self.domains.names)}
