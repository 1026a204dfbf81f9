"""A method's view of a training: the batch, the network and the passes of one step. It does not import nnU-Net."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from nnunet_dg.hooks import Change, Replay, Tap, activations, kept_buffers
from nnunet_dg.outside import Outside

PLACES = ("stage", "pre-activation")  # where `Student.change` replaces the features of an encoder stage
Scales = Tensor | list[Tensor]  # one tensor; under deep supervision, one per resolution, the full one first


@dataclass(frozen=True)
class Batch:
    """A training batch on the device.

    Attributes:
        data: Network input, ``(B, C + R, *spatial)``: C image channels, then R channels of a cascade's previous stage.
        target: Ground truth, ``(B, 1 or regions, *spatial)``; under deep supervision, a list from full to lowest
            resolution.
        keys: Case identifier of each sample.
        image_channels: Number of image channels, C.
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
        """The batch with its image channels replaced by ``images``, ``(B, C, *spatial)``."""
        rest = self.data[:, self.image_channels :]
        return replace(self, data=torch.cat([images, rest], 1) if rest.shape[1] else images)


class Pass:
    """One forward pass of the network in training mode.

    Attributes:
        output: Logits, ``(B, K, *spatial)``; under deep supervision, a list.
    """

    def __init__(self, output: Any, features: dict[Tap, Tensor]) -> None:
        self.output: Any = output
        self._features = features

    def features(self, tap: Tap) -> Tensor:
        """The features that a tap read in this pass, ``(B, A, *spatial)``, with their gradient."""
        return self._features[tap]


class Student(ABC):
    """The network in training and the parts of its trainer that methods may use.

    Attributes:
        network: Network as nnU-Net trains it: compiled, distributed and wrapped by the methods.
        widths: Number of channels of each encoder stage, from full resolution on.
        strides: Strides of each encoder stage, per axis.
        penultimate_width: Number of channels of the input of the last segmentation layer.
        image_channels: Number of image channels, C.
        patch_size: Spatial shape of the training patches, in voxels.
        voxel_size: Size of a voxel along each spatial axis, in millimeters.
        num_outputs: Number of segmentation heads.
        num_classes: Number of classes, including the background, without the ignore label; see `classes`.
        regions: Whether the heads are regions that may overlap.
        outside: Meaning of exact zeros in the image channels.
        num_epochs: Length of the training, in epochs.
        samples_per_device: Number of samples of a batch on each device.
    """

    network: nn.Module
    widths: list[int]
    strides: list[Any]
    penultimate_width: int
    image_channels: int
    patch_size: tuple[int, ...]
    voxel_size: tuple[float, ...]
    num_outputs: int
    num_classes: int
    regions: bool
    outside: Outside
    num_epochs: int
    samples_per_device: int

    def __init__(self) -> None:
        self.taps: list[Tap] = []
        self._before_pass: list[Callable[[Tensor], None]] = []
        self._aside = False

    @property
    def grids(self) -> list[tuple[int, ...]]:
        """Spatial shape of the output of each encoder stage, from full resolution on."""
        return stage_grids(self.patch_size, self.strides)

    def tap(self, stage: int | str) -> Tap:
        """Read features in every pass. Call this in the constructor of a training module, before the network runs.

        Args:
            stage: Encoder stage whose output is read (-1: the bottleneck), or ``"penultimate"`` for the input of the
                last segmentation layer, at full resolution.
        """
        tap = Tap(self.module(stage), "input" if stage == "penultimate" else "output")
        self.taps.append(tap)
        return tap

    def change(
        self, stage: int, function: Callable[[Tensor], Tensor], always: bool = False, at: str = "stage"
    ) -> Change:
        """Replace the features of an encoder stage in training mode, see `Change`.

        Call this in the constructor of a training module. Taps that were created before a change of the stage's output
        read the original output, later ones the changed output. After a change before the non-linearity, all taps read
        the output that follows from it.

        Args:
            stage: Encoder stage (-1: the bottleneck).
            function: Function from the features, ``(B, A, *spatial)``, to their replacement, which has the same shape.
            always: Whether the change also acts outside ``with change:``; default False.
            at: Place of the features. ``"stage"`` (default): the output of the stage. ``"pre-activation"``: the input
                of the stage's last non-linearity, which is the output of its last norm; in a residual block, it is the
                sum of this output and the skip connection. There, the mean of a channel decides which values the
                non-linearity changes. A mean that is changed at the output of a stage is removed again by the instance
                norm after the next convolution.

        Raises:
            SettingsError: The stage does not exist, or it has no non-linearity after its last norm.
        """
        if isinstance(stage, str):
            raise TypeError(f"Only the features of encoder stages can be replaced; got {stage!r}.")
        if at not in PLACES:
            raise ValueError(f"at must be one of {', '.join(PLACES)}; got {at!r}.")
        if at == "stage":
            return Change(self.module(stage), function, always)
        return Change(self.nonlinearity(stage), function, always, at="input")

    def replay(self, stage: int) -> Replay:
        """Give an encoder stage's features to a pass instead of computing them again, see `Replay`.

        This is for a second pass of the same data that differs in later stages only, if `passes_begin_equally`. Call it
        in the constructor of a training module.
        """
        return Replay(self.module(stage))

    @property
    def passes_begin_equally(self) -> bool:
        """Whether two passes of the same data have the same input at encoder stage 0: no method changes the network."""
        return True

    def before_each_pass(self, draw: Callable[[Tensor], None]) -> None:
        """Register a function that is called with the data ``(B, C + R, *spatial)`` before each training pass.

        Draw the random numbers for a change of features in it. Drawn inside the network, they would break the graph of
        `torch.compile`.
        """
        self._before_pass.append(draw)

    def run(self, data: Tensor, weights: Mapping[str, Tensor] | None = None) -> Pass:
        """A forward pass of ``(B, C + R, *spatial)``, with the features that the taps read.

        Args:
            data: Input of the network.
            weights: Tensors by name that stand for the parameters of `bare` in this pass, which is not compiled and
                leaves the running statistics of batch norm alone; None: the parameters themselves.
        """
        for draw in self._before_pass:
            draw(data)
        if weights is not None:
            with kept_buffers(self.network):
                # nnU-Net registers a module under several names; if PyTorch replaced a parameter once for each name, it
                # would not put the original back
                output = functional_call(self.bare, dict(weights), (data,), tie_weights=False)
        else:
            output = (self.undistributed if self._aside else self.network)(data)
        return Pass(output, {tap: tap.take() for tap in self.taps})

    @property
    def undistributed(self) -> nn.Module:
        """The network without `DistributedDataParallel`, still compiled."""
        return self.network

    @property
    def bare(self) -> nn.Module:
        """The network without `DistributedDataParallel` and not compiled."""
        return self.network

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Inside this context, passes are for gradients that a method computes itself, not for the loss of the step.

        Devices do not synchronize them, and they do not change the running statistics of batch norm.
        """
        self._aside = True
        try:
            with kept_buffers(self.network):
                yield
        finally:
            self._aside = False

    def activations(self) -> list[nn.Module]:
        """The non-linearities of encoder and decoder, as modules. Each is called once per pass."""
        return activations(self.network)

    @abstractmethod
    def module(self, stage: int | str) -> nn.Module:
        """A stage of the encoder, or for ``"penultimate"`` the last segmentation layer."""

    def nonlinearity(self, stage: int) -> nn.Module:
        """The last non-linearity of a stage of the encoder, which follows its last norm."""
        raise NotImplementedError(f"{type(self).__name__} does not know the last non-linearity of a stage.")

    @abstractmethod
    def loss(self, output: Any, target: Scales) -> Tensor:
        """nnU-Net's own loss, a scalar, over all resolutions of deep supervision."""

    @abstractmethod
    def full_resolution_loss(self, logits: Tensor, target: Scales) -> Tensor:
        """nnU-Net's own loss of ``(B, K, *spatial)`` at full resolution only."""

    @abstractmethod
    def classes(self, target: Scales) -> Tensor:
        """The class of each voxel, ``(B, *spatial)``, int64; -1: ignored.

        With regions, each combination of regions is a class.
        """

    @abstractmethod
    def domains(self, keys: Sequence[str]) -> Tensor:
        """The domain of each sample, ``(B,)``, int64, on the CPU; all 0 without ``domains.json``."""

    @property
    @abstractmethod
    def domain_names(self) -> tuple[str, ...]:
        """Names of the dataset's domains; one empty name without ``domains.json``."""

    @property
    @abstractmethod
    def training_domains(self) -> tuple[int, ...]:
        """Numbers of the domains with a training case in this fold; all of them before the data are read."""

    @property
    @abstractmethod
    def pretrained(self) -> bool:
        """Whether the training started from pretrained weights."""

    @abstractmethod
    def agreed(self, value: Tensor) -> Tensor:
        """The first device's value, on all devices: use it for a random number that decides how many passes run."""

    def averaged(self, value: Tensor) -> Tensor:
        """The mean of a tensor over all devices, without gradient. All devices must call it."""
        return value.detach()

    def gathered(self, values: Tensor) -> Tensor:
        """The values ``(B, *shape)`` of the samples on all devices, one after the other. All devices must call it.

        The gradient flows into the values of this device. A loss that every device computes from all of them then has
        the same gradient as the loss of one device with the whole batch.
        """
        return values

    @abstractmethod
    def scaled(self, loss: Tensor) -> Tensor:
        """The loss multiplied by the scale of mixed precision, for gradients that a method computes separately."""

    @abstractmethod
    def log(self, *text: Any) -> None:
        """Write a line to the training log."""


class Step:
    """One training step: the batch, after every method's `TrainingModule.augment`, and its forward passes.

    Args:
        student: Network in training.
        batch: Batch of the step.
        epoch: Number of the epoch, from 0.
    """

    def __init__(self, student: Student, batch: Batch, epoch: int) -> None:
        self.student, self.batch, self.epoch = student, batch, epoch
        self._own: Pass | None = None

    @property
    def own(self) -> Pass:
        """The forward pass of the batch, computed on first access and shared by all methods."""
        if self._own is None:
            self._own = self.forward(self.batch.data)
        return self._own

    @property
    def output(self) -> Any:
        """Logits of the batch, ``(B, K, *spatial)``; under deep supervision, a list."""
        return self.own.output

    def forward(self, data: Tensor) -> Pass:
        """An additional forward pass, of ``data (B, C + R, *spatial)``."""
        return self.student.run(data)

    def segmentation(self, output: Any, target: Scales | None = None) -> Tensor:
        """nnU-Net's own loss, a scalar; without a ``target``, the batch's target is used."""
        return self.student.loss(output, self.batch.target if target is None else target)


def full_resolution(scales: Scales) -> Tensor:
    """The full-resolution output or target: the first of a list, or a single tensor as it is."""
    return scales[0] if isinstance(scales, list) else scales


def stage_grids(patch_size: Sequence[int], strides: Sequence[Any]) -> list[tuple[int, ...]]:
    """The spatial shape of each encoder stage's output, computed from the patch size and the stages' strides."""
    grids, grid = [], tuple(patch_size)
    for stride in strides:
        steps = (stride,) * len(grid) if isinstance(stride, int) else stride
        grid = tuple(-(-size // step) for size, step in zip(grid, steps, strict=True))
        grids.append(grid)
    return grids
