"""The state of a training: network, running average and optimizer."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from nnunet_dg.extractors.synthetic_network import SyntheticNetwork

RATE = 3e-3
WARM_UP = 50  # steps
LAST = 0.02  # of the rate, at the last step
AVERAGE = 0.99  # weight of the past in the running average


class TrainingState:
    """Everything that changes from step to step. Its content after a step depends only on the seed and the steps.

    Args:
        dims: 2 or 3.
        seed: Seed of the initial weights.
        steps: Number of steps of the whole training.
        device: Device to train on.

    Attributes:
        network: Network that is trained.
        dims: Number of spatial axes.
        average: Exponential running average of its weights, which is what a training results in.
        step: Number of finished steps.
    """

    def __init__(self, dims: int, seed: int, steps: int, device: torch.device) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # `torch.manual_seed` would seed GPUs as well
            self.network = SyntheticNetwork(dims).to(device)
        if device.type == "cpu":
            self.network.to(memory_format=torch.channels_last if dims == 2 else torch.channels_last_3d)
        self.average = {name: value.detach().clone() for name, value in self.network.state_dict().items()}
        self.optimizer = AdamW(self.network.parameters(), lr=RATE, weight_decay=1e-4)
        self.dims, self.steps, self.step = dims, steps, 0

    def rate(self) -> float:
        """The learning rate of the next step: linear warm-up, then a cosine to `LAST` times the rate."""
        done = min(1.0, self.step / max(1, self.steps))
        return RATE * min((self.step + 1) / WARM_UP, LAST + (1 - LAST) * 0.5 * (1 + math.cos(math.pi * done)))

    def update(self, loss: Tensor) -> None:
        """One step of the optimizer, with clipped gradients, and of the running average."""
        self.optimizer.param_groups[0]["lr"] = self.rate()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 2.0)
        self.optimizer.step()
        self.step += 1
        weight = min(AVERAGE, self.step / (self.step + 10))
        with torch.no_grad():
            for name, value in self.network.state_dict().items():
                self.average[name].lerp_(value, 1 - weight)

    def state_dict(self) -> dict[str, Any]:
        """The state as tensors and numbers, for `load_state_dict`."""
        return {
            "step": self.step,
            "network": self.network.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved state."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        for name, value in self.average.items():
            value.copy_(state["average"][name])
        self.step = state["step"]
