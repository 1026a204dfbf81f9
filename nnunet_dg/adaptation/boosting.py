"""Stable feature boosting of a whole volume: the equations of `correction`, in parts of it, with guards."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from nnunet_dg.adaptation.correction import confusion, corrected, corrected_region, joint, joint_region, products

PART = 2**20  # voxels that are computed at once
RAREST = 100  # expected voxels below which the statistics of a class are not used
WORST_CONDITION = 1e3  # of M, above which its inverse is not used
SMALLEST = 1e-7  # probability, before a logarithm


@dataclass(frozen=True)
class Reliability:
    """Statistics of a volume.

    Attributes:
        pi: Frequency of each class, at least `RAREST` voxels', ``(K,)``.
        matrix: M of the common classes, ``(K', K')``.
        common: Whether each class is common enough to be corrected, ``(K,)``. None is if M cannot be inverted safely.
    """

    pi: Tensor
    matrix: Tensor
    common: Tensor

    @classmethod
    def of(cls, sums: Tensor, voxels: int) -> Reliability:
        """From the `products` of pseudo-labels and stable model in a volume, and its number of voxels."""
        expected = sums.sum(0)
        common = expected >= RAREST
        matrix = confusion(sums[common][:, common])
        if not len(matrix) or not torch.linalg.cond(matrix) <= WORST_CONDITION:
            common = torch.zeros_like(common)
        return cls(expected.clamp(min=RAREST) / voxels, matrix, common)

    def eta(self, unstable: Tensor) -> Tensor:
        """Corrected probabilities ``(K, V)``, float32: those of common classes among themselves, others unchanged."""
        eta = unstable.float().clone()
        if self.common.any():
            share = eta[self.common].sum(0).clamp(min=SMALLEST)
            eta[self.common] = share * corrected(eta[self.common] / share, self.matrix.float())
        return eta


def boosted(
    stable: Tensor, unstable: Tensor, pseudo_labels: Tensor, temperature: float, regions: bool = False
) -> tuple[Tensor, list[int]]:
    """Joint predictions of a calibrated stable model and an unstable one that was fitted to pseudo-labels.

    Classes with fewer than 100 expected voxels are not corrected (eta = u), and none is where M has a condition number
    above 1000. Frequencies are at least those of 100 voxels, so that an absent class is not multiplied up.

    Args:
        stable: Logits of the stable model, ``(K, *spatial)``, any dtype.
        unstable: Logits of the unstable model, the same shape.
        pseudo_labels: Logits of the pseudo-labels that the unstable model was fitted to, the same shape.
        temperature: Temperature of the stable model.
        regions: Whether the channels are regions, each of which is corrected by itself; default False.

    Returns:
        Logits ``(K, *spatial)``, float16, whose softmax (sigmoid for regions) is the joint prediction, and the numbers
        of classes or regions that were not corrected.
    """
    f, u, q = stable.flatten(1), unstable.flatten(1), pseudo_labels.flatten(1)
    result = torch.empty(f.shape, dtype=torch.float16)
    if regions:
        left = [k for k in range(len(f)) if not _boost_region(f[k], u[k], q[k], temperature, result[k])]
        return result.reshape(stable.shape), left
    sums = torch.zeros(len(f), len(f), dtype=torch.float64)
    for part in _parts(f):
        sums += products(q[:, part].float().softmax(0), (f[:, part].float() / temperature).softmax(0))
    found = Reliability.of(sums, f.shape[1])
    for part in _parts(f):
        p = (f[:, part].float() / temperature).softmax(0)
        both = joint(p, found.eta(u[:, part].float().softmax(0)), found.pi.float())
        result[:, part] = both.clamp(min=SMALLEST).log().half()
    return result.reshape(stable.shape), torch.nonzero(~found.common).flatten().tolist()


def _boost_region(f: Tensor, u: Tensor, q: Tensor, temperature: float, result: Tensor) -> bool:
    """Write the joint logits of one region, ``(V,)``; returns whether the unstable model was corrected."""
    sums = torch.zeros(2, 2, dtype=torch.float64)
    for part in _parts(f):
        p, label = (f[part].float() / temperature).sigmoid(), q[part].float().sigmoid()
        sums += products(torch.stack([1 - label, label]), torch.stack([1 - p, p]))
    found = Reliability.of(sums, len(f))
    reliable = bool(found.common.all())
    for part in _parts(f):
        p, eta = (f[part].float() / temperature).sigmoid(), u[part].float().sigmoid()
        eta = corrected_region(eta, found.matrix.float()) if reliable else eta.clamp(SMALLEST, 1 - SMALLEST)
        pi = found.pi[1].float().clamp(max=1 - RAREST / max(len(f), 2 * RAREST))
        result[part] = torch.logit(joint_region(p, eta, pi), SMALLEST).half()
    return reliable


def _parts(flat: Tensor) -> Iterator[slice]:
    voxels = flat.shape[-1]
    return (slice(start, start + PART) for start in range(0, voxels, PART))
