"""A learning rate per step in a host that speaks of epochs."""

from __future__ import annotations

import math

from torch.optim import Optimizer


class CosinePerStep:
    """``initial_lr * (1 + cos(pi * step / total_steps)) / 2``, for nnU-Net, which calls ``step(epoch)`` once an epoch.

    The trainer calls `advance` after each iteration. `step` sets the position from the epoch, so that a resumed
    training continues where it was.

    Args:
        optimizer: all its parameter groups get the rate.
        initial_lr: the first rate.
        steps_per_epoch: nnU-Net's num_iterations_per_epoch.
        num_epochs: nnU-Net's.
    """

    def __init__(self, optimizer: Optimizer, initial_lr: float, steps_per_epoch: int, num_epochs: int) -> None:
        self.optimizer = optimizer
        self.initial_lr = initial_lr
        self.steps_per_epoch = steps_per_epoch
        self.total_steps = steps_per_epoch * num_epochs
        self.step(0)

    def step(self, epoch: int) -> None:
        """Go to the first step of ``epoch``."""
        self._set(epoch * self.steps_per_epoch)

    def advance(self) -> None:
        """Go to the next step."""
        self._set(self.current_step + 1)

    def _set(self, step: int) -> None:
        self.current_step = step
        lr = self.initial_lr * (1 + math.cos(math.pi * min(step / self.total_steps, 1))) / 2
        for group in self.optimizer.param_groups:
            group["lr"] = lr
