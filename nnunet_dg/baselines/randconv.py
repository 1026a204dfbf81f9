"""RandConv: images pass through one random convolution, which changes their texture and keeps their shapes.

Z. Xu, D. Liu, J. Yang, C. Raffel, M. Niethammer, Robust and Generalizable Visual Representation Learning via Random
Convolutions, ICLR 2021, https://arxiv.org/abs/2007.13003.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from nnunet_dg.mechanisms.views import ViewsTraining, view_divergences
from nnunet_dg.method import Method, Paper, Student, flag, number, probability
from nnunet_dg.tensors import modulate, statistics, wide

KERNEL_SIZES = (1, 3, 5, 7)
CONVOLUTIONS = {2: F.conv2d, 3: F.conv3d}
VIEWS = 3


def draw_kernel(channels: int, dims: int, device: torch.device | None = None) -> Tensor:
    """A kernel of 1, 3, 5 or 7 voxels a side, from N(0, 1 / n), where n is the number of weights per output channel.

    Args:
        channels: Number of channels of the images, C.
        dims: Number of spatial axes, 2 or 3.
        device: Device on which it is drawn; None: PyTorch's default.

    Returns:
        ``(C, C, *k)``.

    >>> draw_kernel(channels=2, dims=3).shape[:2]
    torch.Size([2, 2])
    """
    size = KERNEL_SIZES[int(torch.randint(len(KERNEL_SIZES), ()))]
    kernel = torch.randn(channels, channels, *[size] * dims, device=device)
    return kernel / math.sqrt(channels * size**dims)


@torch.no_grad()
def random_convolution(image: Tensor, kernel: Tensor, share: float = 1.0) -> Tensor:
    """``share * convolution(image) + (1 - share) * image``, with zero padding and without a bias.

    It is computed in at least float32, without gradient.

    Args:
        image: Images, ``(B, C, *spatial)``, with any range.
        kernel: Kernel, ``(C, C, *k)``, with odd sizes, the same for all samples.
        share: Share of the convolved image, in [0, 1]; default 1.

    Returns:
        ``(B, C, *spatial)``, in at least float32.

    >>> random_convolution(torch.tensor([[[[1.0, -2.0]]]]), torch.full((1, 1, 1, 1), 3.0), share=0.5)
    tensor([[[[ 2., -4.]]]])
    """
    with torch.autocast(image.device.type, enabled=False):
        original = wide(image)
        padding = [size // 2 for size in kernel.shape[2:]]
        convolved = CONVOLUTIONS[image.ndim - 2](original, kernel.to(original), padding=padding)
        return share * convolved + (1 - share) * original


@dataclass(frozen=True)
class RandConv(Method):
    """RandConv: with probability p, all images of a batch pass through one random convolution.

    Z. Xu, D. Liu, J. Yang, C. Raffel, M. Niethammer, Robust and Generalizable Visual Representation Learning via Random
    Convolutions, ICLR 2021, https://arxiv.org/abs/2007.13003. The paper normalizes the result; here, each channel gets
    back the mean and deviation that it had in the patch. The defaults are the paper's RC_img with p = 0.5. Its RC_mix
    is ``p: 1, mix: true``. Its consistency, between three random versions of the batch, is ``consistency: 10``; a step
    then needs three times the memory and time.

    Attributes:
        p: Probability that a batch, or a version of it, is convolved.
        mix: Whether the convolved images are averaged with the original ones, with a random share from U(0, 1).
        consistency: Weight of the divergence of each version's prediction from the mean prediction,
            ``KL(version || mean)``, averaged over versions and voxels; 0: there is one version.
        keep_outside: Whether voxels outside a mask and zero padding stay zero, as they are at inference; otherwise they
            are changed as well (as published).
    """

    key: ClassVar[str] = "randconv"
    slot: ClassVar[str] = "images"
    paper: ClassVar[Paper] = Paper(
        "Robust and Generalizable Visual Representation Learning via Random Convolutions",
        "Zhenlin Xu, Deyi Liu, Junlin Yang, Colin Raffel, Marc Niethammer",
        "International Conference on Learning Representations (ICLR)",
        2021,
        "https://arxiv.org/abs/2007.13003",
    )

    p: float = probability(0.5)
    mix: bool = flag(False)
    consistency: float = number(0.0, 0)
    keep_outside: bool = flag(True)

    def training_module(self, student: Student) -> RandConvTraining:
        """The training module, which convolves the images and computes the consistency."""
        return RandConvTraining(self, student)


class RandConvTraining(ViewsTraining):
    """Convolves the images of batches, and trains the agreement of their versions.

    Args:
        settings: Settings, see `RandConv`.
        student: Network in training.
    """

    def __init__(self, settings: RandConv, student: Student) -> None:
        super().__init__(student, settings.consistency)
        self.settings = settings

    def views(self, images: Tensor) -> Iterator[Tensor]:
        """Three versions of the images, each convolved with probability p."""
        for _ in range(VIEWS):
            convolved = self.settings.p > 0 and float(torch.rand(())) < self.settings.p
            yield self._convolved(images) if convolved else images

    def disagreement(self, logits: list[Tensor]) -> Tensor:
        """The divergence of each version's prediction from the mean, averaged over versions and voxels."""
        return view_divergences(logits, self.student.regions, to_mean=True).mean()

    def _convolved(self, images: Tensor) -> Tensor:
        """The convolved images, with the mean and deviation of the original ones."""
        share = float(torch.rand(())) if self.settings.mix else 1.0
        kernel = draw_kernel(images.shape[1], images.ndim - 2, images.device)
        changed = modulate(random_convolution(images, kernel, share), *statistics(images)).to(images.dtype)
        return changed.masked_fill(self.student.outside.channels(images), 0) if self.settings.keep_outside else changed
