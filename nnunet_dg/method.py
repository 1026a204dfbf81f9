"""The interface between a published method and the training that uses it. It does not import nnU-Net.

A trainer lists `Method` objects. A method owns its settings, its changes to the network, its training-only part (a
`TrainingModule`) and its citation. It sees nnU-Net only through `Student`, `Batch` and `Step`.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from torch import Tensor, nn

from nnunet_dg.fields import choice, encoder_stages, flag, found, number, numbers, probability, setting, subset, text
from nnunet_dg.outside import Outside
from nnunet_dg.step import PLACES, Batch, Pass, Step, Student, full_resolution

if TYPE_CHECKING:
    from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform

__all__ = [
    "PLACES", "AroundPlanned", "Batch", "Inputs", "Method", "Paper", "Pass", "Setting", "Step", "Student",
    "TrainingModule", "choice", "describe_settings", "encoder_stages", "flag", "found", "full_resolution", "number",
    "numbers", "probability", "setting", "subset", "text",
]  # fmt: skip

SEGMENTATION = "segmentation"  # the loss term that replaces nnU-Net's own loss
SLOTS = ("images", "feature statistics", "gradients and masks", "labels", "auxiliary task", "distillation", "network")
VENUE_FIELDS = {"inproceedings": "booktitle", "article": "journal", "misc": "note"}  # of BibTeX entries
M = TypeVar("M", bound="Method")


@dataclass(frozen=True)
class Paper:
    """The publication of a method.

    Attributes:
        title: Title.
        authors: First and last names, separated by commas.
        venue: Conference or journal, or what it is instead, such as "preprint".
        year: Year of publication.
        url: Address of the publication.
        entry: Type of the BibTeX entry: inproceedings (default), article, or misc.
    """

    title: str
    authors: str
    venue: str
    year: int
    url: str
    entry: str = "inproceedings"

    def bibtex(self, key: str) -> str:
        """The BibTeX entry with the citation key ``key``."""
        values = {"title": f"{{{self.title}}}", "author": self.authors.replace(", ", " and ")}
        values[VENUE_FIELDS[self.entry]] = self.venue
        rows = {name: f"{{{value}}}" for name, value in values.items()} | {
            "year": f"{{{self.year}}}",
            "url": f"{{{self.url}}}",
        }
        return f"@{self.entry}{{{key},\n" + "".join(f"  {name} = {value},\n" for name, value in rows.items()) + "}"


@dataclass(frozen=True)
class Inputs:
    """The inputs of a network.

    Attributes:
        channels: Number of all input channels, C + R.
        image_channels: Number of image channels, C, which come first. The other R are the one-hot prediction of a
            cascade's previous stage.
        patch_size: Spatial shape of the training patches, two or three sizes.
        outside: Meaning of exact zeros in the image channels.
        outputs: Number of output channels of the network, the segmentation heads.
    """

    channels: int
    image_channels: int
    patch_size: tuple[int, ...]
    outside: Outside
    outputs: int


class AroundPlanned(nn.Module):
    """Base of networks that wrap the planned one, `network`. nnU-Net toggles deep supervision on its decoder."""

    network: nn.Module

    @property
    def decoder(self) -> nn.Module:
        """The planned network's decoder."""
        return self.network.decoder  # type: ignore[return-value]


class TrainingModule(nn.Module):
    """The training-only part of a method.

    nnU-Net's optimizer optimizes its parameters in a separate parameter group. They are clipped together with those of
    the other methods, synchronized between devices, and saved in the checkpoint next to the network's weights.
    """

    compiled_parts: ClassVar[tuple[str, ...]] = ()
    """Names of the submodules that are compiled wherever nnU-Net compiles the network.

    They map tensors to tensors without a break of the graph: they neither read values of tensors nor change attributes
    other than buffers.
    """

    def augment(self, batch: Batch) -> Batch:
        """The batch that all methods and nnU-Net's loss see. Called once per step, before the first forward pass."""
        return batch

    def losses(self, step: Step) -> dict[str, Tensor]:
        """Scalar loss terms by name. `SEGMENTATION` replaces nnU-Net's loss. Terms of weight 0 may be omitted."""
        return {}

    def weights(self, epoch: int) -> dict[str, float]:
        """The weight of each term in an epoch, with the same names in all epochs. 0: the term is not computed."""
        return {}

    def compiled(self) -> list[nn.Module]:
        """The parts in `compiled_parts` that this training has."""
        return [self.get_submodule(name) for name in self.compiled_parts if name in self._modules]

    def conditions(self) -> dict[str, Any]:
        """Values by name that, in addition to the settings, must be unchanged when a training resumes."""
        return {}

    def prepare(self) -> None:
        """Called before a training starts or resumes, after the checkpoint or pretrained weights are loaded.

        Load frozen weights and write notes for the user to the log here.
        """

    def start_epoch(self, epoch: int) -> None:
        """Called before the first step of an epoch."""

    def end_epoch(self, epoch: int) -> None:
        """Called after the last step of an epoch."""

    def forward(self, step: Step) -> dict[str, Tensor]:
        """`losses` as a forward pass, so that DDP synchronizes the gradients between devices."""
        return self.losses(step)


@dataclass(frozen=True)
class Method:
    """Base of all methods: a frozen dataclass whose fields are the settings in ``plans["nnunet_dg"][key]``.

    Fields are declared with their checks: ``p: float = probability(0.5)``. A subclass is a ``@dataclass(frozen=True)``
    as well and defines the class attributes below.

    Raises:
        SettingsError: A setting has a value that is not accepted. The message names the setting.
    """

    key: ClassVar[str]
    """Name of the section in the plans."""
    paper: ClassVar[Paper]
    slot: ClassVar[str] = ""
    """What the method acts on, one of `SLOTS`."""
    changes_network: ClassVar[bool] = False
    """Whether prediction needs this package, because the network is not the planned one."""
    folds_at_export: ClassVar[bool] = False
    """Whether `fold_network` makes a changed network the planned one, so that plain nnU-Net can run it."""
    deep_supervision: ClassVar[bool] = True
    """Whether the network can have outputs at several resolutions; False: nnU-Net trains one at full resolution."""
    fewest_domains: ClassVar[int] = 1
    """Number of domains, according to ``domains.json``, that the training cases must at least have."""
    memory_settings: ClassVar[tuple[str, ...]] = ()
    """Settings that determine the network's memory use, which a planner may have taken into account."""

    def __post_init__(self) -> None:
        for field in fields(self):
            if check := field.metadata.get("check"):
                object.__setattr__(self, field.name, check.checked(field.name, getattr(self, field.name)))
        self.check()

    def check(self) -> None:
        """Raise a SettingsError for settings that cannot be combined."""

    def build_network(self, build: Callable[[int], nn.Module], inputs: Inputs) -> nn.Module:
        """The network for training and prediction; by default the planned one.

        Args:
            build: Function that builds the planned network for a number of input channels.
            inputs: Inputs of the network.
        """
        return build(inputs.channels)

    def fold_network(self, network: nn.Module) -> None:
        """Write the change of the network into the planned network's weights, in place, if `folds_at_export`."""

    def prepare_network(self, network: nn.Module, log: Callable[[str], None]) -> None:
        """Load the frozen weights of the network, before a training starts or resumes.

        Args:
            network: Network, neither compiled nor distributed.
            log: Function that writes a line to the training log.
        """

    def augmentation(self, patch_size: tuple[int, ...], in_plane_only: bool) -> list[BasicTransform] | None:
        """Transforms of batchgeneratorsv2 that replace nnU-Net's augmentation; None (default): nnU-Net's own.

        They include the crop to the patch. nnU-Net's mirroring, masking and handling of labels follow.

        Args:
            patch_size: Patch size of the network, two or three sizes.
            in_plane_only: Whether spatial transforms leave the first axis unchanged: nnU-Net's dummy 2-D augmentation
                for anisotropic patches.
        """
        return None

    @classmethod
    def replaces_augmentation(cls) -> bool:
        """Whether the method replaces nnU-Net's augmentation, that is, overrides `augmentation`."""
        return cls.augmentation is not Method.augmentation

    def training_module(self, student: Student) -> TrainingModule | None:
        """The training-only part of the method; by default None."""
        return None

    def balances_domains(self) -> bool:
        """Whether training batches are balanced over the domains of ``domains.json``."""
        return False

    def for_domains(self: M, count: Callable[[], int]) -> M:
        """The settings for a dataset. Called before `completed`.

        Args:
            count: Function that reads the number of the dataset's domains; 1 without ``domains.json``.
        """
        return self

    def completed(self: M, earlier: M | None = None) -> M:
        """The settings, with those filled in that are only known when a training starts.

        Args:
            earlier: Settings of an earlier training in the same results folder; None: there is no such training.
        """
        return self

    @classmethod
    def upgraded(cls, given: dict[str, Any]) -> dict[str, Any]:
        """The settings from plans, where those recorded by an earlier version are translated to today's.

        Args:
            given: Settings as they are in the plans, by name.
        """
        return given


@dataclass(frozen=True)
class Setting:
    """The description of a setting in the reference.

    Attributes:
        name: Name of the setting.
        default: Default value.
        accepted: Accepted values in words, which complete "must be ...".
        description: Meaning of the setting.
    """

    name: str
    default: Any
    accepted: str
    description: str


def describe_settings(method: type[Method]) -> list[Setting]:
    """The settings of a method, described by the "Attributes:" sections of its docstring and of its bases'."""
    described: dict[str, str] = {}
    for cls in reversed(method.__mro__):
        described |= _attributes(inspect.cleandoc(cls.__doc__ or ""))
    return [
        Setting(f.name, f.default, f.metadata["check"].accepted if "check" in f.metadata else "", described[f.name])
        for f in fields(method)
    ]


def _attributes(docstring: str) -> dict[str, str]:
    section = re.search(r"^Attributes:\n((?:(?:    .*)?\n?)+)", docstring, re.MULTILINE)
    entries = re.findall(r"^    (\w+): (.*(?:\n        .*)*)", section[1] if section else "", re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}
