"""Random numbers of the generator: decisions on the host, noise on the device, both from one seed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


class Draws:
    """Random numbers that depend only on the seed, the key and the kind of device.

    Decisions such as sizes and probabilities are drawn on the host, so that a GPU is never waited for.

    Args:
        seed: Seed of a training, not negative and below 2**31.
        key: Number of a step, or any other number from 0 to below 2**31. Different keys give independent numbers.
        device: Device of the tensors that `normal` and `rand` return.

    >>> draws = Draws(seed=0, key=3)
    >>> draws.uniform(1, 2) == Draws(seed=0, key=3).uniform(1, 2)
    True
    """

    def __init__(self, seed: int, key: int = 0, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        host, on_device = np.random.SeedSequence([seed, key]).generate_state(2).tolist()  # PyTorch reads 32 bits only
        self.host = torch.Generator().manual_seed(host)
        self.on_device = torch.Generator(self.device).manual_seed(on_device)

    def uniform(self, low: float, high: float) -> float:
        """A number in [low, high)."""
        return low + (high - low) * float(torch.rand((), generator=self.host))

    def whole(self, low: int, high: int) -> int:
        """A whole number in [low, high]."""
        return int(torch.randint(low, high + 1, (), generator=self.host))

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return float(torch.rand((), generator=self.host)) < probability

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Standard normal numbers on the device, float32, of this shape."""
        return torch.randn(*shape, generator=self.on_device, device=self.device)

    def rand(self, shape: Sequence[int]) -> Tensor:
        """Uniform numbers in [0, 1) on the device, float32, of this shape."""
        return torch.rand(*shape, generator=self.on_device, device=self.device)
