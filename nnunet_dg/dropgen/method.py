"""DropGen as a method: its settings, the network around the planned one, and the weights of its extractor.

S. Diaz, P. Golland, E. Adalsteinsson, N. Dey, Why Invariance is Not Enough for Biomedical Domain Generalization and How
to Fix It, 2026, https://arxiv.org/abs/2604.02564.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

from torch import nn

from nnunet_dg.dropgen.dropout import ACCEPTED_P, LARGEST_P, is_rate
from nnunet_dg.dropgen.fusion import SQUEEZES
from nnunet_dg.dropgen.network import DropGenNetwork, build_dropgen_network, load_extractor
from nnunet_dg.dropgen.training import Annealing
from nnunet_dg.errors import DimensionError, SettingsError
from nnunet_dg.extractors import EXTRACTORS, default_normalization, with_architecture
from nnunet_dg.extractors.base import NORMALIZATIONS, SCALINGS
from nnunet_dg.method import Inputs, Method, Paper, Student, TrainingModule, choice, found, number, setting, text

OTHER_EXTRACTORS = tuple(name for name in EXTRACTORS if name != "anatomix")
NEWER_THAN_NORMALIZE = ("p_end", "fusion", "squeeze")


@dataclass(frozen=True)
class DropGen(Method):
    """DropGen: frozen, contrast-stable features next to the image, and channel dropout over both.

    S. Diaz, P. Golland, E. Adalsteinsson, N. Dey, Why Invariance is Not Enough for Biomedical Domain Generalization and
    How to Fix It, 2026, https://arxiv.org/abs/2604.02564, section 3.1. The defaults are the paper's method with
    nnU-Net's own normalization.

    Attributes:
        extractor: Name of the frozen feature extractor: ``"anatomix"`` (published as anatomix.pth), ``"anatomix-dev"``
            (anatomix-dev.pth of July 2026), ``"mind"`` (MIND-SSC descriptors, without weights), ``"nnunet"`` (a
            trained nnU-Net model) or ``"synthetic"`` (a small network trained on generated volumes).
        layer: Layer of anatomix from which the features are read: ``"penultimate"``, the first convolution of
            the last decoder block (the paper's), or ``"final"``, the output.
        weights: Checkpoint file of the extractor, or for `nnunet` the folder of the trained model; None: the published
            file, or for `synthetic` the one that this package includes. It is read only when a training starts.
        extractor_scaling: Scaling of each patch before the extractor: ``"minmax"`` to [0, 1] (the paper's) or
            ``"zscore"``, with which most nnU-Nets are trained.
        normalize: Normalization of the features: ``"instance"``, zero mean and unit variance of each channel (the
            paper's), or ``"voxelwise"``, unit norm over the channels of each voxel. None: voxelwise for anatomix-dev,
            as its authors recommend, and instance for the other extractors.
        architecture: Architecture of the network in the model folder of `nnunet`; filled in when a training starts.
        combine: How the features of several image channels are combined: ``"concat"`` (concatenated) or ``"mean"``
            (averaged).
        inputs: Input of the network: the image with its features, the features only, or the image only. The dropout is
            off unless the network sees both.
        masking: Unit of the dropout: ``"channel"`` drops channels independently, ``"structured"`` drops the image or
            all features at once (an ablation of the paper).
        p: Probability that a channel is dropped, in [0, 0.99]; with structured masking, that the image or the features
            are dropped. A list of the lowest and highest probability, such as [0.0, 0.75], is a range from which the
            probability of each sample is drawn uniformly in each pass.
        p_end: Probability of the last epoch, to which p moves linearly over the last fifth of the epochs. Both ends of
            a range move to it. None: p does not change, as in the paper.
        fusion: How the network gets the image and its features: ``"concat"`` (concatenated), or
            ``"squeeze-excitation"`` (concatenated, then each channel multiplied by a weight that a trained layer
            computes from the squeezed channels, in training and at inference; an ablation of the paper, which has no
            dropout, so set p to 0 for it).
        squeeze: Statistic of each channel from which squeeze-excitation computes the weights: ``"mean"``, as published,
            or ``"std"``. Instance-normalized features all have the same mean and deviation.
        image_scaling: Scaling of the image that the network sees: ``"none"`` keeps nnU-Net's normalization,
            ``"minmax"`` scales each patch to [0, 1] (the paper's).

    Raises:
        SettingsError: A setting has a value that is not accepted. The message names the setting.
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
        "misc",
    )

    extractor: str = choice("anatomix", *OTHER_EXTRACTORS)
    layer: str = choice("penultimate", "final")
    weights: str | None = text(None, "the path of a file, or for extractor 'nnunet' of a model folder, or null")
    extractor_scaling: str = choice(*SCALINGS)
    architecture: dict[str, Any] | None = found("it is read from the model folder")  # noqa: RUF009
    combine: str = choice("concat", "mean")
    inputs: str = choice("image+features", "features", "image")
    masking: str = choice("channel", "structured")
    p: float | tuple[float, float] = setting(
        0.5, ACCEPTED_P, is_rate, lambda p: tuple(p) if isinstance(p, (list, tuple)) else p
    )
    p_end: float | None = number(None, 0, LARGEST_P, null=True)
    fusion: str = choice("concat", "squeeze-excitation")
    squeeze: str = choice(*SQUEEZES)
    image_scaling: str = choice("none", "minmax")
    normalize: str | None = choice(None, *NORMALIZATIONS)

    def check(self) -> None:
        """Refuse settings that do not fit the extractor."""
        if self.extractor == "mind" and (self.weights is not None or self.layer != "penultimate"):
            raise SettingsError("extractor 'mind' has neither weights nor layers: leave weights and layer unset.")

        if self.extractor in ("nnunet", "synthetic") and self.layer != "penultimate":
            raise SettingsError(f"extractor '{self.extractor}' has no layers: leave layer unset.")

        if self.p_end is not None and not (self.sees_image and self.sees_features):
            raise SettingsError(
                f"p_end {self.p_end!r} has no effect with inputs {self.inputs!r}, for which the dropout is off: set it "
                f"to null (None)."
            )

        self._check_disabled()
        if self.squeeze != "mean" and self.fusion != "squeeze-excitation":
            raise SettingsError(f"squeeze {self.squeeze!r} is used by fusion 'squeeze-excitation' only: set it, too.")

    def _check_disabled(self) -> None:
        """Refuse settings of the dropout where it is off, and of an image that the network does not see."""
        both = self.sees_image and self.sees_features
        reason = "" if both else f"inputs {self.inputs!r}, for which the dropout is off"
        if both and self.p == 0 and not self.p_end:
            reason = "p 0, for which the dropout is off"
        if reason and self.masking != "channel":
            raise SettingsError(f"masking {self.masking!r} has no effect with {reason}: leave it unset.")
        if not self.sees_image and self.image_scaling != "none":
            raise SettingsError(
                f"image_scaling {self.image_scaling!r} has no effect with inputs {self.inputs!r}, since the network "
                f"does not see the image: leave it unset."
            )

    def build_network(self, build: Callable[[int], nn.Module], inputs: Inputs) -> DropGenNetwork:
        """The planned network with the image and its features as input. The extractor has no weights yet."""
        try:
            return build_dropgen_network(
                self, build, inputs.channels, inputs.image_channels, inputs.patch_size, inputs.outside
            )
        except DimensionError as error:
            raise DimensionError(
                f'{error} Train with nnUNetTrainerDropGen_MIND and leave plans["nnunet_dg"]["dropgen"]["extractor"] '
                f"unset."
            ) from error

    def prepare_network(self, network: nn.Module, log: Callable[[str], None]) -> None:
        """Fetch, verify and load the extractor's weights, unless the checkpoint contained them, and log their source.

        Raises:
            WeightsError: The weights are missing and cannot be fetched, or they are damaged or of another model.
        """
        for module in network.modules():
            if isinstance(module, DropGenNetwork):
                load_extractor(module, log)

    def training_module(self, student: Student) -> TrainingModule | None:
        """The annealing of p; None if p does not change, so that nnU-Net's own training step runs."""
        if self.p_end is None:
            return None
        return Annealing(self.p, self.p_end, student)

    def completed(self, earlier: DropGen | None = None) -> DropGen:
        """The settings, with the extractor's default normalization and the architecture of its model folder filled in.

        See `default_normalization` and `with_architecture`.
        """
        if not self.sees_features:
            return self
        normalize = self.normalize or default_normalization(self.extractor)
        return with_architecture(replace(self, normalize=normalize), self.extractor, earlier)

    @classmethod
    def upgraded(cls, given: dict[str, Any]) -> dict[str, Any]:
        """The settings from plans, where those recorded by an earlier version are translated to today's.

        Trainings record all settings. If all settings except ``normalize`` and newer ones are present, they were
        recorded before ``normalize`` existed, when features were always instance-normalized.
        """
        older = {field.name for field in fields(cls)} - {"normalize", *NEWER_THAN_NORMALIZE}
        return given | {"normalize": "instance"} if older <= set(given) and "normalize" not in given else given

    @property
    def sees_image(self) -> bool:
        """Whether the network sees the image."""
        return self.inputs in ("image+features", "image")

    @property
    def sees_features(self) -> bool:
        """Whether the network sees features."""
        return self.inputs in ("image+features", "features")
