"""What surrounds the teacher in training: reprogramming to the student's stages, a light decoder, and the alignment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nnunet_dg.errors import SettingsError
from nnunet_dg.tensors import wide
from nnunet_dg.tinymig.alignment import gain, localized_representation_alignment, pool, pooled_shape, scale_free
from nnunet_dg.tinymig.content import FrequencyContentEnhancement
from nnunet_dg.tinymig.decoder import TeacherDecoder
from nnunet_dg.tinymig.reprogramming import FeatureReprogramming
from nnunet_dg.tinymig.teachers import Teacher

MOST_NUMBERS = 2**21  # of a feature, that the alignment enhances at once
REVISION = 2  # of what surrounds the teacher: another number is another method under the same names


class Teaching(nn.Module):
    """The teacher's features as the student's stages have them (X_R), and its own segmentation.

    Args:
        teacher: Gives as many maps as there are stages.
        widths: Channels of the student's stages.
        grids: Grids of the student's stages, from full resolution on; X_R is on their `pooled_shape`.
        outputs: Number of segmentation heads; None: the teacher is not trained by the labels.
    """

    revision: Tensor

    def __init__(
        self, teacher: Teacher, widths: Sequence[int], grids: Sequence[Sequence[int]], outputs: int | None
    ) -> None:
        super().__init__()
        self.teacher = teacher
        self.register_buffer("revision", torch.tensor(REVISION))
        self.reprogramming = nn.ModuleList(
            FeatureReprogramming(given, width, pooled_shape(grid))
            for given, width, grid in zip(teacher.widths, widths, grids, strict=True)
        )
        self.decoder = None if outputs is None else TeacherDecoder(widths, outputs, grids[0])

    def forward(self, image: Tensor) -> tuple[list[Tensor], Tensor | None]:
        """``(B, C, *patch)`` -> X_R, ``(B, widths[i], *pooled_shape(grids[i]))``, and logits ``(B, outputs, *patch)``.

        The logits are None without a decoder.
        """
        maps = self.teacher.features(image)
        reprogrammed = [block(feature) for block, feature in zip(self.reprogramming, maps, strict=True)]
        return reprogrammed, None if self.decoder is None else self.decoder(reprogrammed)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        revision = int(state_dict.get(f"{prefix}revision", 1))
        if revision != REVISION:
            raise SettingsError(
                f"This checkpoint was written by another version of TinyMIG (revision {revision}, now {REVISION}): its "
                f"adapters and reprogramming were built differently. Predict with it, finish its training with the "
                f"version that began it, or start a new training from its network with -pretrained_weights."
            )
        super()._load_from_state_dict(state_dict, prefix, *args)


class ContentAlignment(nn.Module):
    """LRA (eq. 13) of the frequency-enhanced features; one enhancement per stage, for teacher and student alike.

    Of a large stage, what the backward pass needs is computed again then, for a few samples at a time, so that little
    memory is held.

    Args:
        widths: Channels of the stages.
        grids: Grids of the stages; features are pooled first, see `pooled_shape`.
        amplitude: See `FrequencyContentEnhancement`.
        phase: See `FrequencyContentEnhancement`.
        refine: See `FrequencyContentEnhancement`.
        scale: ``"free"``: enhanced features are compared by `scale_free`. ``"paper"``: as they are, which shrinking
            filters can make as small as they like.
    """

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
        self._gains: list[Tensor] = []

    def forward(self, teacher: Sequence[Tensor], student: Sequence[Tensor]) -> Tensor:
        """Features of each stage, ``(B, widths[i], *any)`` -> a scalar, float32; both get a gradient."""
        stages = zip(self.enhance, teacher, student, strict=True)
        terms, gains = zip(*(self._stage(*stage) for stage in stages), strict=True)
        if self.training:
            self._gains.append(torch.stack(gains).mean())
        return torch.stack(terms).mean()

    def _stage(self, enhance: nn.Module, teacher: Tensor, student: Tensor) -> tuple[Tensor, Tensor]:
        """Term and gain of one stage: at once where it is small, otherwise from a few samples at a time."""
        teacher, student = pool(teacher), pool(student)
        samples = max(MOST_NUMBERS // student[0].numel(), 1)
        parts = list(zip(teacher.split(samples), student.split(samples), strict=True))
        sums = [self._part(enhance, *part, again=len(parts) > 1) for part in parts]
        term, gains = (torch.stack(values).sum() / len(student) for values in zip(*sums, strict=True))
        return term, gains

    def _part(self, enhance: nn.Module, teacher: Tensor, student: Tensor, again: bool) -> tuple[Tensor, Tensor]:
        """`_sums`; ``again``: computed a second time in the backward pass."""
        if not again:
            return self._sums(enhance, teacher, student)
        given = enhance, teacher, student  # nothing in it is random
        sums: tuple[Tensor, Tensor] = checkpoint(self._sums, *given, use_reentrant=False, preserve_rng_state=False)
        return sums

    def _sums(self, enhance: nn.Module, teacher: Tensor, student: Tensor) -> tuple[Tensor, Tensor]:
        """Term and gain, added up over samples."""
        given = [wide(teacher), wide(student)]
        enhanced = [enhance(feature) for feature in given]
        with torch.no_grad():
            gains = torch.stack([gain(e, g).mean() for e, g in zip(enhanced, given, strict=True)])
        if self.scale == "free":
            enhanced = [scale_free(e, g) for e, g in zip(enhanced, given, strict=True)]
        term = localized_representation_alignment(enhanced[:1], enhanced[1:])
        return term * len(student), gains.mean() * len(student)

    def take_gain(self) -> float:
        """``std(enhanced) / std(given)``, averaged over stages, channels, and the steps since the last call.

        It says whether the filters shrink what they are to compare. NaN without steps.
        """
        gains, self._gains = self._gains, []
        return float(torch.stack(gains).mean()) if gains else float("nan")
