"""The adapted teacher as the model itself, with which table 3 of TinyMIG compares the student.

TinyMIG: Transferring Generalization from Vision Foundation Models to Single-Domain Medical Imaging, ICML 2025,
https://proceedings.mlr.press/v267.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from nnunet_dg.errors import SettingsError
from nnunet_dg.method import Inputs, Paper
from nnunet_dg.outside import Outside
from nnunet_dg.step import stage_grids
from nnunet_dg.tinymig.teacher_settings import PAPER, TeacherSettings
from nnunet_dg.tinymig.teachers import build_teacher, load_teacher
from nnunet_dg.tinymig.teaching import Teaching
from nnunet_dg.tinymig.training import MOST_DEPTHS


@dataclass(frozen=True)
class Teacher(TeacherSettings):
    """TinyMIG's teacher without a student: its adapters, reprogramming and decoder are trained, and it predicts.

    C. Liu, H. Xu, Y. Cao, X. Su, Z. Qu, T. Li, S. An, H. Zhu, TinyMIG: Transferring Generalization from Vision
    Foundation Models to Single-Domain Medical Imaging, ICML 2025, PMLR 267, https://proceedings.mlr.press/v267. Table 3
    there compares the student with fine-tuned foundation models. They are systems of their own; this is the teacher
    from which the student learns, trained by nnU-Net's loss. It shows whether the student is as good as its teacher.
    The frozen model is part of the checkpoint, so predicting needs no further file. There is no deep supervision.
    """

    key: ClassVar[str] = "teacher"
    slot: ClassVar[str] = "network"
    changes_network: ClassVar[bool] = True
    deep_supervision: ClassVar[bool] = False
    paper: ClassVar[Paper] = PAPER

    def build_network(self, build: Callable[[int], nn.Module], inputs: Inputs) -> TeacherNetwork:
        """The teacher with its decoder, in place of the planned network, whose widths and grids it keeps.

        Raises:
            SettingsError: The configuration is the second stage of a cascade, the planned network has no stages, or the
                teacher is unknown or does not fit the patch size.
            DimensionError: The teacher and the configuration have different dimensions.
        """
        if inputs.channels != inputs.image_channels:
            raise SettingsError(
                "A teacher sees images only, but this configuration has the segmentation of a cascade's previous stage "
                "as well. Train a configuration without it, such as 3d_fullres."
            )
        encoder: Any = getattr(build(inputs.channels), "encoder", None)
        if encoder is None:
            raise SettingsError(
                "The plans' network has no encoder whose widths the teacher could keep. Use plans of nnU-Net's planner."
            )
        widths, grids = encoder.output_channels, stage_grids(inputs.patch_size, encoder.strides)
        teacher = build_teacher(self, inputs.patch_size, min(MOST_DEPTHS, len(widths)))
        depths = len(teacher.widths)
        teaching = Teaching(teacher, widths[:depths], grids[:depths], inputs.outputs)
        return TeacherNetwork(teaching, inputs.outside)

    def prepare_network(self, network: nn.Module, log: Callable[[str], None]) -> None:
        """Load the teacher's frozen weights, unless a checkpoint contained them, and log where they come from.

        Raises:
            WeightsError: The file is missing, cannot be fetched, is damaged, or is of another model.
        """
        for module in network.modules():
            if isinstance(module, TeacherNetwork):
                teacher = module.teaching.teacher
                loaded = teacher.has_weights
                log("Teacher: weights from the checkpoint" if loaded else load_teacher(teacher, self, module.dims))


class TeacherNetwork(nn.Module):
    """``(B, C, *patch)`` -> logits ``(B, K, *patch)`` of the teacher's decoder.

    Unlike in TinyMIG, the frozen model is part of the state dict.

    Args:
        teaching: Teacher, reprogramming and decoder.
        outside: Meaning of exact zeros in the images; the teacher sees the minimum of the patch there.
    """

    def __init__(self, teaching: Teaching, outside: Outside) -> None:
        super().__init__()
        self.teaching, self.outside = teaching, outside
        self.frozen = teaching.teacher.frozen
        self.register_load_state_dict_post_hook(_notice_weights)

    @property
    def decoder(self) -> nn.Module | None:
        """The teacher's decoder. nnU-Net toggles deep supervision on it, which has no effect."""
        return self.teaching.decoder

    @property
    def dims(self) -> int:
        """Number of spatial axes."""
        return len(self.teaching.teacher.multiple)

    def train(self, mode: bool = True) -> TeacherNetwork:
        """Set training mode, in which the frozen model stays in eval mode."""
        super().train(mode)
        self.frozen.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.teaching(self.outside.to_minimum(x)).logits
        return logits


def _notice_weights(network: TeacherNetwork, _: Any) -> None:
    """A state dict contains the frozen weights if the fingerprint of the teacher is not 0."""
    teacher = network.teaching.teacher
    teacher.has_weights = bool(teacher.fingerprint != 0)
