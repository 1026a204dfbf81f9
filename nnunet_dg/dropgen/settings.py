"""What can be set about DropGen, and what is accepted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nnunet_dg.dropgen.dropout import check_probability
from nnunet_dg.extractors import EXTRACTORS, with_architecture
from nnunet_dg.extractors.base import SCALINGS

CHOICES = {
    "extractor": EXTRACTORS,
    "layer": ("penultimate", "final"),
    "extractor_scaling": tuple(SCALINGS),
    "combine": ("concat", "mean"),
    "inputs": ("image+features", "features", "image"),
    "masking": ("channel", "structured"),
    "image_scaling": ("none", "minmax"),
}


@dataclass(frozen=True)
class DropGenSettings:
    """Settings of DropGen. The defaults are the paper's method on nnU-Net's own normalisation.

    Attributes:
        extractor: the frozen feature extractor, by name.
        layer: which features of anatomix.
        weights: a checkpoint file for the extractor, or for `nnunet` the folder of a trained model; None: the published
            file. Read at the start of a training only.
        extractor_scaling: what the extractor gets, per patch: ``"minmax"`` (the paper's) or ``"zscore"``, as most
            nnU-Nets are trained.
        architecture: of the network in the model folder of `nnunet`; `completed` reads it.
        combine: with several image channels, their features are concatenated or averaged.
        inputs: what the network sees. With one of the two alone there is nothing to balance, and nothing is dropped.
        masking: drop channels one by one, or the image or all features at once (an ablation of the paper).
        p: the probability of dropping, in [0, 1).
        image_scaling: give the network the image as nnU-Net normalised it, or min-maxed per patch (the paper's).

    Raises:
        ValueError: a value that is not accepted, by name.
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

    def __post_init__(self) -> None:
        check_probability(self.p)
        for name, accepted in CHOICES.items():
            if getattr(self, name) not in accepted:
                raise ValueError(f"{name} must be one of {', '.join(accepted)}; got {getattr(self, name)!r}.")
        if self.weights is not None and not (isinstance(self.weights, str) and self.weights):
            raise ValueError(
                f"weights must be the path of a file, or for extractor 'nnunet' of a model folder, or null; "
                f"got {self.weights!r}."
            )
        if self.architecture is not None and not isinstance(self.architecture, dict):
            raise ValueError(f"architecture is read from the model folder: leave it unset; got {self.architecture!r}.")
        if self.extractor == "mind" and (self.weights is not None or self.layer != "penultimate"):
            raise ValueError("extractor 'mind' has neither weights nor layers: leave weights and layer unset.")
        if self.extractor == "nnunet" and self.layer != "penultimate":
            raise ValueError("extractor 'nnunet' has no layers: leave layer unset.")

    def completed(self, earlier: DropGenSettings | None = None) -> DropGenSettings:
        """With the architecture of the extractor's model folder, see `with_architecture`."""
        return with_architecture(self, self.extractor, earlier) if self.sees_features else self

    @property
    def sees_image(self) -> bool:
        """Whether the network sees the image."""
        return self.inputs in ("image+features", "image")

    @property
    def sees_features(self) -> bool:
        """Whether the network sees features."""
        return self.inputs in ("image+features", "features")
