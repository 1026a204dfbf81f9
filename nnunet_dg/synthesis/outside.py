"""The outside of a subject: what lies beyond a deformed ball."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from nnunet_dg.synthesis.draws import Draws
from nnunet_dg.synthesis.ellipsoids import squared_radius
from nnunet_dg.synthesis.smooth import smooth_fields


def outside(shape: Sequence[int], draws: Draws) -> Tensor:
    """Voxels outside an ellipsoid with a bumpy surface. They are likelier in a corner of the volume than in the middle.

    Args:
        shape: Spatial shape. Semi-axes are 0.5 to 0.9 times its smallest size.
        draws: Source of random numbers.

    Returns:
        ``(*shape)``, bool. The center is anywhere in the volume, so the fraction varies widely.
    """
    size = min(shape)
    radius = squared_radius(shape, 0.5 * size, 0.9 * size, draws)
    bumps = smooth_fields(shape, draws.uniform(8, 20), 1, draws)[0]
    return radius * (1 + draws.uniform(0, 0.4) * bumps) > 1
