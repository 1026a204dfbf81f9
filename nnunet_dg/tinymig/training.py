"""The loss terms of TinyMIG in a training step.

TinyMIG: Transferring Generalization from Vision Foundation Models to Single-Domain Medical Imaging, ICML 2025,
https://proceedings.mlr.press/v267.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from torch import Tensor

from nnunet_dg.method import Step, Student, TrainingModule, full_resolution
from nnunet_dg.tinymig.consistency import cross_distribution_consistency
from nnunet_dg.tinymig.modulation import OWN_STATISTICS, universal_statistics
from nnunet_dg.tinymig.style import Style
from nnunet_dg.tinymig.teachers import build_teacher, load_teacher
from nnunet_dg.tinymig.teaching import ContentAlignment, Teaching

if TYPE_CHECKING:
    from nnunet_dg.tinymig.method import TinyMIG

MOST_DEPTHS = 4  # encoder stages that are compared with the teacher
STYLED_STAGES = 2  # number of first encoder stages whose statistics the styled pass replaces


class TinyMIGTraining(TrainingModule):
    """Teacher, reprogramming and alignment around the student's passes.

    Args:
        settings: Settings, see `TinyMIG`.
        student: Network in training.

    Raises:
        SettingsError: The teacher is unknown or does not fit the patch size.
        DimensionError: The teacher and the configuration have different dimensions.
    """

    def __init__(self, settings: TinyMIG, student: Student) -> None:
        super().__init__()
        self.settings, self.student = settings, student
        self.own = OWN_STATISTICS.get(settings.statistics)
        depths = min(MOST_DEPTHS, len(student.widths))
        if settings.needs_teacher:
            depths = self._build_teaching(depths)
        if settings.uses("lra"):
            amplitude, phase, refine = (settings.uses(part) for part in ("amplitude", "phase", "channel_refiner"))
            widths, grids = student.widths[:depths], student.grids[:depths]
            self.alignment = ContentAlignment(widths, grids, amplitude, phase, refine, settings.alignment_scale)
        self.taps = [student.tap(stage) for stage in range(depths)]
        self.styles = [Style(self.own) for _ in range(min(STYLED_STAGES, depths))]
        self.changes = [student.change(stage, style, at=settings.at) for stage, style in enumerate(self.styles)]

    def _build_teaching(self, depths: int) -> int:
        """Build the teacher and the modules around it. Returns the number of its maps."""
        settings, student = self.settings, self.student
        teacher = build_teacher(settings, student.patch_size, depths)
        depths = len(teacher.widths)
        outputs = student.num_outputs if settings.uses("co_training") else None
        self.teaching = Teaching(teacher, student.widths[:depths], student.grids[:depths], outputs)
        if not (settings.uses("co_training") or settings.uses("lra")):
            self.teaching.requires_grad_(False)
        return depths

    def weights(self, epoch: int) -> dict[str, float]:
        """The weights l1 ... l5 of the enabled terms."""
        return self.settings.term_weights()

    def losses(self, step: Step) -> dict[str, Tensor]:
        """The enabled ones of the five terms, by name."""
        settings, student = self.settings, self.student
        terms = {"segmentation": step.segmentation(step.output)}
        taught: list[Tensor] = []
        if settings.needs_teacher:
            taught, logits = self.teaching(student.outside.to_minimum(step.batch.images))
            if logits is not None:
                terms["segmentation_teacher"] = student.full_resolution_loss(logits, step.batch.target)
        if settings.uses("lra"):
            terms["alignment"] = self.alignment(taught, [step.own.features(tap) for tap in self.taps])
        if settings.uses("ufdm"):
            styled = self.styled(step, taught)
            terms["segmentation_styled"] = step.segmentation(styled)
        if settings.uses("cdc"):
            outputs = full_resolution(step.output), full_resolution(styled)
            terms["consistency"] = cross_distribution_consistency(*outputs, student.regions, settings.divergence)
        return terms

    def styled(self, step: Step, taught: list[Tensor]) -> Any:
        """The student's output when its first stages have other statistics.

        Args:
            step: Training step.
            taught: Reprogrammed features of the teacher, one per depth. They are not used if `statistics` changes the
                student's own.
        """
        with ExitStack() as stack:
            for stage, (style, change) in enumerate(zip(self.styles, self.changes, strict=True)):
                style.begin(None if self.own else universal_statistics(taught[stage]))
                stack.callback(style.end)
                stack.enter_context(change)
            return step.forward(step.batch.data).output

    def prepare(self) -> None:
        """Load the teacher's frozen weights, and log where they come from."""
        if self.settings.needs_teacher:
            dims = len(self.student.patch_size)
            self.student.log(load_teacher(self.teaching.teacher, self.settings, dims))
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
        """Log how much the enhancement scales the features that the alignment compares."""
        if self.settings.uses("lra"):
            self.student.log("alignment: std(enhanced) / std(given)", round(self.alignment.take_gain(), 4))
