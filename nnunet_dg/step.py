"""What a method sees of a training: batch, network, and the passes of one step. Pure PyTorch: no nnU-Net here."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_dg.hooks import Change, Tap
from nnunet_dg.outside import Outside

Scales = Tensor | list[Tensor]  # one tensor, or under deep supervision one per resolution, the full one first


@dataclass(frozen=True)
class Batch:
    """A training batch on the device.

    Attributes:
        data: ``(B, C + R, *spatial)``, C image channels and R channels of a cascade's previous stage.
        target: ``(B, 1 or regions, *spatial)``, a list under deep supervision, from full to lowest resolution.
        keys: The case of each sample.
        image_channels: C.
    """

    data: Tensor
    target: Scales
    keys: tuple[str, ...]
    image_channels: int

    @property
    def images(self) -> Tensor:
        """The image channels, ``(B, C, *spatial)``."""
        return self.data[:, : self.image_channels]

    def with_images(self, images: Tensor) -> Batch:
        """The batch with other image channels of the same shape."""
        rest = self.data[:, self.image_channels :]
        return replace(self, data=torch.cat([images, rest], 1) if rest.shape[1] else images)


class Pass:
    """One forward pass of the network in training mode.

    Attributes:
        output: Logits ``(B, K, *spatial)``, a list under deep supervision.
    """

    def __init__(self, output: Any, features: dict[Tap, Tensor]) -> None:
        self.output: Any = output
        self._features = features

    def features(self, tap: Tap) -> Tensor:
        """What a tap has read in this pass, ``(B, A, *spatial)``, with its gradient."""
        return self._features[tap]


class Student(ABC):
    """The network in training and what surrounds it, as far as a method may know.

    Attributes:
        network: The network as nnU-Net trains it: compiled, distributed, with what methods put around it.
        widths: Channels of the encoder's stages, from full resolution on.
        strides: Strides of the encoder's stages, per axis.
        penultimate_width: Channels of the input of the last segmentation layer.
        image_channels: C, the number of image channels.
        patch_size: Spatial shape of the training patches.
        num_outputs: Number of segmentation heads.
        num_classes: Number of classes, with the background, without the ignore label; see `classes`.
        regions: Whether the heads are regions that may overlap.
        outside: What exact zeros mean in the image channels.
        num_epochs: Length of the training.
        samples_per_device: Samples of a batch on each device.
    """

    network: nn.Module
    widths: list[int]
    strides: list[Any]
    penultimate_width: int
    image_channels: int
    patch_size: tuple[int, ...]
    num_outputs: int
    num_classes: int
    regions: bool
    outside: Outside
    num_epochs: int
    samples_per_device: int

    def __init__(self) -> None:
        self.taps: list[Tap] = []
        self._before_pass: list[Callable[[Tensor], None]] = []

    @property
    def grids(self) -> list[tuple[int, ...]]:
        """Spatial shape of the output of each encoder stage, from full resolution on."""
        return stage_grids(self.patch_size, self.strides)

    def tap(self, stage: int | str) -> Tap:
        """Read features in every pass: the output of an encoder stage (-1: the bottleneck), or ``"penultimate"``.

        ``"penultimate"`` is the input of the last segmentation layer, at full resolution. Call it while the training
        module is built, before the network runs.
        """
        tap = Tap(self.module(stage), "input" if stage == "penultimate" else "output")
        self.taps.append(tap)
        return tap

    def change(self, stage: int, function: Callable[[Tensor], Tensor], always: bool = False) -> Change:
        """Replace the output of an encoder stage in training mode, see `Change`.

        Taps of the same stage read the output before the change if they were made earlier. Call it while the training
        module is built.
        """
        return Change(self.module(stage), function, always)

    def before_each_pass(self, draw: Callable[[Tensor], None]) -> None:
        """Call a function with the data of every forward pass in training, ``(B, C + R, *spatial)``, before it.

        The place to draw the random numbers that a change of features needs: drawn inside the network, they would break
        the graph of `torch.compile`.
        """
        self._before_pass.append(draw)

    def run(self, data: Tensor) -> Pass:
        """A forward pass of ``(B, C + R, *spatial)``, with what the taps read."""
        for draw in self._before_pass:
            draw(data)
        output = self.network(data)
        return Pass(output, {tap: tap.take() for tap in self.taps})

    @abstractmethod
    def module(self, stage: int | str) -> nn.Module:
        """A stage of the encoder, or for ``"penultimate"`` the last segmentation layer."""

    @abstractmethod
    def loss(self, output: Any, target: Scales) -> Tensor:
        """nnU-Net's own loss, a scalar, over all resolutions of deep supervision."""

    @abstractmethod
    def full_resolution_loss(self, logits: Tensor, target: Scales) -> Tensor:
        """nnU-Net's own loss of ``(B, K, *spatial)`` at full resolution only."""

    @abstractmethod
    def classes(self, target: Scales) -> Tensor:
        """The class of each voxel, ``(B, *spatial)``, int64; -1 for the ignore label. With regions, combinations."""

    @abstractmethod
    def domains(self, keys: Sequence[str]) -> Tensor:
        """The domain of each sample, ``(B,)``, int64, on the CPU; all 0 without ``domains.json``."""

    @property
    @abstractmethod
    def domain_names(self) -> tuple[str, ...]:
        """Names of the dataset's domains; one empty name without ``domains.json``."""

    @property
    @abstractmethod
    def num_training_domains(self) -> int:
        """Number of domains with a training case in this fold."""

    @property
    @abstractmethod
    def pretrained(self) -> bool:
        """Whether the training started from given weights."""

    @abstractmethod
    def agreed(self, value: Tensor) -> Tensor:
        """A random number that all devices have in common, where it decides how many passes a step has."""

    @abstractmethod
    def scaled(self, loss: Tensor) -> Tensor:
        """The loss as the backward pass scales it, for gradients that are taken separately, in float16."""

    @abstractmethod
    def log(self, *text: Any) -> None:
        """Write a line to the training log."""


class Step:
    """One training step: the batch, after every method's `TrainingModule.augment`, and the passes over it.

    Args:
        student: The network in training.
        batch: The batch.
        epoch: Number of the epoch, from 0.
    """

    def __init__(self, student: Student, batch: Batch, epoch: int) -> None:
        self.student, self.batch, self.epoch = student, batch, epoch
        self._own: Pass | None = None

    @property
    def own(self) -> Pass:
        """The forward pass of the batch; computed when it is first asked for, and shared by the methods."""
        if self._own is None:
            self._own = self.forward(self.batch.data)
        return self._own

    @property
    def output(self) -> Any:
        """Logits of the batch, ``(B, K, *spatial)``, a list under deep supervision."""
        return self.own.output

    def forward(self, data: Tensor) -> Pass:
        """Another forward pass, of ``(B, C + R, *spatial)``."""
        return self.student.run(data)

    def segmentation(self, output: Any, target: Scales | None = None) -> Tensor:
        """nnU-Net's own loss, against the batch's target if no other is given; a scalar."""
        return self.student.loss(output, self.batch.target if target is None else target)


def full_resolution(scales: Scales) -> Tensor:
    """The first of deep supervision's outputs or targets; without it, what is given."""
    return scales[0] if isinstance(scales, list) else scales


def stage_grids(patch_size: Sequence[int], strides: Sequence[Any]) -> list[tuple[int, ...]]:
    """The spatial shape of what comes out of each encoder stage, from the patch and the stages' strides."""
    grids, grid = [], tuple(patch_size)
    for stride in strides:
        steps = (stride,) * len(grid) if isinstance(stride, int) else stride
        grid = tuple(-(-size // step) for size, step in zip(grid, steps, strict=True))
        grids.append(grid)
    return grids
