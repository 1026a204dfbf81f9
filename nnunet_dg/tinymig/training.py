"""The loss terms of TinyMIG in a training step.

TinyMIG: Transferring Generalization from Vision Foundation Models to Single-Domain Medical Imaging, ICML 2025,
https://proceedings.mlr.press/v267.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from nnunet_dg.errors import SettingsError
from nnunet_dg.mechanisms.feature_style import FeatureStyleTraining
from nnunet_dg.method import Step, Student, TrainingModule, full_resolution
from nnunet_dg.tensors import Statistics
from nnunet_dg.tinymig.consistency import cross_distribution_consistency
from nnunet_dg.tinymig.distillation import FeatureDistillation
from nnunet_dg.tinymig.modulation import OWN_STATISTICS, universal_statistics
from nnunet_dg.tinymig.multilevel import multilevel_distillation
from nnunet_dg.tinymig.style import METHODS, Style, style_of_method
from nnunet_dg.tinymig.teachers import build_teacher, load_teacher
from nnunet_dg.tinymig.teaching import ContentAlignment, Taught, Teaching

if TYPE_CHECKING:
    from nnunet_dg.tinymig.method import TinyMIG

MOST_DEPTHS = 4  # encoder stages that are compared with the teacher
STYLED_STAGES = 2  # number of first encoder stages whose statistics the styled pass replaces


class TinyMIGTraining(TrainingModule):
    """Teacher, reprogramming, alignment and styles around the student's passes.

    Args:
        settings: Settings, see `TinyMIG`.
        student: Network in training.

    Raises:
        SettingsError: The teacher is unknown or does not fit the patch size.
        DimensionError: The teacher and the configuration have different dimensions.
    """

    compiled_parts = ("teaching", "alignment")

    def __init__(self, settings: TinyMIG, student: Student) -> None:
        super().__init__()
        self.settings, self.student = settings, student
        self.own = OWN_STATISTICS.get(settings.statistics)
        depths = min(MOST_DEPTHS, len(student.widths))
        if settings.needs_teacher:
            depths = self._build_teaching(depths)
        self.aligned = settings.aligned_stages or tuple(range(depths))
        self.styled_stages = settings.styled_stages or tuple(range(min(STYLED_STAGES, depths)))
        self._check_stages(depths)
        self._freeze_unused_reprogramming()
        if settings.uses("lra") and settings.alignment != "mlkd":
            self.alignment = self._build_alignment()
        self.taps = [student.tap(stage) for stage in self.aligned]
        self._build_styles()

    def _build_styles(self) -> None:
        """Register the changes of features that the styled pass makes."""
        settings, student, stages = self.settings, self.student, self.styled_stages
        self.styles: list[Style] = []
        self.method: FeatureStyleTraining | None = None
        if settings.statistics in METHODS:
            if settings.uses("ufdm"):
                self.method = style_of_method(settings.statistics, student, stages, settings.at)
            return
        self._build_replays()
        self.styles = [Style(self.own) for _ in stages]
        pairs = zip(stages, self.styles, strict=True)
        self.changes = [student.change(stage, style, at=settings.at) for stage, style in pairs]

    def _build_replays(self) -> None:
        """Let the styled pass take over the stages that do not differ from those of the first pass."""
        settings, student = self.settings, self.student
        shared = min(self.styled_stages) + (settings.at == "stage")  # a style of the output leaves its stage as it is
        if not (student.passes_begin_equally and settings.uses("ufdm")):
            shared = 0
        self.replays = [(student.tap(stage), student.replay(stage)) for stage in range(shared)]

    def _build_teaching(self, depths: int) -> int:
        """Build the teacher and the modules around it. Returns the number of its maps."""
        settings, student = self.settings, self.student
        teacher = build_teacher(settings, student.patch_size, depths)
        depths = len(teacher.widths)
        outputs = student.num_outputs if settings.uses("co_training") else None
        self.teaching = Teaching(teacher, student.widths[:depths], student.grids[:depths], outputs)
        if not settings.reprogramming_learns:
            self.teaching.requires_grad_(False)
        return depths

    def get_extra_state(self) -> list[list[Statistics]]:
        """The statistics of earlier single samples for each styled stage, for checkpoints."""
        return [style.earlier.state() for style in self.styles]

    def set_extra_state(self, state: list[list[Statistics]]) -> None:
        """Restore the statistics of earlier single samples."""
        for style, earlier in zip(self.styles, state, strict=True):
            style.earlier.restore(earlier)

    def _freeze_unused_reprogramming(self) -> None:
        """Without co-training, only stages that are aligned give gradients. DDP waits for every other one in vain."""
        if self.settings.needs_teacher and not self.settings.uses("co_training"):
            for stage, block in enumerate(self.teaching.reprogramming):
                if stage not in self.aligned:
                    block.requires_grad_(False)

    def _check_stages(self, depths: int) -> None:
        """Refuse stages for which the teacher has no map."""
        of_teacher = {"aligned_stages": self.aligned}
        if self.settings.statistics == "ufdm":
            of_teacher["styled_stages"] = self.styled_stages
        for name, stages in of_teacher.items():
            if beyond := [stage for stage in stages if stage >= depths]:
                raise SettingsError(
                    f"{name} has {beyond[0]}, but there are maps of the teacher for stages 0 to {depths - 1} only. "
                    f"Leave out that stage."
                )

    def _build_alignment(self) -> ContentAlignment | FeatureDistillation:
        """The module that compares the features of the aligned stages with the teacher's."""
        settings, student = self.settings, self.student
        widths = [student.widths[stage] for stage in self.aligned]
        if settings.enhances:
            amplitude, phase, refine = (settings.uses(part) for part in ("amplitude", "phase", "channel_refiner"))
            grids = [student.grids[stage] for stage in self.aligned]
            return ContentAlignment(widths, grids, amplitude, phase, refine, settings.alignment_scale)
        teacher_widths = [self.teaching.teacher.widths[stage] for stage in self.aligned]
        return FeatureDistillation(settings.alignment, teacher_widths, widths, len(student.patch_size))

    def weights(self, epoch: int) -> dict[str, float]:
        """The weights l1 ... l5 of the enabled terms."""
        return self.settings.term_weights()

    def losses(self, step: Step) -> dict[str, Tensor]:
        """The enabled ones of the five terms, by name."""
        settings, student = self.settings, self.student
        terms = {"segmentation": step.segmentation(step.output)}
        taught = Taught([], None, [])
        if settings.needs_teacher:
            taught = self.teaching(student.outside.to_minimum(step.batch.images))
            if taught.logits is not None:
                terms["segmentation_teacher"] = student.full_resolution_loss(taught.logits, step.batch.target)
        if settings.uses("lra"):
            terms["alignment"] = self._aligned(step, taught)
        if settings.uses("ufdm"):
            styled = self.styled(step, taught.features)
            terms["segmentation_styled"] = step.segmentation(styled)
        if settings.uses("cdc"):
            outputs = full_resolution(step.output), full_resolution(styled)
            terms["consistency"] = cross_distribution_consistency(*outputs, student.regions, settings.divergence)
        return terms

    def _aligned(self, step: Step, taught: Taught) -> Tensor:
        """The alignment term, of features or of logits."""
        if self.settings.alignment == "mlkd":
            valid = self.student.classes(step.batch.target) >= 0
            student = full_resolution(step.output)
            return multilevel_distillation(cast("Tensor", taught.logits), student, valid, self.student.regions)
        given = taught.features if self.settings.enhances else taught.maps
        student_features = [step.own.features(tap) for tap in self.taps]
        aligned: Tensor = self.alignment([given[stage] for stage in self.aligned], student_features)
        return aligned

    def styled(self, step: Step, taught: list[Tensor]) -> Any:
        """The student's output when its first stages have other statistics.

        Args:
            step: Training step.
            taught: Reprogrammed features of the teacher, one per depth. They are not used if `statistics` changes the
                student's own.
        """
        if self.method is not None:
            with self.method.styling(step, torch.ones(len(self.styled_stages), dtype=torch.bool)):
                return step.forward(step.batch.data).output
        with ExitStack() as stack:
            for stage, style, change in zip(self.styled_stages, self.styles, self.changes, strict=True):
                style.begin(None if self.own else universal_statistics(taught[stage]))
                stack.callback(style.end)
                stack.enter_context(change)
            for tap, replay in self.replays:
                stack.enter_context(replay.of(step.own.features(tap)))
            return step.forward(step.batch.data).output

    def prepare(self) -> None:
        """Load the teacher's frozen weights, and log where they come from."""
        if self.settings.needs_teacher:
            dims = len(self.student.patch_size)
            self.student.log(load_teacher(self.teaching.teacher, self.settings, dims))
        if self.method is not None:
            self.method.prepare()
        self.note_idle_statistics()

    def note_idle_statistics(self) -> None:
        """Log a note if styled passes have no effect, or use earlier samples, because a device has one sample."""
        if self.own is None or self.student.samples_per_device > 1:
            return
        name = self.settings.statistics
        if self.own.needs_batch:
            self.student.log(
                f"Statistics '{name}' need two samples per device, but there is only one, so styled passes have no "
                f"effect. Set batch_size in the plans to at least two per device, or choose other statistics."
            )
        elif self.own.partners:
            self.student.log(f"Statistics '{name}': one sample per device, so partners are earlier samples.")

    def end_epoch(self, epoch: int) -> None:
        """Log how much the enhancement scales the features that the alignment compares, and notes on the styles."""
        if self.settings.enhances:
            gain = cast("ContentAlignment", self.alignment).take_gain()
            self.student.log("alignment: std(enhanced) / std(given)", round(gain, 4))
        if self.method is not None:
            self.method.end_epoch(epoch)
