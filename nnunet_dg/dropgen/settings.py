"""What can be set about DropGen, and what is accepted."""

from __future__ import annotations

from dataclasses import dataclass

from nnunet_dg.dropgen.dropout import check_probability
from nnunet_dg.extractors import EXTRACTORS

CHOICES = {
    "extractor": EXTRACTORS,
    "layer": ("penultimate", "final"),
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
        weights: a checkpoint file for the extractor; None: the published one. Read at the start of a training only.
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
            raise ValueError(f"weights must be the path of a file, or null; got {self.weights!r}.")
        if self.extractor == "mind" and (self.weights is not None or self.layer != "penultimate"):
            raise ValueError("extractor 'mind' has neither weights nor layers: leave weights and layer unset.")

    @property
    def sees_image(self) -> bool:
        """Whether the network sees the image."""
        return self.inputs in ("image+features", "image")

    @property
    def sees_features(self) -> bool:
        """Whether the network sees features."""
        return self.inputs in ("image+features", "features")
