"""MLKD: multi-level logit distillation, which table 7 of TinyMIG compares with LRA.

Y. Jin, J. Wang, D. Lin, Multi-Level Logit Distillation, CVPR 2023,
https://openaccess.thecvf.com/content/CVPR2023/html/Jin_Multi-Level_Logit_Distillation_CVPR_2023_paper.html.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from nnunet_dg.tensors import wide

TEMPERATURES = (2.0, 3.0, 4.0, 5.0, 6.0)
WEIGHT = 0.9  # as published, where cross entropy has weight 0.1
SAMPLED = 1024  # voxels of a batch that are compared with each other
REFERENCE_SAMPLES = 32  # with this many samples the batch level has its published weight


def instance_level(teacher: Tensor, student: Tensor, temperature: float, regions: bool = False) -> Tensor:
    """``T^2 KL(p_t || p_s)`` of each voxel.

    It is computed in at least float32. The gradient flows into both arguments.

    Args:
        teacher: Logits of the teacher, ``(N, K)``.
        student: Logits of the student, the same shape.
        temperature: Temperature T, by which logits are divided.
        regions: Whether the channels are regions that may overlap, so that the divergences of Bernoulli variables are
            summed; default False: the channels are exclusive classes.

    Returns:
        A tensor of shape ``(N,)``.

    >>> instance_level(torch.tensor([[3.0, -1.0, 0.0]]), torch.tensor([[2.0, 0.0, -1.0]]), 4.0)
    tensor([0.3518])
    """
    t, s = wide(teacher) / temperature, wide(student) / temperature
    if not regions:
        p, q = t.log_softmax(1), s.log_softmax(1)
        return temperature**2 * (p.exp() * (p - q)).sum(1)
    sides = ((t, s), (-t, -s))
    return temperature**2 * sum((a.sigmoid() * (F.logsigmoid(a) - F.logsigmoid(b)) for a, b in sides), t * 0).sum(1)


def probabilities(logits: Tensor, temperature: float, regions: bool = False) -> Tensor:
    """Probabilities ``(N, K)`` of logits ``(N, K)``; with regions, ``(N, 2 K)``: of being inside and outside."""
    logits = wide(logits) / temperature
    return torch.cat([logits.sigmoid(), (-logits).sigmoid()], 1) if regions else logits.softmax(1)


def batch_level(p: Tensor, q: Tensor) -> Tensor:
    """``|P P^T - Q Q^T|^2 / N``: how voxels relate to each other.

    Args:
        p: Probabilities of the teacher, ``(N, K)``.
        q: Probabilities of the student, the same shape.

    >>> batch_level(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.5, 0.5]]))
    tensor(0.2500)
    """
    return (p @ p.mT - q @ q.mT).square().sum() / len(p)


def class_level(p: Tensor, q: Tensor) -> Tensor:
    """``|P^T P - Q^T Q|^2 / K``: how classes relate to each other.

    Args:
        p: Probabilities of the teacher, ``(N, K)``.
        q: Probabilities of the student, the same shape.

    >>> class_level(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.5, 0.5]]))
    tensor(0.3750)
    """
    return (p.mT @ p - q.mT @ q).square().sum() / p.shape[1]


def multilevel_distillation(teacher: Tensor, student: Tensor, valid: Tensor, regions: bool = False) -> Tensor:
    """The sum of the three levels over all `TEMPERATURES`, times `WEIGHT`.

    The instance level is averaged over the valid voxels. The other levels compare `SAMPLED` of them, drawn at random.
    As published, these grow with the number of samples N, the class level with its square, and would outweigh the
    instance level by far. So they are multiplied by ``REFERENCE_SAMPLES / N`` and ``REFERENCE_SAMPLES / N**2``: the
    batch level has its published weight at that number of samples, and neither depends on N. At the start of a
    training, the gradients of the three levels on the student are of the same order. It is computed in at least
    float32, also under autocast.

    Args:
        teacher: Logits of the teacher, ``(B, K, *spatial)``. They are constants for the gradient.
        student: Logits of the student, the same shape.
        valid: Which voxels have a label, ``(B, *spatial)``, bool.
        regions: Whether the channels are regions that may overlap; default False: they are exclusive classes.

    Returns:
        A scalar; zero, with a zero gradient, if no voxel is valid.

    >>> logits = torch.tensor([[[3.0], [-1.0]]])
    >>> multilevel_distillation(logits, logits, valid=torch.tensor([[True]]))
    tensor(0.)
    """
    with torch.autocast(student.device.type, enabled=False):
        t, s = (logits.movedim(1, -1).flatten(0, -2) for logits in (teacher.detach(), student))
        mask = valid.flatten().to(torch.promote_types(student.dtype, torch.float32))
        chosen = drawn(mask)
        kept = mask[chosen].unsqueeze(1)
        number = kept.sum().clamp(min=1)
        total = mask.new_zeros(())
        for temperature in TEMPERATURES:
            instances = torch.where(mask > 0, instance_level(t, s, temperature, regions), 0)
            p, q = (probabilities(logits[chosen], temperature, regions) * kept for logits in (t, s))
            pairs = batch_level(p, q) * len(chosen) + class_level(p, q)  # without the mean over N
            total = total + instances.sum() / mask.sum().clamp(min=1) + REFERENCE_SAMPLES * pairs / number**2
        return WEIGHT * total


def drawn(mask: Tensor) -> Tensor:
    """Random indices of `SAMPLED` voxels, or of all if there are fewer; valid ones first.

    Args:
        mask: Whether each voxel is valid, ``(N,)``, 1 or 0.
    """
    return (torch.rand_like(mask) + mask).topk(min(SAMPLED, len(mask))).indices
