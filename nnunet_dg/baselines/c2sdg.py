"""C2SDG: the channels of the first stage are divided into content and style, and only content is segmented.

S. Hu, Z. Liao, Y. Xia, Devil is in Channels: Contrastive Single Domain Generalization for Medical Image Segmentation,
MICCAI 2023, https://arxiv.org/abs/2306.05254.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.utils import parametrize

from nnunet_dg.baselines.slaug import global_augmentation
from nnunet_dg.errors import SettingsError
from nnunet_dg.method import AroundPlanned, Batch, Inputs, Method, Paper, Step, Student, TrainingModule, number
from nnunet_dg.sgcg.mixup import Partners, random_amplitude_mixup
from nnunet_dg.tensors import minmax, per_channel, wide

CONVOLUTIONS = (nn.Conv2d, nn.Conv3d)
NARROWEST, RANGE = 0.05, 0.1  # half-width of the exchanged frequencies: 0.05 + 0.1 U(0, 1)
HIDDEN, EMBEDDING = 8, 64


def channel_shares(prompt: Tensor, temperature: float = 0.1) -> Tensor:
    """The share of content and of style in each channel, which add up to 1; in at least float32.

    Args:
        prompt: Learned values, ``(2, A)``: content, style.
        temperature: Temperature; a lower one makes the shares closer to 0 and 1.

    >>> channel_shares(torch.tensor([[0.1, -0.2], [0.3, 0.05]]))
    tensor([[0.1192, 0.0759],
            [0.8808, 0.9241]])
    """
    return (wide(prompt) / temperature).softmax(0)


class ContentInput(nn.Module):
    """The weight of a convolution that sees the content of its last input channels; see `torch.nn.utils.parametrize`.

    ``(O, I, *kernel)`` -> the same shape: input channels are multiplied by the content's shares, which has the same
    effect as multiplying the features. Channels before them are left alone.

    Args:
        prompt: Learned values, ``(2, A)``, shared by all convolutions that see these features.
        before: Number of input channels before them.
        temperature: Temperature of the shares.
    """

    def __init__(self, prompt: nn.Parameter, before: int, temperature: float) -> None:
        super().__init__()
        self.prompt, self.before, self.temperature = prompt, before, temperature

    def forward(self, weight: Tensor) -> Tensor:
        content = channel_shares(self.prompt, self.temperature)[0].to(weight.dtype)
        factors = torch.cat([content.new_ones(self.before), content])
        return weight * factors.reshape(1, -1, *[1] * (weight.ndim - 2))


def first_convolutions(stage: nn.Module) -> list[Any]:
    """The convolutions of a stage that see its input: the first one, and that of a residual block's skip connection.

    Raises:
        SettingsError: The stage passes its input on without a convolution.

    >>> [type(layer).__name__ for layer in first_convolutions(torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3)))]
    ['Conv2d']
    """
    modules = list(stage.modules())
    first: list[Any] = [module for module in modules if isinstance(module, CONVOLUTIONS)][:1]
    for block in modules:
        if hasattr(block, "skip"):
            skip: Any = block.skip
            inside = skip.modules() if isinstance(skip, nn.Module) else []
            found: list[Any] = [module for module in inside if isinstance(module, CONVOLUTIONS)]
            if not found:
                raise SettingsError(
                    "C2SDG needs a convolution in the skip connection of the second encoder stage's first block; this "
                    "planned network has as many channels in its second stage as in its first. Use plans in which the "
                    "second stage is wider, such as those of nnU-Net's planners."
                )
            return first + found
    return first


def use_content(network: nn.Module, temperature: float) -> None:
    """Make a planned U-Net see only the content of its first encoder stage's output, in place.

    >>> from types import SimpleNamespace
    >>> conv = torch.nn.Conv2d
    >>> stages = torch.nn.ModuleList([conv(1, 2, 1), conv(2, 4, 1)])
    >>> encoder, decoder = torch.nn.Module(), torch.nn.Module()
    >>> encoder.stages, encoder.output_channels, decoder.stages = stages, [2, 4], torch.nn.ModuleList([conv(4, 2, 1)])
    >>> network = torch.nn.Module()
    >>> network.encoder, network.decoder = encoder, decoder
    >>> use_content(network, 0.1)
    >>> [name for name, _ in decoder.named_parameters()][-1]
    'stages.0.parametrizations.weight.0.prompt'
    """
    while isinstance(network, AroundPlanned):
        network = network.network
    planned: Any = network
    width = planned.encoder.output_channels[0]
    prompt = nn.Parameter(torch.randn(2, width))
    for layer in first_convolutions(planned.encoder.stages[1]):
        parametrize.register_parametrization(layer, "weight", ContentInput(prompt, 0, temperature))
    for layer in first_convolutions(planned.decoder.stages[-1]):
        before = layer.in_channels - width
        parametrize.register_parametrization(layer, "weight", ContentInput(prompt, before, temperature))


def content_inputs(network: nn.Module) -> list[ContentInput]:
    """The changes that `use_content` made.

    >>> content_inputs(torch.nn.Conv2d(1, 1, 1))
    []
    """
    return [module for module in network.modules() if isinstance(module, ContentInput)]


@dataclass(frozen=True)
class C2SDG(Method):
    """C2SDG: learned shares divide the first stage's channels into content and style; only content is segmented.

    S. Hu, Z. Liao, Y. Xia, Devil is in Channels: Contrastive Single Domain Generalization for Medical Image
    Segmentation, MICCAI 2023, https://arxiv.org/abs/2306.05254; the row CCSDG in TinyMIG's tables. Each image has two
    more versions: one with the low-frequency amplitude of a partner, of another domain according to ``domains.json`` if
    there is one, and one whose intensities pass through SLAug's global map. All three are trained with nnU-Net's loss.
    The shares and a small projector are trained so that the contents of the versions are alike and their styles differ;
    the features are constants for this term.

    The output of the first encoder stage is divided, after its norm and non-linearity: an instance norm would cancel a
    factor before it. The factors are part of the weights of the next convolution and of the decoder's. ``nnunet-dg
    export`` writes them there, so that plain nnU-Net predicts the same. The paper's projector has a linear layer for
    images of 512 x 512; here, its features are averaged over space, and it has no batch norm. The paper makes three
    separate steps for the three versions, here their losses are added. A step takes the time and memory of three.

    Attributes:
        temperature: Temperature of the shares; a lower one makes them closer to 0 and 1.
        contrast: Weight of the term that divides content and style; 0 disables it.
    """

    key: ClassVar[str] = "c2sdg"
    slot: ClassVar[str] = "network"
    changes_network: ClassVar[bool] = True
    folds_at_export: ClassVar[bool] = True
    paper: ClassVar[Paper] = Paper(
        "Devil is in Channels: Contrastive Single Domain Generalization for Medical Image Segmentation",
        "Shishuai Hu, Zehui Liao, Yong Xia",
        "Medical Image Computing and Computer Assisted Intervention (MICCAI)",
        2023,
        "https://arxiv.org/abs/2306.05254",
    )

    temperature: float = number(0.1, 1e-2, 1e3)
    contrast: float = number(1.0, 0)

    def balances_domains(self) -> bool:
        """Batches are balanced over the domains."""
        return True

    def build_network(self, build: Callable[[int], nn.Module], inputs: Inputs) -> nn.Module:
        """The planned network, which sees only the content of its first stage."""
        network = build(inputs.channels)
        use_content(network, self.temperature)
        return network

    def fold_network(self, network: nn.Module) -> None:
        """Write the factors into the weights of the convolutions, in place: the network is the planned one again."""
        for module in list(network.modules()):
            if parametrize.is_parametrized(module, "weight"):
                parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)

    def training_module(self, student: Student) -> C2SDGTraining:
        """The training module, with the projector."""
        return C2SDGTraining(self, student)


class Projector(nn.Module):
    """Content or style of a stage as a vector: ``(B, A, *spatial)`` -> ``(B, 64)``, of norm 1, in at least float32.

    Args:
        width: Number of channels, A.
        dims: Number of spatial axes.
    """

    def __init__(self, width: int, dims: int) -> None:
        super().__init__()
        convolution: Any = {2: nn.Conv2d, 3: nn.Conv3d}[dims]
        self.convolution, self.linear = convolution(width, HIDDEN, 3, padding=1), nn.Linear(HIDDEN, EMBEDDING)

    def forward(self, x: Tensor) -> Tensor:
        pooled = wide(F.leaky_relu(self.convolution(x))).flatten(2).mean(2)
        return F.normalize(wide(self.linear(pooled)), dim=1)


class C2SDGTraining(TrainingModule):
    """Trains three versions of each image, and divides content and style.

    Args:
        settings: Settings, see `C2SDG`.
        student: Network in training.
    """

    def __init__(self, settings: C2SDG, student: Student) -> None:
        super().__init__()
        self.settings, self.student = settings, student
        self.partners = Partners()
        if settings.contrast:
            self.stage = student.tap(0)
            self.projector = Projector(student.widths[0], len(student.patch_size))

    def weights(self, epoch: int) -> dict[str, float]:
        """Weights of the terms."""
        weights = {"segmentation": 1.0, "segmentation_amplitude": 1.0, "segmentation_map": 1.0}
        return weights | ({"content_and_style": self.settings.contrast} if self.settings.contrast else {})

    def losses(self, step: Step) -> dict[str, Tensor]:
        """nnU-Net's loss of the three versions, and the difference of their contents minus that of their styles."""
        versions = self.exchanged(step.batch), self.mapped(step.batch)
        amplitude, mapped = (step.forward(version.data) for version in versions)
        terms = {
            "segmentation": step.segmentation(step.output),
            "segmentation_amplitude": step.segmentation(amplitude.output),
            "segmentation_map": step.segmentation(mapped.output),
        }
        if self.settings.contrast:
            features = [each.features(self.stage).detach() for each in (step.own, amplitude, mapped)]
            terms["content_and_style"] = self._division(features)
        return terms

    def _division(self, features: list[Tensor]) -> Tensor:
        prompt = content_inputs(self.student.bare)[0].prompt
        shares = channel_shares(prompt, self.settings.temperature)
        content, style = (
            [self.projector(wide(feature) * per_channel(share[None], feature)) for feature in features]
            for share in shares
        )
        alike, different = (
            torch.stack([F.l1_loss(vectors[0], other) for other in vectors[1:]]).sum() for vectors in (content, style)
        )
        return alike - different

    def exchanged(self, batch: Batch) -> Batch:
        """The batch with the low-frequency amplitude of partners. Voxels outside a mask and padding stay zero."""
        images = batch.images
        partners = self.partners.of(images, self.student.domains(batch.keys))
        width = NARROWEST + RANGE * float(torch.rand(()))
        own = torch.zeros(len(images), device=images.device)
        changed = random_amplitude_mixup(images, partners, own, width)
        return batch.with_images(changed.masked_fill(self.student.outside.channels(images), 0))

    def mapped(self, batch: Batch) -> Batch:
        """The batch with intensities through SLAug's global map. Voxels outside a mask and padding stay zero."""
        images, outside = batch.images, self.student.outside
        visible = wide(outside.to_minimum(images))
        axes = tuple(range(2, images.ndim))
        low, high = visible.amin(axes, keepdim=True), visible.amax(axes, keepdim=True)
        changed = low + (high - low) * global_augmentation(minmax(visible))
        return batch.with_images(changed.to(images.dtype).masked_fill(outside.channels(images), 0))
