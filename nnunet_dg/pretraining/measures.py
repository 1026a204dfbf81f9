"""Measures of a network on generated pairs that it is not trained on."""

from __future__ import annotations

import numpy as np
import torch

from nnunet_dg.extractors.synthetic_network import SyntheticNetwork
from nnunet_dg.pretraining.step import Recipe
from nnunet_dg.pretraining.voxels import at_voxels, draw_voxels
from nnunet_dg.robustness.similarity import effective_rank, linear_cka, recall_at_1
from nnunet_dg.synthesis import Draws, draw_pair
from nnunet_dg.tensors import instance_norm

HELD_OUT = 2**30  # first key of the pairs that no step uses, see `nnunet_dg.synthesis.Draws`
PAIRS = 4
VOXELS = 1000


@torch.no_grad()
def held_out_measures(network: SyntheticNetwork, recipe: Recipe, seed: int) -> dict[str, float]:
    """Means over four held-out pairs, whose views are cut from different places.

    Args:
        network: Network, on any device.
        recipe: Recipe, of which the largest crop and the margin are used.
        seed: Seed of the training.

    Returns:
        ``cka`` between both views, ``recall`` of at most 1000 voxels, ``unrelated``, the CKA with another pair's view
        at the same coordinates, and ``rank``, the effective rank.
    """
    device = next(network.parameters()).device
    dims = network.spatial_dims
    size = [max(recipe.crops)] * dims
    rows, before = [], None
    for number in range(PAIRS):
        draws = Draws(seed, HELD_OUT + number, device)
        pair = draw_pair(size, recipe.margin, draws)
        here, there = draw_voxels(pair, min(VOXELS, pair.labels.numel()), draws)
        features = instance_norm(network(pair.views).float())
        a, b = (at_voxels(f, at).cpu().numpy() for f, at in ((features[0], here), (features[1], there)))
        other = a if before is None else at_voxels(before, here).cpu().numpy()
        unrelated = float("nan") if before is None else linear_cka(a, other)
        rows.append((linear_cka(a, b), recall_at_1(a, b), unrelated, effective_rank(a)))
        before = features[0]
    return dict(zip(("cka", "recall", "unrelated", "rank"), np.nanmean(rows, axis=0).tolist(), strict=True))
