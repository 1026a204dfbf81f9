"""What surrounds the teacher in training: reprogramming to the student's stages, a light decoder, and the alignment."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from nnunet_dg.tinymig.alignment import localized_representation_alignment, pool, pooled_shape
from nnunet_dg.tinymig.content import FrequencyContentEnhancement
from nnunet_dg.tinymig.decoder import TeacherDecoder
from nnunet_dg.tinymig.reprogramming import FeatureReprogramming
from nnunet_dg.tinymig.teachers import Teacher


class Teaching(nn.Module):
    """The teacher's features as the student's stages have them (X_R), and its own segmentation.

    Args:
        teacher: gives as many maps as there are stages.
        widths: of the student's stages.
        grids: of the student's stages, from full resolution on.
        outputs: segmentation heads; None: the teacher is not trained by the labels.
    """

    def __init__(
        self, teacher: Teacher, widths: Sequence[int], grids: Sequence[Sequence[int]], outputs: int | None
    ) -> None:
        super().__init__()
        self.teacher = teacher
        self.reprogramming = nn.ModuleList(
            FeatureReprogramming(given, width, grid)
            for given, width, grid in zip(teacher.widths, widths, grids, strict=True)
        )
        self.decoder = None if outputs is None else TeacherDecoder(len(grids[0]), widths, outputs)

    def forward(self, image: Tensor) -> tuple[list[Tensor], Tensor | None]:
        """``(B, C, *patch)`` -> X_R, ``(B, widths[i], *grids[i])`` of stage i, and logits ``(B, outputs, *patch)``."""
        maps = self.teacher.features(image)
        reprogrammed = [block(feature) for block, feature in zip(self.reprogramming, maps, strict=True)]
        return reprogrammed, None if self.decoder is None else self.decoder(reprogrammed)


class ContentAlignment(nn.Module):
    """LRA (eq. 13) of the frequency-enhanced features; one enhancement per stage, for teacher and student alike.

    Args:
        widths: of the stages.
        grids: of the stages; in 3-D features are pooled first, see `pooled_shape`.
        amplitude: see `FrequencyContentEnhancement`, as the next two.
        phase: likewise.
        refine: likewise.
    """

    def __init__(
        self, widths: Sequence[int], grids: Sequence[Sequence[int]], amplitude: bool, phase: bool, refine: bool
    ) -> None:
        super().__init__()
        self.enhance = nn.ModuleList(
            FrequencyContentEnhancement(width, pooled_shape(grid), amplitude, phase, refine)
            for width, grid in zip(widths, grids, strict=True)
        )

    def forward(self, teacher: Sequence[Tensor], student: Sequence[Tensor]) -> Tensor:
        """Features of each stage, ``(B, widths[i], *grids[i])`` -> a scalar; both get a gradient."""
        enhanced = [
            [enhance(pool(feature)) for enhance, feature in zip(self.enhance, features, strict=True)]
            for features in (teacher, student)
        ]
        return localized_representation_alignment(*enhanced)
