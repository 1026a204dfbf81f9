"""One training step: generated pairs, features of both views, and the losses between them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nnunet_dg.extractors.synthetic_network import SyntheticNetwork
from nnunet_dg.pretraining.losses import redundancy, voxel_contrast
from nnunet_dg.pretraining.voxels import at_voxels, draw_voxels
from nnunet_dg.synthesis import Draws, Pair, draw_pair
from nnunet_dg.tensors import instance_norm


@dataclass(frozen=True)
class Recipe:
    """What a step consists of.

    Attributes:
        crops: Sizes of the views in voxels, the same along each axis; one is drawn for each step.
        margin: Number of voxels by which scenes are larger than views, less than each of the crops.
        pairs: Number of pairs per step.
        voxels: Number of voxels per pair that enter the losses.
        temperature: Temperature of the voxel term.
        redundancy: Weight of the redundancy term.
        off_diagonal: Weight of correlations between channels in the redundancy term.
    """

    crops: tuple[int, ...]
    margin: int
    pairs: int
    voxels: int
    temperature: float = 0.1
    redundancy: float = 0.5
    off_diagonal: float = 0.3


RECIPES = {2: Recipe((96, 128), 48, 4, 512), 3: Recipe((32, 32, 40), 24, 2, 512)}


def draw_pairs(recipe: Recipe, dims: int, draws: Draws) -> list[Pair]:
    """The pairs of one step, all of one size."""
    size = recipe.crops[draws.whole(0, len(recipe.crops) - 1)]
    return [draw_pair([size] * dims, recipe.margin, draws) for _ in range(recipe.pairs)]


def losses(
    network: SyntheticNetwork, pairs: list[Pair], recipe: Recipe, draws: Draws, autocast: Any
) -> dict[str, Tensor]:
    """The terms of the loss, scalars in float32, whose weighted sum is ``total``.

    Args:
        network: Network to train.
        pairs: Pairs of one size.
        recipe: Weights and numbers of voxels.
        draws: Source of random numbers.
        autocast: Context manager in which the network runs.
    """
    views = torch.cat([pair.views for pair in pairs])
    with autocast:
        features = network(laid_out(views))
    features = instance_norm(features.float()).unflatten(0, (len(pairs), 2))
    firsts, seconds, redundant = [], [], []
    for (first, second), pair in zip(features, pairs, strict=True):
        here, there = draw_voxels(pair, min(recipe.voxels, pair.labels.numel()), draws)
        a, b = at_voxels(first, here), at_voxels(second, there)
        firsts.append(a)
        seconds.append(b)
        redundant.append(redundancy(a, b, recipe.off_diagonal))
    terms = {
        "voxels": voxel_contrast(torch.cat(firsts), torch.cat(seconds), recipe.temperature),
        "redundancy": torch.stack(redundant).mean(),
    }
    return terms | {"total": terms["voxels"] + recipe.redundancy * terms["redundancy"]}


def laid_out(x: Tensor) -> Tensor:
    """The images ``(B, 1, *spatial)`` with the channels last in memory, for which convolutions are fastest."""
    return x.to(memory_format=torch.channels_last if x.ndim == 4 else torch.channels_last_3d)
