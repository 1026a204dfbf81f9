"""TinyMIG's alignment trained on teacher and student features that are fixed and unrelated."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from nnunet_dg.tinymig import ContentAlignment

WIDTHS, GRIDS = (8, 16), ((16, 16, 16), (8, 8, 8))


@dataclass
class Record:
    """The alignment term, its gain and the norm of the student's gradient at one step."""

    term: float
    gain: float
    gradient: float


def unrelated_features(seed: int) -> list[Tensor]:
    """Features like those of nnU-Net's stages: smooth noise after an instance norm and a leaky ReLU."""
    generator = torch.Generator().manual_seed(seed)
    noise = [torch.randn(2, w, *g, generator=generator) for w, g in zip(WIDTHS, GRIDS, strict=True)]
    return [F.leaky_relu(F.instance_norm(F.avg_pool3d(n, 3, 1, 1)), 0.01) for n in noise]


def trained(scale: str, steps: int) -> tuple[ContentAlignment, list[Record]]:
    """The enhancement after some steps on fixed features, and records of before each step and of the end."""
    torch.manual_seed(0)
    alignment = ContentAlignment(WIDTHS, GRIDS, scale=scale)
    optimizer = torch.optim.SGD(alignment.parameters(), 1e-2, momentum=0.99, nesterov=True, weight_decay=3e-5)
    teacher = unrelated_features(1)
    student = [feature.requires_grad_() for feature in unrelated_features(2)]
    records = []
    for _ in range(steps + 1):
        optimizer.zero_grad()
        for feature in student:
            feature.grad = None
        term = alignment(teacher, student)
        (0.5 * term).backward()
        gradient = sum(float(feature.grad.square().sum()) for feature in student) ** 0.5
        records.append(Record(float(term.detach()), alignment.take_gain(), gradient))
        optimizer.step()
    return alignment, records
