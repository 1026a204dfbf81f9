"""Label maps that fill the whole space: competing fields, and nested layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nnunet_dg.synthesis.draws import Draws
from nnunet_dg.synthesis.smooth import smooth_fields, standardized


def competing(shape: Sequence[int], count: int, draws: Draws) -> Tensor:
    """The index of the largest of ``count`` smooth fields at each voxel, with a random bias for each field.

    Neighbors are in any combination, as organs are.

    Returns:
        Labels ``(*shape)``, int64, from 0 to ``count - 1``.
    """
    coarse = smooth_fields(shape, draws.uniform(10, 24), count, draws)
    fine = smooth_fields(shape, draws.uniform(4, 10), count, draws)
    bias = 0.3 * draws.normal((count, *[1] * len(shape)))
    fields = coarse + draws.uniform(0.2, 0.8) * fine + bias
    largest, labels = fields[0], torch.zeros(*shape, dtype=torch.long, device=fields.device)
    for label, field in enumerate(fields[1:], 1):  # several times faster than argmax on CPUs
        labels.masked_fill_(field > largest, label)
        largest = torch.maximum(largest, field)
    return labels


def layers(shape: Sequence[int], count: int, draws: Draws) -> Tensor:
    """Bands of one field between random thresholds: nested layers, some of them thin sheets, as in a cortex.

    Returns:
        Labels ``(*shape)``, int64, from 0 to ``count - 1``.
    """
    coarse = smooth_fields(shape, draws.uniform(12, 28), 1, draws)
    fine = smooth_fields(shape, draws.uniform(5, 11), 1, draws)
    field = standardized(coarse + draws.uniform(0.3, 1.0) * fine)[0]
    thresholds = torch.sort(draws.rand((count - 1,)) * 3 - 1.5).values
    return torch.bucketize(field, thresholds)
