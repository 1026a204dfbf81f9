"""Settings of a teacher, which TinyMIG and the teacher as a model of its own share.

TinyMIG: Transferring Generalization from Vision Foundation Models to Single-Domain Medical Imaging, ICML 2025,
https://proceedings.mlr.press/v267.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

from nnunet_dg.errors import SettingsError
from nnunet_dg.extractors import with_architecture
from nnunet_dg.extractors.base import SCALINGS
from nnunet_dg.method import Method, Paper, choice, found, number, text

TEACHER_SCALINGS = (*SCALINGS, "timm")
MOST_WIDTH = 4096
PAPER = Paper(
    "TinyMIG: Transferring Generalization from Vision Foundation Models to Single-Domain Medical Imaging",
    "Chuang Liu, Hongyan Xu, Yichao Cao, Xiu Su, Zhe Qu, Tianfa Li, Shan An, Haogang Zhu",
    "Proceedings of the 42nd International Conference on Machine Learning, PMLR 267",
    2025,
    "https://proceedings.mlr.press/v267",
)
T = TypeVar("T", bound="TeacherSettings")


@dataclass(frozen=True)
class TeacherSettings(Method):
    """Base of the methods that have a frozen foundation model with small trainable adapters.

    Attributes:
        teacher: Name of the teacher: ``"anatomix"`` (3-D), ``"synthetic"`` (2-D, 3-D, included), ``"nnunet"`` (a
            trained model folder of the same dimension) or the name of a ViT in timm (2-D). ``"random:NAME"`` is the
            same model with random weights. None: ``"samvit_base_patch16.sa1b"`` in 2-D and ``"anatomix"`` in 3-D.
        weights: Checkpoint file of the teacher (MedSAM's for ``"samvit_base_patch16"``), or for `nnunet` the model
            folder; None: the published or included file. It is read whenever a training starts or resumes.
        teacher_scaling: Scaling of each patch before the teacher: ``"minmax"`` to [0, 1], with which MedSAM was
            trained; ``"zscore"``, with which most nnU-Nets are trained; or ``"timm"``, for ViTs in timm (SAM, DINOv2),
            min-max followed by the mean and deviation of their training images. None: ``"timm"`` for a ViT and
            ``"minmax"`` for other teachers.
        architecture: Architecture of the network in the model folder of `nnunet`; filled in when a training starts.
        adapter_width: Hidden width of the bottleneck adapters; None: a quarter of their block's width, at least 4.
    """

    teacher: str | None = text(None, "a name or a path, or null", lambda value: value.removeprefix("random:") != "")
    weights: str | None = text(None, "a name or a path, or null")
    teacher_scaling: str | None = choice(None, *TEACHER_SCALINGS)
    architecture: dict[str, Any] | None = found("it is read from the model folder")  # noqa: RUF009
    adapter_width: int | None = number(None, 1, MOST_WIDTH, whole=True, null=True)

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

    @property
    def random(self) -> bool:
        """Whether the settings name a teacher with random weights."""
        return self.teacher is not None and self.teacher.startswith("random:")

    @property
    def adapts(self) -> bool:
        """Whether the teacher has adapters, which the labels train."""
        return True

    def completed(self: T, earlier: T | None = None) -> T:
        """The settings, with the architecture of the teacher's model folder filled in, see `with_architecture`."""
        return with_architecture(self, self.teacher or "", earlier)
