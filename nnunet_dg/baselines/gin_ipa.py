"""GIN+IPA: two random versions of an image are blended by a smooth random mask, and three versions should agree.

C. Ouyang, C. Chen, S. Li, Z. Li, C. Qin, W. Bai, D. Rueckert, Causality-inspired Single-source Domain Generalization
for Medical Image Segmentation, IEEE Transactions on Medical Imaging 42(4), 2022, https://arxiv.org/abs/2111.12525.
IPA is interventional pseudo-correlation augmentation, section III-C.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from nnunet_dg.baselines.gin import GIN, random_view
from nnunet_dg.mechanisms.bspline import spline_field
from nnunet_dg.mechanisms.views import ViewsTraining, view_divergences
from nnunet_dg.method import Student, flag, number
from nnunet_dg.tensors import minmax

CLOSEST = 2  # smallest distance between control points along an axis, in voxels


def control_spacing(distance: int, voxel_size: Sequence[float]) -> tuple[int, ...]:
    """The distance between control points along each axis, in voxels: equal in millimeters, and at least 2.

    Args:
        distance: Distance along the axis with the smallest voxels.
        voxel_size: Size of a voxel along each axis.

    >>> control_spacing(16, voxel_size=(5.0, 1.0, 1.0))
    (3, 16, 16)
    """
    finest = min(voxel_size)
    return tuple(max(CLOSEST, round(distance * finest / size)) for size in voxel_size)


def draw_control(
    samples: int, spacing: Sequence[int], shape: Sequence[int], device: torch.device | None = None
) -> Tensor:
    """Control points from N(0, 1), divided by their Euclidean norm per sample; one is beyond each end of an axis.

    Args:
        samples: Number of samples, B.
        spacing: Distance between control points along each axis, in voxels.
        shape: Spatial shape of the images.
        device: Device on which they are drawn; None: PyTorch's default.

    Returns:
        ``(B, *points)``.

    >>> draw_control(2, spacing=(16, 16), shape=(64, 40)).shape
    torch.Size([2, 6, 5])
    """
    points = [math.ceil(size / distance) + 2 for size, distance in zip(shape, spacing, strict=True)]
    control = torch.randn(samples, *points, device=device)
    return control / control.flatten(1).norm(dim=1).reshape(-1, *[1] * len(points))


@torch.no_grad()
def blending_mask(control: Tensor, spacing: Sequence[int], shape: Sequence[int]) -> Tensor:
    """The exponential of a B-spline field, scaled to [0, 1] per sample; 0.5 where the field is constant.

    The paper's rescaling to [0.7, 1.3] in between has no effect on the result.

    Args:
        control: Control points, ``(B, *points)``, see `draw_control`.
        spacing: Distance between control points along each axis, in voxels.
        shape: Spatial shape of the images.

    Returns:
        ``(B, 1, *shape)``, the same for all channels, in at least float32, without gradient.

    >>> mask = blending_mask(draw_control(1, (4, 4), (16, 16)), (4, 4), (16, 16))
    >>> mask.shape, mask.min().item(), mask.max().item()
    (torch.Size([1, 1, 16, 16]), 0.0, 1.0)
    """
    field = spline_field(control, spacing, shape)[:, None].exp()
    axes = tuple(range(2, field.ndim))
    constant = field.amax(axes, keepdim=True) == field.amin(axes, keepdim=True)
    return minmax(field).masked_fill(constant, 0.5)


def blend(first: Tensor, second: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """``mask * first + (1 - mask) * second``, and the same with the two images exchanged.

    Args:
        first: Images, ``(B, C, *spatial)``.
        second: Images of the same shape.
        mask: Mask ``(B, 1, *spatial)``, in [0, 1].

    >>> blend(torch.tensor([[[1.0]]]), torch.tensor([[[3.0]]]), torch.tensor([[[0.25]]]))
    (tensor([[[2.5000]]]), tensor([[[1.5000]]]))
    """
    mask = mask.to(first.dtype)
    return mask * first + (1 - mask) * second, (1 - mask) * first + mask * second


@dataclass(frozen=True)
class GIN_IPA(GIN):
    """GIN+IPA: two of GIN's versions of an image are blended by a random mask; the prediction of three should agree.

    C. Ouyang, C. Chen, S. Li, Z. Li, C. Qin, W. Bai, D. Rueckert, Causality-inspired Single-source Domain
    Generalization for Medical Image Segmentation, IEEE Transactions on Medical Imaging 42(4), 2022,
    https://arxiv.org/abs/2111.12525. The blended images are trained with nnU-Net's loss. The images with the blend
    exchanged and a third, unblended version enter only the consistency: the divergence from the mean prediction of the
    three, ``KL(mean || view)``, averaged over views, voxels and, as in the reference, network outputs. The reference is
    2-D, with control points every 48 of 192 pixels.

    Memory and time of a step are about three times those of nnU-Net. Plan with a third of the GPU memory
    (``-gpu_memory_target``).

    Attributes:
        layers: Number of random convolutions.
        hidden: Number of channels between the convolutions.
        keep_outside: Whether voxels outside a mask and zero padding stay zero, as they are at inference;
            otherwise they are changed as well (as published).
        consistency: Weight of the consistency; 0: only blended images are trained, in a single pass.
        spacing: Distance between the mask's control points along the axis with the smallest voxels, in voxels. Along
            other axes, it is the same distance in millimeters, and at least 2 voxels.
    """

    key: ClassVar[str] = "gin_ipa"

    layers: int = number(4, 1, 64, whole=True)
    hidden: int = number(2, 1, 1024, whole=True)
    keep_outside: bool = flag(True)
    consistency: float = number(10.0, 0)
    spacing: int = number(16, CLOSEST, 1024, whole=True)

    def training_module(self, student: Student) -> GINIPATraining:  # type: ignore[override]
        """The training module, which makes the views and computes the consistency."""
        return GINIPATraining(self, student)


class GINIPATraining(ViewsTraining):
    """Blends GIN's versions of the images of every batch, and trains their agreement.

    Args:
        settings: Settings, see `GIN_IPA`.
        student: Network in training.
    """

    def __init__(self, settings: GIN_IPA, student: Student) -> None:
        super().__init__(student, settings.consistency)
        self.settings = settings

    def views(self, images: Tensor) -> Iterator[Tensor]:
        """The two blends of two of GIN's versions, then an unblended version."""
        shape = images.shape[2:]
        spacing = control_spacing(self.settings.spacing, self.student.voxel_size)
        mask = blending_mask(draw_control(len(images), spacing, shape, images.device), spacing, shape)
        first, second = (random_view(images, self.settings, self.student.outside) for _ in range(2))
        yield from blend(first, second, mask)
        yield random_view(images, self.settings, self.student.outside)

    def disagreement(self, logits: list[Tensor]) -> Tensor:
        """The divergence of the mean prediction from each view's, averaged over views, voxels and outputs."""
        return view_divergences(logits, self.student.regions).mean() / self.student.num_outputs
