"""What can be set about TinyMIG, and what is accepted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nnunet_dg.errors import SettingsError
from nnunet_dg.extractors import with_architecture
from nnunet_dg.extractors.base import SCALINGS
from nnunet_dg.tinymig.alignment import SCALES
from nnunet_dg.tinymig.consistency import DIVERGENCES
from nnunet_dg.tinymig.modulation import OWN_STATISTICS

TERMS = ("segmentation_teacher", "segmentation_styled", "segmentation", "alignment", "consistency")  # l1 ... l5
ABLATIONS = ("ufdm", "cdc", "lra", "amplitude", "phase", "channel_refiner", "co_training")
STATISTICS = ("ufdm", *OWN_STATISTICS)
TEACHER_SCALINGS = (*SCALINGS, "timm")
CHOICES = {"statistics": STATISTICS, "divergence": tuple(DIVERGENCES), "alignment_scale": SCALES}
MOST_WIDTH, MOST_WEIGHT = 4096, 1e6
DEFAULT_TEACHERS = {2: "samvit_base_patch16.sa1b", 3: "anatomix"}


@dataclass(frozen=True)
class TinyMIGSettings:
    """Settings of TinyMIG (ICML 2025). The defaults are the method as published, except `alignment_scale`.

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

    teacher: str | None = None
    weights: str | None = None
    teacher_scaling: str | None = None
    architecture: dict[str, Any] | None = None
    adapter_width: int | None = None
    loss_weights: tuple[float, ...] = (1.0, 1.0, 0.5, 0.5, 0.5)
    statistics: str = "ufdm"
    divergence: str = "kl"
    alignment_scale: str = "free"
    ablate: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("teacher", "weights"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, str) and value.removeprefix("random:")):
                raise SettingsError(f"{name} must be a name or a path, or null; got {value!r}.")
        if self.teacher == "random:nnunet":
            raise SettingsError(
                "teacher 'random:nnunet' has no architecture: set teacher to nnunet and weights to a folder."
            )
        if self.random and self.weights is not None:
            raise SettingsError(
                f"teacher {self.teacher!r} has random weights: leave weights unset; got {self.weights!r}."
            )
        if self.architecture is not None and not isinstance(self.architecture, dict):
            raise SettingsError(
                f"architecture is read from the model folder: leave it unset; got {self.architecture!r}."
            )
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise SettingsError(f"{name} must be one of {', '.join(choices)}; got {getattr(self, name)!r}.")
        self._check_adapters_and_scaling()
        self._check_loss_weights()
        self._check_ablate()

    def _check_adapters_and_scaling(self) -> None:
        width, scaling = self.adapter_width, self.teacher_scaling
        whole = isinstance(width, int) and not isinstance(width, bool)
        if width is not None and not (whole and 1 <= width <= MOST_WIDTH):
            raise SettingsError(f"adapter_width must be a whole number from 1 to {MOST_WIDTH}, or null; got {width!r}.")
        if scaling is not None and scaling not in TEACHER_SCALINGS:
            accepted = ", ".join(TEACHER_SCALINGS)
            raise SettingsError(f"teacher_scaling must be one of {accepted}, or null; got {scaling!r}.")

    def _check_loss_weights(self) -> None:
        given = self.loss_weights
        numbers = isinstance(given, (list, tuple)) and all(
            isinstance(w, (int, float)) and not isinstance(w, bool) and 0 < w <= MOST_WEIGHT for w in given
        )
        if not numbers or len(given) != len(TERMS):
            raise SettingsError(
                f"loss_weights must be {len(TERMS)} positive numbers, of {', '.join(TERMS)}, each at most "
                f"{MOST_WEIGHT:g}; got {given!r}. To leave one out, ablate its part."
            )
        object.__setattr__(self, "loss_weights", tuple(float(w) for w in given))  # JSON has no tuples

    def _check_ablate(self) -> None:
        given = self.ablate
        if not isinstance(given, (list, tuple)) or any(part not in ABLATIONS for part in given):
            raise SettingsError(f"ablate must be a list of {', '.join(ABLATIONS)}; got {given!r}.")
        object.__setattr__(self, "ablate", tuple(sorted(set(given))))

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

    def completed(self, earlier: TinyMIGSettings | None = None) -> TinyMIGSettings:
        """With the architecture of the teacher's model folder, see `with_architecture`."""
        return with_architecture(self, self.teacher or "", earlier)
