"""TinyMIG as a method: its settings and its training module."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from nnunet_dg.errors import SettingsError
from nnunet_dg.extractors import with_architecture
from nnunet_dg.extractors.base import SCALINGS
from nnunet_dg.method import Method, Paper, Student, choice, found, number, numbers, subset, text
from nnunet_dg.tinymig.alignment import SCALES
from nnunet_dg.tinymig.consistency import DIVERGENCES
from nnunet_dg.tinymig.modulation import OWN_STATISTICS
from nnunet_dg.tinymig.training import TinyMIGTraining

TERMS = ("segmentation_teacher", "segmentation_styled", "segmentation", "alignment", "consistency")  # l1 ... l5
ABLATIONS = ("ufdm", "cdc", "lra", "amplitude", "phase", "channel_refiner", "co_training")
STATISTICS = ("ufdm", *OWN_STATISTICS)
TEACHER_SCALINGS = (*SCALINGS, "timm")
MOST_WIDTH = 4096


@dataclass(frozen=True)
class TinyMIG(Method):
    """TinyMIG: a foundation model teaches the planned network, which is what is deployed.

    C. Liu, H. Xu, Y. Cao, X. Su, Z. Qu, T. Li, S. An, H. Zhu, TinyMIG: Transferring Generalization from Vision
    Foundation Models to Single-Domain Medical Imaging, ICML 2025, PMLR 267, https://proceedings.mlr.press/v267. Five
    loss terms in place of nnU-Net's loss: labels for the teacher, for the student and for the student in the teacher's
    style, alignment of their content (LRA), and consistency between both passes (CDC). The teacher stays frozen,
    adapters in it train. Voxels outside a mask and padding are shown to it at the minimum of the patch, see
    `nnunet_dg.outside`. The defaults are the method as published, except `alignment_scale`.

    Attributes:
        teacher: ``"anatomix"`` (3-D), ``"nnunet"`` (a trained model folder of the same dimension), or a ViT of timm by
            its name (2-D); ``"random:NAME"``: the same with random weights; null: one of `DEFAULT_TEACHERS`.
        weights: a checkpoint file for the teacher (MedSAM's for ``"samvit_base_patch16"``), or for `nnunet` the model
            folder; null: the published file. Read whenever a training starts or goes on.
        teacher_scaling: What the teacher gets, per patch: ``"minmax"``, [0, 1], as MedSAM was trained; ``"zscore"``, as
            most nnU-Nets are trained; ``"timm"``, for ViTs of timm, the mean and deviation of their training images
            after min-max (SAM, DINOv2); null: ``"timm"`` for a ViT, ``"minmax"`` for any other.
        architecture: of the network in the model folder of `nnunet`; `completed` reads it.
        adapter_width: Hidden width of the bottleneck adapters; null: a quarter of the width of their block, at least 4.
        loss_weights: of the teacher's segmentation loss, the styled student's, the student's, of alignment and
            consistency: l1 ... l5, all positive.
        statistics: what gives the styled features their mean and deviation, one of `STATISTICS` (table 5).
        divergence: of the consistency, one of `DIVERGENCES` (table 8).
        alignment_scale: How enhanced features are compared. ``"free"``: each brought to zero mean and unit RMS per
            sample and channel first. ``"paper"``: as they are (eq. 13), which the filters learn to shrink.
        ablate: what is left out (tables 4 and 6), names of `ABLATIONS`. With neither alignment nor co-training nothing
            trains the reprogramming, and the styles are those of the teacher's features in random combination.

    Raises:
        SettingsError: A value that is not accepted, by name.
    """

    key: ClassVar[str] = "tinymig"
    slot: ClassVar[str] = "distillation"
    paper: ClassVar[Paper] = Paper(
        "TinyMIG: Transferring Generalization from Vision Foundation Models to Single-Domain Medical Imaging",
        "Chuang Liu, Hongyan Xu, Yichao Cao, Xiu Su, Zhe Qu, Tianfa Li, Shan An, Haogang Zhu",
        "Proceedings of the 42nd International Conference on Machine Learning, PMLR 267",
        2025,
        "https://proceedings.mlr.press/v267",
    )

    teacher: str | None = text(None, "a name or a path, or null", lambda value: value.removeprefix("random:") != "")
    weights: str | None = text(None, "a name or a path, or null")
    teacher_scaling: str | None = choice(None, *TEACHER_SCALINGS)
    architecture: dict[str, Any] | None = found("it is read from the model folder")  # noqa: RUF009
    adapter_width: int | None = number(None, 1, MOST_WIDTH, whole=True, null=True)
    loss_weights: tuple[float, ...] = numbers((1.0, 1.0, 0.5, 0.5, 0.5), TERMS, "to leave one out, ablate its part")
    statistics: str = choice(*STATISTICS)
    divergence: str = choice(*DIVERGENCES)
    alignment_scale: str = choice(*SCALES)
    ablate: tuple[str, ...] = subset(*ABLATIONS)

    def check(self) -> None:
        """Refuse settings that do not fit a random teacher."""
        if self.teacher == "random:nnunet":
            raise SettingsError(
                "teacher 'random:nnunet' has no architecture: set teacher to nnunet and weights to a folder."
            )
        if self.random and self.weights is not None:
            raise SettingsError(
                f"teacher {self.teacher!r} has random weights: leave weights unset; got {self.weights!r}."
            )

    def training_module(self, student: Student) -> TinyMIGTraining:
        """Teacher, reprogramming, its decoder, and the alignment."""
        return TinyMIGTraining(self, student)

    @property
    def random(self) -> bool:
        """Whether the teacher was asked for with random weights."""
        return self.teacher is not None and self.teacher.startswith("random:")

    @property
    def needs_teacher(self) -> bool:
        """Whether anything of what is not left out asks the teacher."""
        styled = self.uses("ufdm") and self.statistics == "ufdm"
        return styled or self.uses("lra") or self.uses("co_training")

    def uses(self, part: str) -> bool:
        """Whether ``part``, one of `ABLATIONS`, is there. Without a styled student, there is no consistency with it."""
        return part not in self.ablate and not (part == "cdc" and "ufdm" in self.ablate)

    def term_weights(self) -> dict[str, float]:
        """The weights of the loss terms that are there, by the names of `TERMS`."""
        part_of = {"segmentation_teacher": "co_training", "segmentation_styled": "ufdm"}
        part_of |= {"alignment": "lra", "consistency": "cdc"}
        weights = zip(TERMS, self.loss_weights, strict=True)
        return {term: weight for term, weight in weights if term not in part_of or self.uses(part_of[term])}

    def completed(self, earlier: TinyMIG | None = None) -> TinyMIG:
        """With the architecture of the teacher's model folder, see `with_architecture`."""
        return with_architecture(self, self.teacher or "", earlier)
