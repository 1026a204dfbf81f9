"""TinyMIG as a method: its settings and its training module.

C. Liu, H. Xu, Y. Cao, X. Su, Z. Qu, T. Li, S. An, H. Zhu, TinyMIG: Transferring Generalization from Vision Foundation
Models to Single-Domain Medical Imaging, ICML 2025, https://proceedings.mlr.press/v267.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar

from nnunet_dg.errors import SettingsError
from nnunet_dg.method import PLACES, Paper, Student, choice, encoder_stages, numbers, subset
from nnunet_dg.tinymig.alignment import SCALES
from nnunet_dg.tinymig.consistency import DIVERGENCES
from nnunet_dg.tinymig.distillation import FEATURE_TERMS
from nnunet_dg.tinymig.modulation import OWN_STATISTICS
from nnunet_dg.tinymig.style import METHODS as STYLE_METHODS
from nnunet_dg.tinymig.teacher_settings import PAPER, TeacherSettings
from nnunet_dg.tinymig.training import TinyMIGTraining

TERMS = ("segmentation_teacher", "segmentation_styled", "segmentation", "alignment", "consistency")  # l1 ... l5
ABLATIONS = ("ufdm", "cdc", "lra", "amplitude", "phase", "channel_refiner", "co_training")
ENHANCEMENT = ("amplitude", "phase", "channel_refiner")  # the parts of FDCE
ALIGNMENTS = ("lra", *FEATURE_TERMS, "mlkd")
PARTS_OF_SETTINGS = {  # the parts of the method that use a setting; if one is ablated, the setting has no effect
    "adapter_width": ("co_training",),
    "statistics": ("ufdm",),
    "at": ("ufdm",),
    "styled_stages": ("ufdm",),
    "divergence": ("cdc", "ufdm"),
    "alignment": ("lra",),
    "alignment_scale": ("lra",),
    "aligned_stages": ("lra",),
}
STATISTICS = ("ufdm", *OWN_STATISTICS, *STYLE_METHODS)


@dataclass(frozen=True)
class TinyMIG(TeacherSettings):
    """TinyMIG: a foundation model teaches the planned network. Only the planned network is used for inference.

    C. Liu, H. Xu, Y. Cao, X. Su, Z. Qu, T. Li, S. An, H. Zhu, TinyMIG: Transferring Generalization from Vision
    Foundation Models to Single-Domain Medical Imaging, ICML 2025, PMLR 267, https://proceedings.mlr.press/v267. Five
    terms replace nnU-Net's loss: the segmentation losses of the teacher, of the student and of the student with the
    teacher's feature statistics (the styled pass), the alignment of their content (LRA), and the consistency of both
    passes (CDC). The teacher is frozen except for small adapters. It sees padding and voxels outside a mask at the
    minimum of the patch, see `nnunet_dg.outside`. The defaults are the method as published, except for
    `alignment_scale`.

    Attributes:
        loss_weights: Weights l1 ... l5 of the teacher's segmentation loss, the styled student's, the student's, the
            alignment and the consistency.
        statistics: Source of the mean and deviation of the styled features (table 5): ``"ufdm"`` takes those of the
            teacher's features or random ones, the others change the student's own. ``"maxstyle"`` takes five more
            passes in each step, ``"efdm"`` sorts all voxels of a stage.
        at: Place at which the styled pass changes features: the output of the styled stages (as published), or the
            input of their last non-linearity, where the mean has an effect in networks with instance norm as well.
        divergence: Divergence between the two predictions in the consistency term (table 8). ``"kl"`` is the symmetric
            one of eq. 4, ``"kl_one_way"`` that of the styled prediction from the other.
        alignment: What is distilled (table 7). ``"lra"`` compares frequency-enhanced features, as published. The
            others compare the teacher's own maps or logits, without gradient, with the student's: ``"cwd"`` the
            distribution of each channel over space, ``"at"`` the mean of squares over channels, ``"attnfd"`` maps
            refined by attention, ``"mlkd"`` the logits of the teacher's decoder.
        alignment_scale: How `lra` compares enhanced features. ``"free"``: after normalizing each to zero mean and unit
            RMS per sample and channel. ``"paper"``: without normalization (eq. 13), so that the filters can reduce the
            loss by shrinking the features.
        styled_stages: Encoder stages whose features the styled pass changes, numbered from 0 (figure 8b). None: the
            first two, as published.
        aligned_stages: Encoder stages whose features are aligned (figure 8c). None: all for which there are maps of the
            teacher, at most the first four.
        ablate: Parts of the method that are disabled (tables 4 and 6). Without co_training, the
            reprogramming learns from lra only, with `alignment` ``"lra"``; otherwise it is not trained, and styles are
            random combinations of the teacher's features.

    Raises:
        SettingsError: A setting has a value that is not accepted. The message names the setting.
    """

    key: ClassVar[str] = "tinymig"
    slot: ClassVar[str] = "distillation"
    paper: ClassVar[Paper] = PAPER

    loss_weights: tuple[float, ...] = numbers((1.0, 1.0, 0.5, 0.5, 0.5), TERMS, "to leave one out, ablate its part")
    statistics: str = choice(*STATISTICS)
    at: str = choice(*PLACES)
    divergence: str = choice(*DIVERGENCES)
    alignment: str = choice(*ALIGNMENTS)
    alignment_scale: str = choice(*SCALES)
    styled_stages: tuple[int, ...] | None = encoder_stages(null=True)
    aligned_stages: tuple[int, ...] | None = encoder_stages(null=True)
    ablate: tuple[str, ...] = subset(*ABLATIONS)

    def check(self) -> None:
        """Raise a SettingsError for settings that cannot be combined."""
        super().check()
        self._check_ablated()
        self._check_alignment()

    def _check_ablated(self) -> None:
        """Refuse settings of a part that is ablated."""
        default: dict[str, Any] = {field.name: field.default for field in fields(self)}
        for name, parts in PARTS_OF_SETTINGS.items():
            ablated = [part for part in parts if part in self.ablate]
            if ablated and getattr(self, name) != default[name]:
                raise SettingsError(
                    f"{name} {getattr(self, name)!r} has no effect, since ablate has {ablated[0]!r}. Leave {name} "
                    f"unset, or remove {ablated[0]!r} from ablate."
                )
        used = self.term_weights()
        for term, weight, usual in zip(TERMS, self.loss_weights, default["loss_weights"], strict=True):
            if term not in used and weight != usual:
                raise SettingsError(
                    f"loss_weights has {weight!r} for {term}, which ablate {self.ablate!r} disables. Its weight must "
                    f"be the default, {usual!r}: restore it, or remove the part from ablate."
                )

    def _check_alignment(self) -> None:
        """Refuse settings that an alignment other than LRA does not use, or whose teacher has no logits."""
        if self.alignment == "lra":
            return
        unused = [f"ablate {part!r}" for part in ENHANCEMENT if part in self.ablate]
        if self.alignment_scale != SCALES[0]:
            unused.append(f"alignment_scale {self.alignment_scale!r}")
        if unused:
            raise SettingsError(
                f"{unused[0]} has no effect on alignment {self.alignment!r}, which does not enhance features. Leave it "
                f"unset, or set alignment to 'lra'."
            )
        if self.alignment == "mlkd" and not self.uses("co_training"):
            raise SettingsError(
                "alignment 'mlkd' needs the teacher's logits, but ablate has 'co_training', which trains its decoder. "
                "Remove it from ablate, or choose another alignment."
            )
        if self.alignment == "mlkd" and self.aligned_stages is not None:
            raise SettingsError(
                f"aligned_stages {self.aligned_stages!r} has no effect on alignment 'mlkd', which compares logits. "
                f"Leave it unset, or choose another alignment."
            )

    def training_module(self, student: Student) -> TinyMIGTraining:
        """The training module, with the teacher, the reprogramming, the teacher's decoder and the alignment."""
        return TinyMIGTraining(self, student)

    @property
    def adapts(self) -> bool:
        """Whether the teacher has adapters, which the labels train."""
        return self.uses("co_training")

    @property
    def needs_teacher(self) -> bool:
        """Whether an enabled part of the method uses the teacher."""
        styled = self.uses("ufdm") and self.statistics == "ufdm"
        return styled or self.uses("lra") or self.uses("co_training")

    @property
    def reprogramming_learns(self) -> bool:
        """Whether a loss trains the reprogramming and, with the labels, the adapters."""
        return self.uses("co_training") or self.enhances

    @property
    def enhances(self) -> bool:
        """Whether frequency-enhanced features are aligned (LRA)."""
        return self.uses("lra") and self.alignment == "lra"

    def uses(self, part: str) -> bool:
        """Whether ``part``, one of `ABLATIONS`, is enabled. Consistency (cdc) requires the styled student (ufdm)."""
        return part not in self.ablate and not (part == "cdc" and "ufdm" in self.ablate)

    def term_weights(self) -> dict[str, float]:
        """The weights of the enabled loss terms, by the names of `TERMS`."""
        part_of = {"segmentation_teacher": "co_training", "segmentation_styled": "ufdm"}
        part_of |= {"alignment": "lra", "consistency": "cdc"}
        weights = zip(TERMS, self.loss_weights, strict=True)
        return {term: weight for term, weight in weights if term not in part_of or self.uses(part_of[term])}
