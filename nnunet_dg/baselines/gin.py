"""GIN: images pass through a small random convolutional network that is drawn again in every step.

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
from nnunet_dg.outside import Outside
from nnunet_dg.tensors import wide

KERNEL_SIZES = (1, 3)
SLOPE = 0.01  # negative slope of the leaky ReLU
EPS = 1e-5
CONVOLUTIONS = {2: F.conv2d, 3: F.conv3d}

Layer = tuple[Tensor, Tensor]  # kernels (B, out, in, *k) and biases (B, out)


def draw_layers(
    samples: int, channels: int, dims: int, layers: int = 4, hidden: int = 2, device: torch.device | None = None
) -> list[Layer]:
    """Separate random convolutions for each sample: kernels and biases from N(0, 1), without scaling by fan-in.

    Args:
        samples: Number of samples, B.
        channels: Number of channels of the images, C: those of the first layer's input and the last layer's output.
        dims: Number of spatial axes, 2 or 3.
        layers: Number of convolutions; default 4.
        hidden: Number of channels between the convolutions; default 2.
        device: Device on which they are drawn; None: PyTorch's default.

    >>> [tuple(kernel.shape[:3]) for kernel, bias in draw_layers(samples=2, channels=1, dims=3)]
    [(2, 2, 1), (2, 2, 2), (2, 2, 2), (2, 1, 2)]
    """
    widths = [channels, *[hidden] * (layers - 1), channels]
    drawn = []
    for n_in, n_out in pairwise(widths):
        size = KERNEL_SIZES[int(torch.randint(len(KERNEL_SIZES), ()))]
        kernel = torch.randn(samples, n_out, n_in, *[size] * dims, device=device)
        drawn.append((kernel, torch.randn(samples, n_out, device=device)))
    return drawn


@torch.no_grad()
def global_intensity_augmentation(image: Tensor, layers: Sequence[Layer], share: Tensor) -> Tensor:
    """``share * network(image) + (1 - share) * image``, scaled to the Frobenius norm of the image (section III-B).

    Norms are computed over the channels and voxels of each sample. The convolutions pad with zeros. The result is
    computed in at least float32, without gradient.

    Args:
        image: Images, ``(B, C, *spatial)``, with any range.
        layers: Kernels and biases of the convolutions, see `draw_layers`. A leaky ReLU with slope 0.01 follows each
            convolution except the last.
        share: Share of the network's output, ``(B,)``, in [0, 1].

    Returns:
        ``(B, C, *spatial)``, in the dtype of the image.

    >>> image, double = torch.tensor([[[[1.0, -2.0]]]]), (2 * torch.ones(1, 1, 1, 1, 1), torch.zeros(1, 1))
    >>> global_intensity_augmentation(image, [double], torch.tensor([0.5]))
    tensor([[[[ 1.0000, -2.0000]]]])
    """
    with torch.autocast(image.device.type, enabled=False):
        original = wide(image)
        x = original
        for i, layer in enumerate(layers):
            x = _convolve(x, *layer)
            if i < len(layers) - 1:
                x = F.leaky_relu(x, SLOPE)
        share = share.to(original).reshape(-1, *[1] * (image.ndim - 1))
        mixed = share * x + (1 - share) * original
        return (mixed * _norm(original) / (_norm(mixed) + EPS)).to(image.dtype)


def random_view(image: Tensor, settings: GIN, outside: Outside) -> Tensor:
    """A random version of each image, with convolutions and shares that are drawn in this call.

    Args:
        image: Images, ``(B, C, *spatial)``, with any range.
        settings: Number and width of the layers, and what happens outside the subject.
        outside: Meaning of exact zeros in the image channels.

    Returns:
        ``(B, C, *spatial)``, in the dtype of the image, without gradient.

    >>> image = torch.tensor([[[[0.0, 3.0]]]])
    >>> random_view(image, GIN(), Outside((True,), (True,)))[..., 0]  # zero is outside the mask
    tensor([[[0.]]])
    """
    samples, channels = image.shape[:2]
    layers = draw_layers(samples, channels, image.ndim - 2, settings.layers, settings.hidden, image.device)
    changed = global_intensity_augmentation(image, layers, torch.rand(samples, device=image.device))
    return changed.masked_fill(outside.channels(image), 0) if settings.keep_outside else changed


def _convolve(x: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
    """Convolve each sample of ``(B, in, *spatial)`` with its own kernels."""
    samples, convolution = len(x), CONVOLUTIONS[x.ndim - 2]
    padding = kernel.shape[-1] // 2
    kernel, bias = kernel.to(x), bias.to(x)
    result = convolution(x.flatten(0, 1)[None], kernel.flatten(0, 1), bias.flatten(), padding=padding, groups=samples)
    return result[0].unflatten(0, (samples, -1))


def _norm(x: Tensor) -> Tensor:
    return x.flatten(1).norm(dim=1).reshape(-1, *[1] * (x.ndim - 1))


@dataclass(frozen=True)
class GIN(Method):
    """GIN: every training image passes through a small random network, which is drawn again in every step.

    C. Ouyang, C. Chen, S. Li, Z. Li, C. Qin, W. Bai, D. Rueckert, Causality-inspired Single-source Domain
    Generalization for Medical Image Segmentation, IEEE Transactions on Medical Imaging 42(4), 2022,
    https://arxiv.org/abs/2111.12525. It is applied to every sample, on the device, after nnU-Net's augmentation. The
    reference copies an image to three channels; here the network has C input and output channels.

    Attributes:
        layers: Number of random convolutions.
        hidden: Number of channels between the convolutions.
        keep_outside: Whether voxels outside a mask and zero padding stay zero, as they are at inference;
            otherwise they are changed as well (as published).
    """

    key: ClassVar[str] = "gin"
    slot: ClassVar[str] = "images"
    paper: ClassVar[Paper] = Paper(
        "Causality-inspired Single-source Domain Generalization for Medical Image Segmentation",
        "Cheng Ouyang, Chen Chen, Surui Li, Zeju Li, Chen Qin, Wenjia Bai, Daniel Rueckert",
        "IEEE Transactions on Medical Imaging 42(4)",
        2022,
        "https://arxiv.org/abs/2111.12525",
        "article",
    )

    layers: int = number(4, 1, 64, whole=True)
    hidden: int = number(2, 1, 1024, whole=True)
    keep_outside: bool = flag(True)

    def training_module(self, student: Student) -> GINTraining:
        """The training module, which augments the images."""
        return GINTraining(self, student)


class GINTraining(TrainingModule):
    """Augments the images of every batch.

    Args:
        settings: Settings, see `GIN`.
        student: Network in training.
    """

    def __init__(self, settings: GIN, student: Student) -> None:
        super().__init__()
        self.settings, self.outside = settings, student.outside

    def augment(self, batch: Batch) -> Batch:
        """The batch with augmented intensities in its image channels."""
        return batch.with_images(random_view(batch.images, self.settings, self.outside))
