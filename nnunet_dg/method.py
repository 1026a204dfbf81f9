"""The port between a published method and the training that it takes part in. Pure PyTorch: no nnU-Net here.

A trainer lists `Method` objects. A method owns its settings, what it adds to the network, what it adds to the training
(a `TrainingModule`), and its citation. `Student`, `Batch` and `Step` are all that it knows of nnU-Net.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, ClassVar, TypeVar

from torch import Tensor, nn

from nnunet_dg.fields import choice, flag, found, number, numbers, probability, setting, subset, text
from nnunet_dg.outside import Outside
from nnunet_dg.step import Batch, Pass, Step, Student, full_resolution

__all__ = [
    "AroundPlanned", "Batch", "Inputs", "Method", "Paper", "Pass", "Setting", "Step", "Student", "TrainingModule",
    "choice", "describe_settings", "flag", "found", "full_resolution", "number", "numbers", "probability", "setting",
    "subset", "text",
]  # fmt: skip

SEGMENTATION = "segmentation"  # the loss term that replaces nnU-Net's own loss
SLOTS = ("images", "feature statistics", "gradients and masks", "labels", "auxiliary task", "distillation", "network")
M = TypeVar("M", bound="Method")


@dataclass(frozen=True)
class Paper:
    """The publication of a method."""

    title: str
    authors: str
    venue: str
    year: int
    url: str

    def bibtex(self, key: str) -> str:
        """The BibTeX entry, cited as ``key``."""
        parts = {"title": f"{{{self.title}}}", "author": self.authors.replace(", ", " and "), "note": self.venue}
        rows = {name: f"{{{value}}}" for name, value in parts.items()} | {
            "year": f"{{{self.year}}}",
            "url": f"{{{self.url}}}",
        }
        return f"@misc{{{key},\n" + "".join(f"  {name} = {value},\n" for name, value in rows.items()) + "}"


@dataclass(frozen=True)
class Inputs:
    """What a network takes.

    Attributes:
        channels: All input channels, C + R.
        image_channels: C, the first of them. The other R are the previous stage of a cascade as one-hot.
        patch_size: Spatial shape of the training patches, two or three sizes.
        outside: What exact zeros mean in the image channels.
    """

    channels: int
    image_channels: int
    patch_size: tuple[int, ...]
    outside: Outside


class AroundPlanned(nn.Module):
    """Base of networks that wrap the planned one, `network`, on whose decoder nnU-Net switches deep supervision."""

    network: nn.Module

    @property
    def decoder(self) -> nn.Module:
        """The planned network's decoder."""
        return self.network.decoder  # type: ignore[return-value]


class TrainingModule(nn.Module):
    """What a method has during training only.

    Its parameters are optimized with nnU-Net's optimizer in a parameter group of their own, clipped together with those
    of the other methods, synchronized between devices, and saved next to the network, never in it.
    """

    def augment(self, batch: Batch) -> Batch:
        """The batch that every method and nnU-Net's loss then see; called once a step, before any forward pass."""
        return batch

    def losses(self, step: Step) -> dict[str, Tensor]:
        """Loss terms by name, scalars. `SEGMENTATION` replaces nnU-Net's own loss. Weightless ones may be left out."""
        return {}

    def weights(self, epoch: int) -> dict[str, float]:
        """The weight of every term in an epoch; the same names in all epochs. 0: the term is not computed."""
        return {}

    def conditions(self) -> dict[str, Any]:
        """What, in addition to the settings, must be unchanged when a training resumes, by name."""
        return {}

    def prepare(self) -> None:
        """Called before a training starts or resumes, once checkpoint or pretrained weights are loaded.

        The place to load frozen weights and to say in the log what the user should know.
        """

    def start_epoch(self, epoch: int) -> None:
        """Called before the first step of an epoch."""

    def end_epoch(self, epoch: int) -> None:
        """Called after the last step of an epoch."""

    def forward(self, step: Step) -> dict[str, Tensor]:
        """`losses`, as a forward pass, which is what synchronizes gradients between devices."""
        return self.losses(step)


@dataclass(frozen=True)
class Method:
    """Base of all methods: a frozen dataclass whose fields are its settings, in ``plans["nnunet_dg"][key]``.

    Fields are declared with their checks: ``p: float = probability(0.5)``. A subclass is a ``@dataclass(frozen=True)``
    as well, with the class attributes below.

    Raises:
        SettingsError: A value that is not accepted, by name.
    """

    key: ClassVar[str]
    """Name of the section in the plans."""
    paper: ClassVar[Paper]
    slot: ClassVar[str] = ""
    """Where it acts, one of `SLOTS`."""
    changes_network: ClassVar[bool] = False
    """Whether prediction needs this package, because the network is not the planned one."""
    memory_settings: ClassVar[tuple[str, ...]] = ()
    """Settings that decide how much memory the network takes, which a planner may have counted."""

    def __post_init__(self) -> None:
        for field in fields(self):
            if check := field.metadata.get("check"):
                object.__setattr__(self, field.name, check.checked(field.name, getattr(self, field.name)))
        self.check()

    def check(self) -> None:
        """Refuse combinations of settings, with a SettingsError."""

    def build_network(self, build: Callable[[int], nn.Module], inputs: Inputs) -> nn.Module:
        """The network for training and prediction; by default the planned one.

        Args:
            build: Makes the planned network for a number of input channels.
            inputs: What the network takes.
        """
        return build(inputs.channels)

    def prepare_network(self, network: nn.Module, log: Callable[[str], None]) -> None:
        """Load what is frozen in the network, before a training starts or resumes.

        Args:
            network: The network, neither compiled nor distributed.
            log: Writes a line to the training log.
        """

    def training_module(self, student: Student) -> TrainingModule | None:
        """What exists during training only; by default nothing."""
        return None

    def balances_domains(self) -> bool:
        """Whether training batches are balanced over the domains of ``domains.json``."""
        return False

    def completed(self: M, earlier: M | None = None) -> M:
        """With settings that only the start of a training can find out.

        Args:
            earlier: The settings of an earlier training in the same results folder.
        """
        return self

    @classmethod
    def upgraded(cls, given: dict[str, Any]) -> dict[str, Any]:
        """Settings from plans, with what those that an earlier version recorded mean."""
        return given


@dataclass(frozen=True)
class Setting:
    """A setting as the reference describes it."""

    name: str
    default: Any
    accepted: str
    description: str


def describe_settings(method: type[Method]) -> list[Setting]:
    """The settings of a method; descriptions are the "Attributes:" of its docstring."""
    described = _attributes(inspect.getdoc(method) or "")
    return [
        Setting(f.name, f.default, f.metadata["check"].accepted if "check" in f.metadata else "", described[f.name])
        for f in fields(method)
    ]


def _attributes(docstring: str) -> dict[str, str]:
    section = re.search(r"^Attributes:\n((?:(?:    .*)?\n?)+)", docstring, re.MULTILINE)
    entries = re.findall(r"^    (\w+): (.*(?:\n        .*)*)", section[1] if section else "", re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}
