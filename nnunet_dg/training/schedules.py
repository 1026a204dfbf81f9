"""Schedules of the learning rate that nnU-Net lacks: one that changes in every step, and one with parts of the rate."""

from __future__ import annotations

import math

from torch.optim import Optimizer


class CosinePerStep:
    """The learning rate ``initial_lr * (1 + cos(pi * step / total_steps)) / 2``.

    The trainer calls `advance` after each iteration. nnU-Net calls `step` once per epoch, which sets the position from
    the epoch, so that a resumed training continues at the right rate.

    Args:
        optimizer: Optimizer, whose parameter groups all get the rate.
        initial_lr: First learning rate.
        steps_per_epoch: Number of steps per epoch, nnU-Net's num_iterations_per_epoch.
        num_epochs: Number of epochs.
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


class PolynomialDecay:
    """The learning rate ``initial_lr * (1 - epoch / num_epochs) ** exponent``, times the ``rate`` of each group.

    nnU-Net's own schedule gives all parameter groups the same rate. A group without the key ``rate`` has 1.

    Args:
        optimizer: Optimizer, whose parameter groups get the rate.
        initial_lr: First learning rate.
        num_epochs: Number of epochs.
        exponent: Exponent of the decay.
    """

    def __init__(self, optimizer: Optimizer, initial_lr: float, num_epochs: int, exponent: float) -> None:
        self.optimizer = optimizer
        self.initial_lr, self.num_epochs, self.exponent = initial_lr, num_epochs, exponent
        self.step(0)

    def step(self, epoch: int) -> None:
        """Set the rate of ``epoch``."""
        lr = self.initial_lr * (1 - epoch / self.num_epochs) ** self.exponent
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("rate", 1.0)
