"""DropGen as a method: its settings, the network around the planned one, and the weights of its extractor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

from torch import nn

from nnunet_dg.dropgen.dropout import LARGEST_P
from nnunet_dg.dropgen.network import DropGenNetwork, build_dropgen_network, load_extractor
from nnunet_dg.errors import DimensionError, SettingsError
from nnunet_dg.extractors import EXTRACTORS, default_normalization, with_architecture
from nnunet_dg.extractors.base import NORMALIZATIONS, SCALINGS
from nnunet_dg.method import Inputs, Method, Paper, choice, found, probability, text

OTHER_EXTRACTORS = tuple(name for name in EXTRACTORS if name != "anatomix")


@dataclass(frozen=True)
class DropGen(Method):
    """DropGen: frozen, contrast-stable features next to the image, and channel dropout over both.

    S. Diaz, P. Golland, E. Adalsteinsson, N. Dey, Why Invariance is Not Enough for Biomedical Domain Generalization and
    How to Fix It, 2026, https://arxiv.org/abs/2604.02564, section 3.1. The defaults are the paper's method on nnU-Net's
    own normalization.

    Attributes:
        extractor: the frozen feature extractor, by name: ``"anatomix"`` (published as anatomix.pth), ``"anatomix-dev"``
            (anatomix-dev.pth of July 2026), ``"mind"`` or ``"nnunet"``.
        layer: which features of anatomix.
        weights: a checkpoint file for the extractor, or for `nnunet` the folder of a trained model; None: the published
            file. Read at the start of a training only.
        extractor_scaling: what the extractor gets, per patch: ``"minmax"`` (the paper's) or ``"zscore"``, as most
            nnU-Nets are trained.
        normalize: what is done to the features: ``"instance"`` (zero mean and unit variance of each channel, the
            paper's) or ``"voxelwise"`` (unit norm over the channels of each voxel). None: by extractor, voxelwise for
            anatomix-dev, whose authors ask for it, and instance for the others.
        architecture: of the network in the model folder of `nnunet`; `completed` reads it.
        combine: with several image channels, their features are concatenated or averaged.
        inputs: what the network sees. With one of the two alone there is nothing to balance, and nothing is dropped.
        masking: drop channels one by one, or the image or all features at once (an ablation of the paper).
        p: the probability of dropping, in [0, 0.99].
        image_scaling: give the network the image as nnU-Net normalized it, or min-maxed per patch (the paper's).

    Raises:
        SettingsError: a value that is not accepted, by name.
    """

    key: ClassVar[str] = "dropgen"
    slot: ClassVar[str] = "network"
    changes_network: ClassVar[bool] = True
    memory_settings: ClassVar[tuple[str, ...]] = ("extractor", "layer", "combine", "inputs")
    paper: ClassVar[Paper] = Paper(
        "Why Invariance is Not Enough for Biomedical Domain Generalization and How to Fix It",
        "Sebo Diaz, Polina Golland, Elfar Adalsteinsson, Neel Dey",
        "arXiv 2604.02564",
        2026,
        "https://arxiv.org/abs/2604.02564",
    )

    extractor: str = choice("anatomix", *OTHER_EXTRACTORS)
    layer: str = choice("penultimate", "final")
    weights: str | None = text(None, "the path of a file, or for extractor 'nnunet' of a model folder, or null")
    extractor_scaling: str = choice(*SCALINGS)
    architecture: dict[str, Any] | None = found("it is read from the model folder")  # noqa: RUF009
    combine: str = choice("concat", "mean")
    inputs: str = choice("image+features", "features", "image")
    masking: str = choice("channel", "structured")
    p: float = probability(0.5, LARGEST_P)
    image_scaling: str = choice("none", "minmax")
    normalize: str | None = choice(None, *NORMALIZATIONS)

    def check(self) -> None:
        """Refuse settings that do not fit the extractor."""
        if self.extractor == "mind" and (self.weights is not None or self.layer != "penultimate"):
            raise SettingsError("extractor 'mind' has neither weights nor layers: leave weights and layer unset.")
        if self.extractor == "nnunet" and self.layer != "penultimate":
            raise SettingsError("extractor 'nnunet' has no layers: leave layer unset.")

    def build_network(self, build: Callable[[int], nn.Module], inputs: Inputs) -> DropGenNetwork:
        """The planned network, which sees the image and its features; the extractor is still without weights."""
        try:
            return build_dropgen_network(
                self, build, inputs.channels, inputs.image_channels, inputs.patch_size, inputs.outside
            )
        except DimensionError as error:
            raise DimensionError(
                f'{error} Use -tr nnUNetTrainerDropGen_MIND, and no extractor in plans["nnunet_dg"]["dropgen"].'
            ) from error

    def prepare_network(self, network: nn.Module, log: Callable[[str], None]) -> None:
        """Fetch, verify and load the extractor's weights, unless a checkpoint has brought them; log which.

        Raises:
            WeightsError: They are missing and cannot be fetched, or are not what they should be.
        """
        for module in network.modules():
            if isinstance(module, DropGenNetwork):
                load_extractor(module, log)

    def completed(self, earlier: DropGen | None = None) -> DropGen:
        """With what the extractor decides: how features are normalized, and the architecture of its model folder.

        See `default_normalization` and `with_architecture`.
        """
        if not self.sees_features:
            return self
        normalize = self.normalize or default_normalization(self.extractor)
        return with_architecture(replace(self, normalize=normalize), self.extractor, earlier)

    @classmethod
    def upgraded(cls, given: dict[str, Any]) -> dict[str, Any]:
        """Settings from plans, with what those that an earlier version recorded mean.

        Trainings record all settings. If all are there but ``normalize``, they are from before it existed, when
        features were always instance-normalized.
        """
        older = {field.name for field in fields(cls)} - {"normalize"}
        return given | {"normalize": "instance"} if set(given) == older else given

    @property
    def sees_image(self) -> bool:
        """Whether the network sees the image."""
        return self.inputs in ("image+features", "image")

    @property
    def sees_features(self) -> bool:
        """Whether the network sees features."""
        return self.inputs in ("image+features", "features")
