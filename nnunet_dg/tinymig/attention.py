"""AttnFD: attention-guided feature distillation, which table 7 of TinyMIG compares with LRA.

A. M. Mansourian, A. Jalali, R. Ahmadi, S. Kasaei, Attention-guided Feature Distillation for Semantic Segmentation,
2024, https://arxiv.org/abs/2403.05451. The attention is that of S. Woo, J. Park, J.-Y. Lee, I. S. Kweon, CBAM:
Convolutional Block Attention Module, ECCV 2018, https://arxiv.org/abs/1807.06521.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nnunet_dg.tensors import wide
from nnunet_dg.tinymig.reprogramming import CONVOLUTIONS, NORMS

WEIGHT = 2.0  # as in the reference implementation
REDUCTION = 16  # of the channel attention, as in CBAM
KERNEL = 7  # of the spatial attention, as in CBAM
EPS = 1e-3  # of the norms: bounds the gradient of constant features, which float16 would turn into infinity


def refined_difference(teacher: Tensor, student: Tensor) -> Tensor:
    """``|s / |s| - t / |t||^2 / B``, where the norms are those of the whole tensors.

    It is computed in at least float32, also under autocast. The gradient flows into both arguments.

    Args:
        teacher: Refined map of the teacher, ``(B, A, *spatial)``.
        student: Refined map of the student, the same shape.

    >>> refined_difference(torch.tensor([[[3.0, 0.0]]]), torch.tensor([[[0.0, 2.0]]])).round(decimals=3)
    tensor(2.)
    """
    with torch.autocast(student.device.type, enabled=False):
        t, s = (wide(x) / wide(x).square().sum().add(EPS**2).sqrt() for x in (teacher, student))
        return (s - t).square().sum() / len(s)


class BlockAttention(nn.Module):
    """CBAM, ``(B, width, *spatial)`` -> the same shape: weights of the channels, then weights of the voxels.

    The channels' weights are the sigmoid of a shared two-layer perceptron of their mean and maximum over space, summed.
    Those of the voxels are the sigmoid of a 7x7 convolution of the mean and the maximum over channels.

    Args:
        dims: Number of spatial axes, 2 or 3.
        width: Number of channels.
    """

    def __init__(self, dims: int, width: int) -> None:
        super().__init__()
        hidden = max(width // REDUCTION, 1)
        self.perceptron = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width))
        self.convolution = CONVOLUTIONS[dims](2, 1, KERNEL, padding=KERNEL // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        axes = tuple(range(2, x.ndim))
        channels = (self.perceptron(x.mean(axes)) + self.perceptron(x.amax(axes))).sigmoid()
        x = x * channels.reshape(*channels.shape, *[1] * len(axes))
        maps = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        refined: Tensor = x * self.convolution(maps).sigmoid()
        return refined


class AttentionTerm(nn.Module):
    """`refined_difference` of one depth, times `WEIGHT`.

    The student's map passes a 1x1 convolution and an instance norm, which replaces the published batch norm, since
    batches may have one or two samples. Then each map passes its own `BlockAttention`. The teacher's is trained too,
    as in the reference implementation. It is computed in float32, also under autocast.

    Args:
        teacher_width: Number of channels of the teacher's map.
        width: Number of channels of the student's map.
        dims: Number of spatial axes, 2 or 3.
    """

    def __init__(self, teacher_width: int, width: int, dims: int) -> None:
        super().__init__()
        norm = NORMS[dims](teacher_width, eps=EPS, affine=True)
        self.connector = nn.Sequential(CONVOLUTIONS[dims](width, teacher_width, 1), norm)
        self.of_teacher, self.of_student = (BlockAttention(dims, teacher_width) for _ in range(2))

    def forward(self, teacher: Tensor, student: Tensor) -> Tensor:
        """Maps on one grid, ``(B, teacher_width, *spatial)`` and ``(B, width, *spatial)`` -> the loss, a scalar."""
        with torch.autocast(student.device.type, enabled=False):
            refined = self.of_teacher(wide(teacher)), self.of_student(self.connector(wide(student)))
            return WEIGHT * refined_difference(*refined)
