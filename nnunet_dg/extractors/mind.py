"""MIND-SSC: self-similarity context descriptors, which are stable across contrasts and need no weights.

Heinrich, Jenkinson, Papiez, Brady and Schnabel, "Towards Realtime Multimodal Fusion for Image-Guided Interventions
Using Self-Similarities", MICCAI 2013, https://doi.org/10.1007/978-3-642-40811-3_24.
"""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from nnunet_dg.errors import SettingsError
from nnunet_dg.extractors.base import FrozenExtractor
from nnunet_dg.tensors import wide


class MIND(FrozenExtractor):
    """Self-similarity context: 12 channels in 3-D, 4 in 2-D.

    Each channel compares the patches around two direct neighbors of a voxel, for all pairs of neighbors that are
    ``sqrt(2) * dilation`` apart. With ``D`` the mean squared difference of two patches,
    ``MIND = exp(-(D - min D) / V)``. The minimum is over the channels, and ``V`` is the mean of ``D - min D`` over the
    channels, clamped to [0.001, 1000] times its mean over the sample. The features are invariant to ``a * x + b`` for
    any ``a != 0``, and so to contrast inversion.

    Args:
        spatial_dims: 2 or 3; determines `out_channels`. The features follow the number of axes of the input.
        radius: Patches are cubes (squares in 2-D) of ``2 * radius + 1`` voxels per side.
        dilation: Distance of the neighbors in voxels.

    Raises:
        SettingsError: ``spatial_dims`` is neither 2 nor 3.
    """

    accepted_dims = (2, 3)

    def __init__(self, spatial_dims: int = 3, radius: int = 1, dilation: int = 2) -> None:
        super().__init__()
        if spatial_dims not in self.accepted_dims:
            raise SettingsError(f"spatial_dims must be 2 or 3; got {spatial_dims!r}.")
        self.radius, self.dilation = radius, dilation
        self.out_channels = len(neighbor_pairs(spatial_dims))
        self.freeze()

    def features(self, x: Tensor) -> Tensor:
        """Features ``(B, 12 or 4, *spatial)`` in [0, 1] of ``(B, 1, *spatial)``, in at least float32 under autocast."""
        with torch.autocast(x.device.type, enabled=False):
            distances = self._patch_distances(wide(x))
            similarity = distances - distances.amin(dim=1, keepdim=True)
            variance = similarity.mean(dim=1, keepdim=True)
            typical = variance.mean(dim=tuple(range(1, x.ndim)), keepdim=True)
            variance = variance.clamp(typical * 1e-3, typical * 1e3)
            return (similarity / torch.where(variance > 0, variance, 1)).neg_().exp_()

    def _patch_distances(self, x: Tensor) -> Tensor:
        dims, reach = x.ndim - 2, self.dilation
        padded = F.pad(x, [reach] * (2 * dims), mode="replicate")
        shifted = {}
        for offset in {offset for pair in neighbor_pairs(dims) for offset in pair}:
            window = [slice(None), slice(None)]
            window += [slice(reach * (1 + o), reach * (1 + o) + n) for o, n in zip(offset, x.shape[2:], strict=True)]
            shifted[offset] = padded[tuple(window)]
        difference = torch.cat([shifted[a] - shifted[b] for a, b in neighbor_pairs(dims)], dim=1).square_()
        return mean_of_patches(difference, self.radius)


def mean_of_patches(x: Tensor, radius: int) -> Tensor:
    """Mean of ``(B, C, *spatial)`` over ``2 * radius + 1`` voxels per axis around each voxel; borders are replicated.

    On a CPU as sums of shifted tensors, since PyTorch's pooling takes several times as long there for the same result.

    >>> mean_of_patches(torch.tensor([[[[0.0, 3.0, 6.0]]]]), 1)
    tensor([[[[1., 3., 5.]]]])
    """
    return summed(x, radius) if x.device.type == "cpu" else pooled(x, radius)


def summed(x: Tensor, radius: int) -> Tensor:
    """`mean_of_patches` by sums of shifted tensors, one axis at a time."""
    for axis in range(2, x.ndim):
        size = x.shape[axis]
        first, last = x.narrow(axis, 0, 1), x.narrow(axis, size - 1, 1)
        x = torch.cat([*[first] * radius, x, *[last] * radius], dim=axis)
        total = x.narrow(axis, 0, size).clone()
        for shift in range(1, 2 * radius + 1):
            total += x.narrow(axis, shift, size)
        x = total.div_(2 * radius + 1)
    return x


def pooled(x: Tensor, radius: int) -> Tensor:
    """`mean_of_patches` by PyTorch's pooling, one axis at a time."""
    dims = x.ndim - 2
    x = F.pad(x, [radius] * (2 * dims), mode="replicate")
    for axis in range(dims):
        kernel = [2 * radius + 1 if other == axis else 1 for other in range(dims)]
        x = (F.avg_pool2d if dims == 2 else F.avg_pool3d)(x, kernel, 1)
    return x


def neighbor_pairs(dims: int) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Pairs of direct neighbors on different axes, as unit offsets: 4 in 2-D, 12 in 3-D."""
    neighbors = [tuple(sign * (axis == i) for i in range(dims)) for axis in range(dims) for sign in (-1, 1)]
    return [(a, b) for a, b in combinations(neighbors, 2) if not any(i and j for i, j in zip(a, b, strict=True))]
