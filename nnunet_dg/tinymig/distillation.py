"""Distillation of features that table 7 of TinyMIG compares with LRA: CWD and AT.

TinyMIG: Transferring Generalization from Vision Foundation Models to Single-Domain Medical Imaging, ICML 2025,
https://proceedings.mlr.press/v267. The teacher's own maps are compared, without reprogramming and without gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from nnunet_dg.tensors import wide
from nnunet_dg.tinymig.alignment import pooled_shape
from nnunet_dg.tinymig.attention import AttentionTerm
from nnunet_dg.tinymig.reprogramming import CONVOLUTIONS, resize

TEMPERATURE = 4.0  # of CWD, as in the reference implementation
WEIGHT_CWD = 10.0
"""Between the published weights, 3 for logits and 50 for features. With it, the gradient on the student is of the order
of LRA's, with a ViT in 2-D as well as with anatomix in 3-D; with 3 it is a tenth of LRA's, or with 50 ten times it."""
BETA = 1000.0  # of AT, as published: the term has weight BETA / 2
REFERENCE_VOXELS = 32**2  # voxels of a map at which the weight of AT is the published one


def channelwise_divergence(teacher: Tensor, student: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """CWD: the divergence of the distributions over space that softmax makes of each channel.

    C. Shu, Y. Liu, J. Gao, Z. Yan, C. Shen, Channel-wise Knowledge Distillation for Dense Prediction, ICCV 2021,
    https://arxiv.org/abs/2011.13256, eq. 3-4: ``T^2 KL(softmax(t / T) || softmax(s / T))``, averaged over samples and
    channels. It is computed in at least float32, also under autocast. The gradient flows into both arguments.

    Args:
        teacher: Map of the teacher, ``(B, A, *spatial)``.
        student: Map of the student, the same shape.
        temperature: Temperature T, positive; default 4.

    >>> student, teacher = torch.tensor([[[0.0, 1.0, 2.0, 1.0]]]), torch.tensor([[[1.0, 1.0, 3.0, 1.0]]])
    >>> channelwise_divergence(teacher, student)
    tensor(0.1237)
    """
    with torch.autocast(student.device.type, enabled=False):
        t, s = ((wide(x).flatten(2) / temperature).log_softmax(2) for x in (teacher, student))
        return temperature**2 * (t.exp() * (t - s)).sum(2).mean()


def attention_map(feature: Tensor) -> Tensor:
    """The attention of a feature: the mean of squares over channels, with unit L2 norm over space.

    It is computed in at least float32. A feature that is zero everywhere stays zero.

    Args:
        feature: Feature map, ``(B, A, *spatial)``.

    Returns:
        A tensor of shape ``(B, voxels)``.

    >>> attention_map(torch.tensor([[[0.0, 3.0], [0.0, 3.0]]]))
    tensor([[0., 1.]])
    """
    return F.normalize(wide(feature).square().mean(1).flatten(1), dim=1, eps=1e-12)


def attention_transfer(teacher: Tensor, student: Tensor) -> Tensor:
    """AT: the mean squared difference of the attention maps. Its published weight is ``BETA / 2``.

    S. Zagoruyko, N. Komodakis, Paying More Attention to Attention: Improving the Performance of Convolutional Neural
    Networks via Attention Transfer, ICLR 2017, https://arxiv.org/abs/1612.03928, eq. 2. It is computed in at least
    float32, also under autocast. The gradient flows into both arguments.

    Args:
        teacher: Map of the teacher, ``(B, A, *spatial)``, with any number of channels.
        student: Map of the student, ``(B, C, *spatial)``.

    >>> attention_transfer(torch.tensor([[[0.0, 3.0]]]), torch.tensor([[[2.0, 0.0]]]))
    tensor(1.)
    """
    with torch.autocast(student.device.type, enabled=False):
        return (attention_map(student) - attention_map(teacher)).square().mean()


def on_one_grid(teacher: Tensor, student: Tensor) -> tuple[Tensor, Tensor]:
    """Both maps averaged to the smaller of their sizes along each axis, and to no more than `pooled_shape`.

    Args:
        teacher: Map of the teacher, ``(B, A, *any)``. It is returned without gradient.
        student: Map of the student, ``(B, C, *any)``.
    """
    sizes = zip(teacher.shape[2:], pooled_shape(student.shape[2:]), strict=True)
    shape = [min(pair) for pair in sizes]
    return resize(teacher.detach(), shape), resize(student, shape)


class ChannelwiseTerm(nn.Module):
    """`channelwise_divergence` of one depth, times `WEIGHT_CWD`.

    A 1x1 convolution brings the student's map to the teacher's number of channels if they differ.

    Args:
        teacher_width: Number of channels of the teacher's map.
        width: Number of channels of the student's map.
        dims: Number of spatial axes, 2 or 3.
    """

    def __init__(self, teacher_width: int, width: int, dims: int) -> None:
        super().__init__()
        same = teacher_width == width
        self.connector = nn.Identity() if same else CONVOLUTIONS[dims](width, teacher_width, 1)

    def forward(self, teacher: Tensor, student: Tensor) -> Tensor:
        """Maps on one grid, ``(B, teacher_width, *spatial)`` and ``(B, width, *spatial)`` -> the loss, a scalar."""
        return WEIGHT_CWD * channelwise_divergence(teacher, self.connector(student))


class AttentionTransferTerm(nn.Module):
    """`attention_transfer` of one depth, with its weight. It has no parameters, and the widths may differ.

    The published weight, ``BETA / 2``, is used for maps of `REFERENCE_VOXELS`. Since each map has unit norm, the mean
    over voxels shrinks with their number, so the weight grows in proportion to it.

    Args:
        teacher_width: Number of channels of the teacher's map.
        width: Number of channels of the student's map.
        dims: Number of spatial axes, 2 or 3.
    """

    def __init__(self, teacher_width: int, width: int, dims: int) -> None:
        super().__init__()

    def forward(self, teacher: Tensor, student: Tensor) -> Tensor:
        """Maps on one grid, ``(B, teacher_width, *spatial)`` and ``(B, width, *spatial)`` -> the loss, a scalar."""
        return BETA / 2 * student[0, 0].numel() / REFERENCE_VOXELS * attention_transfer(teacher, student)


FEATURE_TERMS: dict[str, Callable[[int, int, int], nn.Module]] = {
    "cwd": ChannelwiseTerm,
    "at": AttentionTransferTerm,
    "attnfd": AttentionTerm,
}


class FeatureDistillation(nn.Module):
    """Compares the maps of a teacher with those of the student, averaged over depths.

    Args:
        kind: How they are compared, one of `FEATURE_TERMS`.
        teacher_widths: Number of channels of the teacher's map at each depth.
        widths: Number of channels of the student's map at each depth.
        dims: Number of spatial axes, 2 or 3.
    """

    def __init__(self, kind: str, teacher_widths: Sequence[int], widths: Sequence[int], dims: int) -> None:
        super().__init__()
        pairs = zip(teacher_widths, widths, strict=True)
        self.terms = nn.ModuleList(FEATURE_TERMS[kind](*pair, dims) for pair in pairs)

    def forward(self, teacher: Sequence[Tensor], student: Sequence[Tensor]) -> Tensor:
        """Maps of each depth, ``(B, width, *any)`` -> the loss, a scalar. The teacher's maps get no gradient."""
        depths = zip(self.terms, teacher, student, strict=True)
        return torch.stack([term(*on_one_grid(*maps)) for term, *maps in depths]).mean()
