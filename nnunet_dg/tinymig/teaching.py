"""The modules around the teacher: reprogramming to the student's stages, a light decoder, and the alignment.

TinyMIG: Transferring Generalization from Vision Foundation Models to Single-Domain Medical Imaging, ICML 2025,
https://proceedings.mlr.press/v267.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nnunet_dg.errors import VersionError
from nnunet_dg.tinymig.alignment import pool, pooled_shape
from nnunet_dg.tinymig.content import FrequencyContentEnhancement
from nnunet_dg.tinymig.decoder import TeacherDecoder
from nnunet_dg.tinymig.reprogramming import FeatureReprogramming
from nnunet_dg.tinymig.spectral import alignment, enhanced_spectrum
from nnunet_dg.tinymig.teachers import Teacher

MOST_NUMBERS = 2**21  # elements of a feature that the alignment enhances at once
REVISION = 2  # increased when the modules around the teacher change but their parameters keep their names


class Taught(NamedTuple):
    """What a teacher says about a batch.

    Attributes:
        features: X_R, one ``(B, widths[i], *pooled_shape(grids[i]))`` per stage.
        logits: Logits of the teacher's decoder, ``(B, outputs, *patch)``; None without a decoder.
        maps: The teacher's own maps, one ``(B, teacher.widths[i], *any)`` per stage.
    """

    features: list[Tensor]
    logits: Tensor | None
    maps: list[Tensor]


class Teaching(nn.Module):
    """Computes the teacher's features in the width and grid of the student's stages (X_R), and its segmentation.

    Args:
        teacher: Teacher, with one map per stage.
        widths: Number of channels of each student stage.
        grids: Spatial shape of each student stage, from full resolution on; X_R has their `pooled_shape`.
        outputs: Number of segmentation heads; None: the labels do not train the teacher.
    """

    revision: Tensor

    def __init__(
        self, teacher: Teacher, widths: Sequence[int], grids: Sequence[Sequence[int]], outputs: int | None
    ) -> None:
        super().__init__()
        self.teacher = teacher
        self.register_buffer("revision", torch.tensor(REVISION))
        self.reprogramming = nn.ModuleList(
            FeatureReprogramming(teacher_width, width, pooled_shape(grid))
            for teacher_width, width, grid in zip(teacher.widths, widths, grids, strict=True)
        )
        self.decoder = None if outputs is None else TeacherDecoder(widths, outputs, grids[0])

    def forward(self, image: Tensor) -> Taught:
        """X_R, the logits and the maps of the teacher for images ``(B, C, *patch)``."""
        maps = self.teacher.features(image)
        reprogrammed = [block(feature) for block, feature in zip(self.reprogramming, maps, strict=True)]
        return Taught(reprogrammed, None if self.decoder is None else self.decoder(reprogrammed), maps)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        revision = int(state_dict.get(f"{prefix}revision", 1))
        if revision != REVISION:
            raise VersionError(
                f"This checkpoint was written by another version of TinyMIG (revision {revision}, now {REVISION}), "
                f"whose adapters and reprogramming differ. Predict with it, finish its training with the version that "
                f"started it, or start a new training from its network with -pretrained_weights."
            )
        super()._load_from_state_dict(state_dict, prefix, *args)


class ContentAlignment(nn.Module):
    """LRA (eq. 13) of frequency-enhanced features. Teacher and student share one enhancement per stage.

    To save memory, large stages are processed a few samples at a time, and their intermediate results are recomputed in
    the backward pass.

    Args:
        widths: Number of channels of each stage.
        grids: Spatial shape of each stage; features are pooled first, see `pooled_shape`.
        amplitude: Whether the amplitude is filtered, see `FrequencyContentEnhancement`; default True.
        phase: Whether the phase is filtered; default True.
        refine: Whether channels are weighted; default True.
        scale: ``"free"``: enhanced features are compared with zero mean and unit RMS, see `spectral`. ``"paper"``: they
            are compared without normalization, so that the filters can reduce the loss by shrinking them.

    Attributes:
        gain: Sum of the gains of the steps since `take_gain`, and their number.
    """

    gain: Tensor

    def __init__(
        self,
        widths: Sequence[int],
        grids: Sequence[Sequence[int]],
        amplitude: bool = True,
        phase: bool = True,
        refine: bool = True,
        scale: str = "free",
    ) -> None:
        super().__init__()
        self.scale = scale
        self.enhance = nn.ModuleList(
            FrequencyContentEnhancement(width, pooled_shape(grid), amplitude, phase, refine)
            for width, grid in zip(widths, grids, strict=True)
        )
        self.register_buffer("gain", torch.zeros(2), persistent=False)

    def forward(self, teacher: Sequence[Tensor], student: Sequence[Tensor]) -> Tensor:
        """Features of each stage, ``(B, widths[i], *any)`` -> the loss, a scalar. Both features get a gradient."""
        stages = zip(self.enhance, teacher, student, strict=True)
        terms, gains = zip(*(self._stage(*stage) for stage in stages), strict=True)
        if self.training:
            mean = torch.stack(gains).mean()
            self.gain += torch.stack([mean, torch.ones_like(mean)])
        return torch.stack(terms).mean()

    def _stage(self, enhance: nn.Module, teacher: Tensor, student: Tensor) -> tuple[Tensor, Tensor]:
        """Term and gain of one stage; a large stage is processed a few samples at a time."""
        teacher, student = pool(teacher), pool(student)
        samples = max(MOST_NUMBERS // student[0].numel(), 1)
        parts = list(zip(teacher.split(samples), student.split(samples), strict=True))
        sums = [self._part(enhance, *part, recompute=len(parts) > 1) for part in parts]
        term, gains = (torch.stack(values).sum() / len(student) for values in zip(*sums, strict=True))
        return term, gains

    def _part(self, enhance: nn.Module, teacher: Tensor, student: Tensor, recompute: bool) -> tuple[Tensor, Tensor]:
        """`_sums`; with ``recompute``, intermediate results are recomputed in the backward pass."""
        if not recompute:
            return self._sums(enhance, teacher, student)
        arguments = enhance, teacher, student  # `_sums` draws no random numbers, so their state is not kept
        sums: tuple[Tensor, Tensor] = checkpoint(self._sums, *arguments, use_reentrant=False, preserve_rng_state=False)
        return sums

    def _sums(self, enhance: Any, teacher: Tensor, student: Tensor) -> tuple[Tensor, Tensor]:
        """Term and gain, summed over samples."""
        sides = [enhanced_spectrum(enhance, feature) for feature in (teacher, student)]
        gain = torch.stack([side.gain.detach().mean() for side in sides]).mean()
        term = alignment(sides[0], sides[1], student.shape[2:], self.scale)
        return term * len(student), gain * len(student)

    def take_gain(self) -> float:
        """``std(enhanced) / std(given)``, averaged over stages, channels, and the steps since the last call.

        Values far below 1 mean that the filters shrink the features. Without steps it is NaN.
        """
        total, steps = self.gain.tolist()
        self.gain.zero_()
        return total / steps if steps else float("nan")
