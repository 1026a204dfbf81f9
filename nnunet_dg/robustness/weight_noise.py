"""Gaussian noise on trained weights, to see how flat a minimum is.

It follows the section "Corruption Analysis" of the DropGen paper: Diaz et al., "Why Invariance is Not Enough for
Biomedical Domain Generalization and How to Fix It", 2026, https://arxiv.org/abs/2604.02564.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nnunet_dg.extractors import FrozenExtractor


def trained_tensors(network: nn.Module) -> list[list[str]]:
    """The state-dict names of each trained tensor; nnU-Net's have several. Frozen extractors are excluded."""
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
        state: State dict of a network; not changed.
        tensors: All names of each tensor that gets noise.
        strength: Standard deviation of the noise, relative to the tensor's root mean square.
        seed: Seed of the noise.
    """
    generator = torch.Generator().manual_seed(seed)
    noisy = dict(state)
    for names in tensors:
        weight = state[names[0]]
        scale = strength * float(weight.float().square().mean().sqrt())
        changed = weight + scale * torch.randn(weight.shape, generator=generator).to(weight)
        noisy.update(dict.fromkeys(names, changed))
    return noisy
