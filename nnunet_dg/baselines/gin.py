"""GIN: images pass through a small random convolutional network that is new in every step.

C. Ouyang, C. Chen, S. Li, Z. Li, C. Qin, W. Bai, D. Rueckert, Causality-inspired Single-source Domain Generalization
for Medical Image Segmentation, IEEE Transactions on Medical Imaging 42(4), 2022, https://arxiv.org/abs/2111.12525.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from nnunet_dg.method import Batch, Method, Paper, Student, TrainingModule, flag, number
from nnunet_dg.tensors import wide

KERNEL_SIZES = (1, 3)
SLOPE = 0.01  # of the leaky ReLU
EPS = 1e-5
CONVOLUTIONS = {2: F.conv2d, 3: F.conv3d}

Layer = tuple[Tensor, Tensor]  # kernels (B, out, in, *k) and biases (B, out)


def draw_layers(
    samples: int, channels: int, dims: int, layers: int = 4, hidden: int = 2, device: torch.device | None = None
) -> list[Layer]:
    """Random convolutions, each sample's own: kernels and biases from N(0, 1), without scaling by fan-in.

    Args:
        samples: B.
        channels: C of the images, which is what the last layer returns.
        dims: Number of spatial axes, 2 or 3.
        layers: Number of convolutions.
        hidden: Channels between them.
        device: Where they are drawn.
    """
    widths = [channels, *[hidden] * (layers - 1), channels]
    drawn = []
    for given, made in pairwise(widths):
        size = KERNEL_SIZES[int(torch.randint(len(KERNEL_SIZES), ()))]
        kernel = torch.randn(samples, made, given, *[size] * dims, device=device)
        drawn.append((kernel, torch.randn(samples, made, device=device)))
    return drawn


@torch.no_grad()
def global_intensity_augmentation(image: Tensor, layers: Sequence[Layer], share: Tensor) -> Tensor:
    """``share * network(image) + (1 - share) * image``, scaled to the image's Frobenius norm; section III-B.

    The norms are over channels and space of each sample. Computed in at least float32, without gradient; zero padding.

    Args:
        image: ``(B, C, *spatial)``, any range.
        layers: See `draw_layers`; between two of them is a leaky ReLU with slope 0.01.
        share: ``(B,)``, in [0, 1].

    Returns:
        ``(B, C, *spatial)``, in the dtype of the image.

    >>> image, double = torch.tensor([[[[1.0, -2.0]]]]), (2 * torch.ones(1, 1, 1, 1, 1), torch.zeros(1, 1))
    >>> global_intensity_augmentation(image, [double], torch.tensor([0.5]))
    tensor([[[[ 1.0000, -2.0000]]]])
    """
    with torch.autocast(image.device.type, enabled=False):
        given = wide(image)
        x = given
        for i, layer in enumerate(layers):
            x = _convolve(x, *layer)
            if i < len(layers) - 1:
                x = F.leaky_relu(x, SLOPE)
        share = share.to(given).reshape(-1, *[1] * (image.ndim - 1))
        mixed = share * x + (1 - share) * given
        return (mixed * _norm(given) / (_norm(mixed) + EPS)).to(image.dtype)


def _convolve(x: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
    """Each sample ``(B, in, *spatial)`` with its own kernels."""
    samples, convolution = len(x), CONVOLUTIONS[x.ndim - 2]
    padding = kernel.shape[-1] // 2
    kernel, bias = kernel.to(x), bias.to(x)
    result = convolution(x.flatten(0, 1)[None], kernel.flatten(0, 1), bias.flatten(), padding=padding, groups=samples)
    return result[0].unflatten(0, (samples, -1))


def _norm(x: Tensor) -> Tensor:
    return x.flatten(1).norm(dim=1).reshape(-1, *[1] * (x.ndim - 1))


@dataclass(frozen=True)
class GIN(Method):
    """GIN: every training image passes through a small random network, new in every step.

    C. Ouyang et al., Causality-inspired Single-source Domain Generalization for Medical Image Segmentation, IEEE TMI
    42(4), 2022, https://arxiv.org/abs/2111.12525. Applied to every sample, on the device, after nnU-Net's augmentation.
    The reference copies an image to three channels; here a network with C channels in and out is drawn.

    Attributes:
        layers: Number of random convolutions.
        hidden: Channels between them.
        keep_outside: Voxels outside a mask and zero padding stay zero, as they are at inference; False: as published.
    """

    key: ClassVar[str] = "gin"
    slot: ClassVar[str] = "images"
    paper: ClassVar[Paper] = Paper(
        "Causality-inspired Single-source Domain Generalization for Medical Image Segmentation",
        "Cheng Ouyang, Chen Chen, Surui Li, Zeju Li, Chen Qin, Wenjia Bai, Daniel Rueckert",
        "IEEE Transactions on Medical Imaging 42(4)",
        2022,
        "https://arxiv.org/abs/2111.12525",
    )

    layers: int = number(4, 1, 64, whole=True)
    hidden: int = number(2, 1, 1024, whole=True)
    keep_outside: bool = flag(True)

    def training_module(self, student: Student) -> GINTraining:
        """The augmentation."""
        return GINTraining(self, student)


class GINTraining(TrainingModule):
    """Augments the images of every batch.

    Args:
        settings: See `GIN`.
        student: The network in training.
    """

    def __init__(self, settings: GIN, student: Student) -> None:
        super().__init__()
        self.settings, self.outside = settings, student.outside

    def augment(self, batch: Batch) -> Batch:
        """The batch with other intensities in its image channels."""
        image, settings = batch.images, self.settings
        samples, channels = image.shape[:2]
        layers = draw_layers(samples, channels, image.ndim - 2, settings.layers, settings.hidden, image.device)
        changed = global_intensity_augmentation(image, layers, torch.rand(samples, device=image.device))
        if settings.keep_outside:
            changed = changed.masked_fill(self.outside.channels(image), 0)
        return batch.with_images(changed)
