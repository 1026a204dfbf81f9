"""TinyMIG in nnU-Net: a foundation model teaches the planned network, which is what is deployed (ICML 2025)."""

import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler

from nnunet_dg.host import unwrap
from nnunet_dg.outside import Outside
from nnunet_dg.tinymig import (
    OWN_STATISTICS,
    ContentAlignment,
    DimensionError,
    Teaching,
    TinyMIGSettings,
    build_teacher,
    cross_distribution_consistency,
    load_teacher,
    universal_statistics,
)
from nnunet_dg.training.auxiliary_trainer import AuxiliaryTrainer
from nnunet_dg.training.taps import Modulation, planned_network, stage_grids, tap_encoder


class nnUNetTrainerTinyMIG(AuxiliaryTrainer):
    """nnU-Net's own recipe, with five loss terms in place of its loss: labels for the teacher, the student and the
    student in the teacher's style, alignment of their content (LRA), and consistency between both passes (CDC).

    The teacher is SAM in 2-D and anatomix in 3-D; it stays frozen, adapters in it train. Voxels outside a mask and
    padding are shown to it at the minimum of the patch, see `nnunet_dg.outside`.
    """

    tinymig = TinyMIGSettings()

    def build_auxiliary(self):
        settings = self.settings("tinymig")
        encoder = planned_network(self.network).encoder
        patch = tuple(self.configuration_manager.patch_size)
        depths = min(4, len(encoder.stages))
        modules = {}
        if settings.needs_teacher:
            try:
                teacher = build_teacher(settings, patch, depths)
            except DimensionError as error:
                raise DimensionError(f"{type(self).__name__}: {error}") from error
            depths = len(teacher.widths)
            widths, grids = encoder.output_channels[:depths], stage_grids(patch, encoder.strides)[:depths]
            outputs = self.label_manager.num_segmentation_heads if settings.uses("co_training") else None
            teaching = Teaching(teacher, widths, grids, outputs)
            trains = settings.uses("co_training") or settings.uses("lra")
            modules["teaching"] = teaching if trains else teaching.requires_grad_(False)
        if settings.uses("lra"):
            filters = (settings.uses(part) for part in ("amplitude", "phase", "channel_refiner"))
            modules["alignment"] = ContentAlignment(widths, grids, *filters, settings.alignment_scale)
        self.outside = Outside.of(self.configuration_manager)
        self.taps = [tap_encoder(self.network, stage) for stage in range(depths)]
        own = OWN_STATISTICS.get(settings.statistics)
        self.modulations = [Modulation(stage, own) for stage in encoder.stages[: min(2, depths)]]
        return modules

    def term_weights(self):
        return self.settings("tinymig").term_weights()

    def loss_terms(self, data, target, keys):
        settings = self.settings("tinymig")
        output = self.network(data)
        features = [tap.take() for tap in self.taps]
        terms = {"segmentation": self.loss(output, target)}
        taught = None
        if settings.needs_teacher:
            images = self.outside.to_minimum(data[:, : self.num_images])
            taught, logits = self.auxiliary["teaching"](images)
            if logits is not None:
                terms["segmentation_teacher"] = self.full_resolution_loss(logits, target)
        if settings.uses("lra"):
            terms["alignment"] = self.auxiliary["alignment"](taught, features)
        if settings.uses("ufdm"):
            styled = self.styled(data, taught)
            terms["segmentation_styled"] = self.loss(styled, target)
        if settings.uses("cdc"):
            first, second = self.at_full_resolution(output), self.at_full_resolution(styled)
            regions = self.label_manager.has_regions
            terms["consistency"] = cross_distribution_consistency(first, second, regions, settings.divergence)
        return terms

    def styled(self, data, taught):
        """The student's output where its first stages have other statistics: the teacher's, or chance (UFDM)."""
        for stage, modulation in enumerate(self.modulations):
            modulation.begin(None if modulation.own else universal_statistics(taught[stage]))
        output = self.network(data)
        for modulation in self.modulations:
            modulation.end()
        for tap in self.taps:
            tap.take()
        return output

    def full_resolution_loss(self, logits, target):
        """nnU-Net's loss without deep supervision."""
        loss = self.loss.loss if self.enable_deep_supervision else self.loss
        return loss(logits, self.at_full_resolution(target))

    def load_teacher(self):
        """Fetch, verify and load the teacher's frozen weights."""
        settings = self.settings("tinymig")
        if settings.needs_teacher:
            teacher = unwrap(self.auxiliary["teaching"]).teacher
            self.print_to_log_file(load_teacher(teacher, settings, len(self.configuration_manager.patch_size)))

    def prepare_training(self):
        self.load_teacher()
        self.note_idle_statistics()
        super().prepare_training()

    def note_idle_statistics(self):
        """Say in the log where the styled passes change nothing, or not from the first step on."""
        statistics = self.settings("tinymig").statistics
        own = OWN_STATISTICS.get(statistics)
        devices = torch.distributed.get_world_size() if self.is_ddp else 1
        if own is None or self.configuration_manager.batch_size // devices > 1:
            return
        if own.needs_batch:
            self.print_to_log_file(
                f"Statistics '{statistics}' need two samples per device, and a step has one: styled passes are like "
                f"plain ones. Set batch_size in the plans to two per device, or statistics to another."
            )
        elif own.partners:
            self.print_to_log_file(
                f"Statistics '{statistics}': one sample per device, so partners are earlier samples."
            )

    def on_train_epoch_end(self, train_outputs):
        super().on_train_epoch_end(train_outputs)
        if "alignment" in self.auxiliary:
            gain = unwrap(self.auxiliary["alignment"]).take_gain()
            self.print_to_log_file("alignment: std(enhanced) / std(given)", round(gain, 4))


class nnUNetTrainerTinyMIG_DINOv2(nnUNetTrainerTinyMIG):
    """DINOv2 as teacher, 2-D."""

    tinymig = TinyMIGSettings(teacher="vit_base_patch14_dinov2.lvd142m")


class nnUNetTrainerTinyMIG_Paper(nnUNetTrainerTinyMIG):
    """The paper's optimizer: AdamW, 1e-4, polynomial decay with exponent 0.9 (appendix B.2)."""

    def configure_optimizers(self):
        self.initial_lr = 1e-4
        self.weight_decay = 1e-2  # PyTorch's for AdamW; the paper names none
        optimizer = torch.optim.AdamW(self.network.parameters(), lr=self.initial_lr, weight_decay=self.weight_decay)
        return optimizer, PolyLRScheduler(optimizer, self.initial_lr, self.num_epochs, exponent=0.9)
