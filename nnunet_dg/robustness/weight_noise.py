"""Gaussian noise on what a network has learned: how flat is the minimum it found? (DropGen, "Corruption Analysis")"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nnunet_dg.extractors import FrozenExtractor


def trained_tensors(network: nn.Module) -> list[list[str]]:
    """All names in the state dict of each trained tensor, for nnU-Net's have several; none of a frozen extractor."""
    extractors = [module for module in network.modules() if isinstance(module, FrozenExtractor)]
    frozen = {id(parameter) for extractor in extractors for parameter in extractor.parameters()}
    names: dict[int, list[str]] = {}
    for name, parameter in network.named_parameters(remove_duplicate=False):
        if id(parameter) not in frozen:
            names.setdefault(id(parameter), []).append(name)
    return list(names.values())


def with_noise(
    state: dict[str, Tensor], tensors: Sequence[Sequence[str]], strength: float, seed: int
) -> dict[str, Tensor]:
    """The state dict with Gaussian noise of ``strength`` times the root mean square on each of ``tensors``.

    Args:
        state: of a network.
        tensors: all names of each one.
        strength: relative.
        seed: of the noise.
    """
    generator = torch.Generator().manual_seed(seed)
    noisy = dict(state)
    for names in tensors:
        weight = state[names[0]]
        scale = strength * float(weight.float().square().mean().sqrt())
        changed = weight + scale * torch.randn(weight.shape, generator=generator).to(weight)
        noisy.update(dict.fromkeys(names, changed))
    return noisy
