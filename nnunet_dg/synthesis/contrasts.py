"""Contrasts: how a scene looks, as random intensities of its labels and textures."""

from __future__ import annotations

import torch
from torch import Tensor

from nnunet_dg.synthesis.draws import Draws
from nnunet_dg.synthesis.smooth import smooth_fields

BLACK_OUTSIDE = 0.7  # probability that the outside has no intensity and no texture


def draw_contrast(labels: Tensor, textures: Tensor, count: int, draws: Draws) -> Tensor:
    """An image of a scene in a random contrast.

    Each label has a mean in [0, 1), its own amount of each common texture, and an own texture that other views do not
    show. Means are independent between views, so that they include inverted contrasts and equal neighbors.

    Args:
        labels: Label map ``(*shape)``, int64, from 0 to ``count - 1``; 0 is the outside.
        textures: Textures ``(T, *shape)``, float32.
        count: Number of labels.
        draws: Source of random numbers.

    Returns:
        Image ``(*shape)``, float32, mostly in [0, 1].
    """
    means = draws.rand((count,))
    shared = draws.uniform(0.02, 0.15) * draws.normal((count, len(textures)))
    own = draws.uniform(0, 0.06) * draws.rand((count,))
    if draws.chance(BLACK_OUTSIDE):
        means[0], shared[0], own[0] = 0.0, 0.0, 0.0
    image = means[labels]
    for index, texture in enumerate(textures):
        image = image + shared[:, index][labels] * texture
    texture = smooth_fields(labels.shape, draws.uniform(2, 6), 1, draws)[0]
    return image + own[labels] * texture


def remap(image: Tensor, draws: Draws) -> Tensor:
    """The image with its intensities replaced by those of a random curve, which need not be monotone.

    The curve is a sine of 0.4 to 2 periods over the range of the image.

    Args:
        image: Image ``(*shape)``, float32.
        draws: Source of random numbers.

    Returns:
        Image ``(*shape)``, float32, in [0, 1].
    """
    low, high = image.aminmax()
    unit = (image - low) / (high - low).clamp_min(1e-6)
    turns = draws.uniform(0.4, 2)
    return 0.5 + 0.5 * torch.sin(2 * torch.pi * (turns * unit + draws.uniform(0, 1)))
