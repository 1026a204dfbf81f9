"""What can be set about DropGen, and what is accepted."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from nnunet_dg.dropgen.dropout import check_probability
from nnunet_dg.errors import SettingsError
from nnunet_dg.extractors import EXTRACTORS, default_normalization, with_architecture
from nnunet_dg.extractors.base import NORMALIZATIONS, SCALINGS

CHOICES = {
    "extractor": EXTRACTORS,
    "layer": ("penultimate", "final"),
    "extractor_scaling": tuple(SCALINGS),
    "normalize": (None, *NORMALIZATIONS),
    "combine": ("concat", "mean"),
    "inputs": ("image+features", "features", "image"),
    "masking": ("channel", "structured"),
    "image_scaling": ("none", "minmax"),
}


@dataclass(frozen=True)
class DropGenSettings:
    """Settings of DropGen. The defaults are the paper's method on nnU-Net's own normalization.

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

    extractor: str = "anatomix"
    layer: str = "penultimate"
    weights: str | None = None
    extractor_scaling: str = "minmax"
    architecture: dict[str, Any] | None = None
    combine: str = "concat"
    inputs: str = "image+features"
    masking: str = "channel"
    p: float = 0.5
    image_scaling: str = "none"
    normalize: str | None = None

    def __post_init__(self) -> None:
        check_probability(self.p)
        for name, accepted in CHOICES.items():
            if getattr(self, name) not in accepted:
                names = ", ".join("null" if value is None else value for value in accepted)
                raise SettingsError(f"{name} must be one of {names}; got {getattr(self, name)!r}.")
        if self.weights is not None and not _is_path(self.weights):
            raise SettingsError(
                f"weights must be the path of a file, or for extractor 'nnunet' of a model folder, or null; "
                f"got {self.weights!r}."
            )
        if self.architecture is not None and not isinstance(self.architecture, dict):
            raise SettingsError(
                f"architecture is read from the model folder: leave it unset; got {self.architecture!r}."
            )
        if self.extractor == "mind" and (self.weights is not None or self.layer != "penultimate"):
            raise SettingsError("extractor 'mind' has neither weights nor layers: leave weights and layer unset.")
        if self.extractor == "nnunet" and self.layer != "penultimate":
            raise SettingsError("extractor 'nnunet' has no layers: leave layer unset.")

    def completed(self, earlier: DropGenSettings | None = None) -> DropGenSettings:
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


def _is_path(value: object) -> bool:
    return isinstance(value, str) and value != "" and "\0" not in value
