"""TinyMIG as a method: its settings and its training module.

C. Liu, H. Xu, Y. Cao, X. Su, Z. Qu, T. Li, S. An, H. Zhu, TinyMIG: Transferring Generalization from Vision Foundation
Models to Single-Domain Medical Imaging, ICML 2025, https://proceedings.mlr.press/v267.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from nnunet_dg.errors import SettingsError
from nnunet_dg.extractors import with_architecture
from nnunet_dg.extractors.base import SCALINGS
from nnunet_dg.method import PLACES, Method, Paper, Student, choice, found, number, numbers, subset, text
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
    """TinyMIG: a foundation model teaches the planned network. Only the planned network is used for inference.

    C. Liu, H. Xu, Y. Cao, X. Su, Z. Qu, T. Li, S. An, H. Zhu, TinyMIG: Transferring Generalization from Vision
    Foundation Models to Single-Domain Medical Imaging, ICML 2025, PMLR 267, https://proceedings.mlr.press/v267. Five
    terms replace nnU-Net's loss: the segmentation losses of the teacher, of the student and of the student with the
    teacher's feature statistics (the styled pass), the alignment of their content (LRA), and the consistency of both
    passes (CDC). The teacher is frozen except for small adapters. It sees padding and voxels outside a mask at the
    minimum of the patch, see `nnunet_dg.outside`. The defaults are the method as published, except for
    `alignment_scale`.

    Attributes:
        teacher: Name of the teacher: ``"anatomix"`` (3-D), ``"nnunet"`` (a trained model folder of the same dimension)
            or the name of a ViT in timm (2-D). ``"random:NAME"`` is the same model with random weights. None:
            ``"samvit_base_patch16.sa1b"`` in 2-D and ``"anatomix"`` in 3-D.
        weights: Checkpoint file of the teacher (MedSAM's for ``"samvit_base_patch16"``), or for `nnunet` the model
            folder; None: the published file. It is read whenever a training starts or resumes.
        teacher_scaling: Scaling of each patch before the teacher: ``"minmax"`` to [0, 1], with which MedSAM was
            trained; ``"zscore"``, with which most nnU-Nets are trained; or ``"timm"``, for ViTs in timm (SAM, DINOv2),
            min-max followed by the mean and deviation of their training images. None: ``"timm"`` for a ViT and
            ``"minmax"`` for other teachers.
        architecture: Architecture of the network in the model folder of `nnunet`; filled in when a training starts.
        adapter_width: Hidden width of the bottleneck adapters; None: a quarter of their block's width, at least 4.
        loss_weights: Weights l1 ... l5 of the teacher's segmentation loss, the styled student's, the student's, the
            alignment and the consistency.
        statistics: Source of the mean and deviation of the styled features (table 5): ``"ufdm"`` takes those of the
            teacher's features or random ones, the others change the student's own.
        at: Place at which the styled pass changes features: the output of the first two stages (as published), or the
            input of their last non-linearity, where the mean has an effect in networks with instance norm as well.
        divergence: Divergence between the two predictions in the consistency term (table 8).
        alignment_scale: How enhanced features are compared. ``"free"``: after normalizing each to zero mean and unit
            RMS per sample and channel. ``"paper"``: without normalization (eq. 13), so that the filters can reduce the
            loss by shrinking the features.
        ablate: Parts of the method that are disabled (tables 4 and 6). If both lra and co_training are
            disabled, the reprogramming is not trained, and styles are random combinations of the teacher's features.

    Raises:
        SettingsError: A setting has a value that is not accepted. The message names the setting.
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
    at: str = choice(*PLACES)
    divergence: str = choice(*DIVERGENCES)
    alignment_scale: str = choice(*SCALES)
    ablate: tuple[str, ...] = subset(*ABLATIONS)

    def check(self) -> None:
        """Raise a SettingsError for settings that do not fit a random teacher."""
        if self.teacher == "random:nnunet":
            raise SettingsError(
                "teacher 'random:nnunet' has no architecture: set teacher to nnunet and weights to a model folder."
            )
        if self.random and self.weights is not None:
            raise SettingsError(
                f"teacher {self.teacher!r} has random weights: leave weights unset; got {self.weights!r}."
            )

    def training_module(self, student: Student) -> TinyMIGTraining:
        """The training module, with the teacher, the reprogramming, the teacher's decoder and the alignment."""
        return TinyMIGTraining(self, student)

    @property
    def random(self) -> bool:
        """Whether the settings name a teacher with random weights."""
        return self.teacher is not None and self.teacher.startswith("random:")

    @property
    def needs_teacher(self) -> bool:
        """Whether an enabled part of the method uses the teacher."""
        styled = self.uses("ufdm") and self.statistics == "ufdm"
        return styled or self.uses("lra") or self.uses("co_training")

    def uses(self, part: str) -> bool:
        """Whether ``part``, one of `ABLATIONS`, is enabled. Consistency (cdc) requires the styled student (ufdm)."""
        return part not in self.ablate and not (part == "cdc" and "ufdm" in self.ablate)

    def term_weights(self) -> dict[str, float]:
        """The weights of the enabled loss terms, by the names of `TERMS`."""
        part_of = {"segmentation_teacher": "co_training", "segmentation_styled": "ufdm"}
        part_of |= {"alignment": "lra", "consistency": "cdc"}
        weights = zip(TERMS, self.loss_weights, strict=True)
        return {term: weight for term, weight in weights if term not in part_of or self.uses(part_of[term])}

    def completed(self, earlier: TinyMIG | None = None) -> TinyMIG:
        """The settings, with the architecture of the teacher's model folder filled in, see `with_architecture`."""
        return with_architecture(self, self.teacher or "", earlier)
