"""Dual normalization: two styles of each image, one batch norm for each, and the nearer one at inference.

Z. Zhou, L. Qi, X. Yang, D. Ni, Y. Shi, Generalizable Cross-modality Medical Image Segmentation via Style Augmentation
and Dual Normalization, CVPR 2022, https://arxiv.org/abs/2112.11177.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from nnunet_dg.fields import is_number
from nnunet_dg.mechanisms.bezier import bezier_map
from nnunet_dg.mechanisms.domain_norm import NearestBranchNetwork
from nnunet_dg.method import Batch, Inputs, Method, Paper, Student, TrainingModule, probability, setting
from nnunet_dg.tensors import to_device, wide

LARGEST_STRENGTH = 0.9
Styles = tuple[Tensor, Tensor, Tensor]  # whether the curve is not the identity, its strength, whether it decreases


def draw_styles(samples: int, p: float, strengths: tuple[float, ...]) -> Styles:
    """The curve of each sample.

    With probability p a sample passes through a curve, of a strength drawn uniformly from ``strengths``, which is
    decreasing with probability one half. If all samples of a batch of at least two would have the same kind of curve,
    one of them, drawn at random, gets the other kind, so that both norms are trained in every step.

    Args:
        samples: Number of samples, B.
        p: Probability; with 0, all samples stay as they are.
        strengths: Accepted values of v, see `restyled`.

    Returns:
        Whether each sample is changed, the strength, and whether the curve is decreasing, each ``(B,)``.

    >>> changed, strength, decreasing = draw_styles(2, 0.5, (0.0, 0.5, 0.75))
    >>> int(decreasing.sum())
    1
    """
    changed = torch.rand(samples) < p
    decreasing = changed & (torch.rand(samples) < 0.5)
    strength = torch.tensor(strengths)[torch.randint(len(strengths), (samples,))]
    one = int(torch.randint(samples, ()))
    if p > 0 and samples > 1 and bool((decreasing == decreasing[0]).all()):
        decreasing[one] = changed[one] = ~decreasing[one]
    return changed, strength, decreasing


@torch.no_grad()
def restyled(images: Tensor, strength: Tensor, decreasing: Tensor) -> Tensor:
    """Images whose intensities pass through a Bezier curve, within the range of each sample and channel.

    With the range of a channel scaled to [-1, 1], the increasing curve has the control points (-1, -1), (-v, v),
    (v, -v) and (1, 1), and the decreasing one is its negative. The lowest intensity of each sample and channel, the
    background, stays as it is. The result is computed in at least float32, without gradient.

    Args:
        images: ``(B, C, *spatial)``.
        strength: v of each sample, ``(B,)``, in [0, 1), on the CPU. With 0, the curve is a straight line.
        decreasing: Whether the curve of each sample is the decreasing one, ``(B,)``, bool, on the CPU.

    Returns:
        The images, of the same shape and dtype.

    >>> restyled(torch.tensor([[[0.0, 1.0, 3.0, 4.0]]]), torch.tensor([0.0]), torch.tensor([True])).round()
    tensor([[[0., 3., 1., 0.]]])
    """
    result = images.clone()
    for sample, (v, is_decreasing) in enumerate(zip(strength.tolist(), decreasing.tolist(), strict=True)):
        inner = torch.tensor([[1 - v, 1 + v], [1 + v, 1 - v]]) / 2  # as fractions of the range
        for channel, image in enumerate(images[sample]):
            changed = bezier_map(wide(image), inner, is_decreasing).to(image.dtype)
            result[sample, channel] = torch.where(image == image.min(), image, changed)
    return result


@dataclass(frozen=True)
class DSBN(Method):
    """Dual normalization: images with the usual and with reversed contrast are normalized by separate batch norms.

    Z. Zhou, L. Qi, X. Yang, D. Ni, Y. Shi, Generalizable Cross-modality Medical Image Segmentation via Style
    Augmentation and Dual Normalization, CVPR 2022, https://arxiv.org/abs/2112.11177. Every norm of the planned network
    becomes two batch norms. In training, image intensities pass through increasing or decreasing Bezier curves, which
    decide the norm. At inference, the network runs with both norms, and each window is predicted with that whose
    statistics are nearer to the window's: prediction costs twice as much and needs this package. The paper trains
    separate batches of both kinds. Here, a batch has both. Curves map to the range of the patch, and the two branches
    are the two kinds of curves, as in the paper; branches per domain are not available.

    Attributes:
        p: Probability that the intensities of a sample pass through a curve. Half of the curves are decreasing.
        strengths: Strengths of the curves, from which each sample's is drawn: 0 is a straight line, larger values bend
            it more.
    """

    key: ClassVar[str] = "dsbn"
    slot: ClassVar[str] = "network"
    changes_network: ClassVar[bool] = True
    paper: ClassVar[Paper] = Paper(
        "Generalizable Cross-modality Medical Image Segmentation via Style Augmentation and Dual Normalization",
        "Ziqi Zhou, Lei Qi, Xin Yang, Dong Ni, Yinghuan Shi",
        "IEEE Conference on Computer Vision and Pattern Recognition (CVPR)",
        2022,
        "https://arxiv.org/abs/2112.11177",
    )

    p: float = probability(0.5)
    strengths: tuple[float, ...] = setting(
        (0.0, 0.5, 0.75),
        f"a list of numbers in [0, {LARGEST_STRENGTH}]",
        lambda value: (
            isinstance(value, (list, tuple))
            and len(value) > 0
            and all(is_number(v, False) and 0 <= v <= LARGEST_STRENGTH for v in value)
        ),
        tuple,
    )

    def build_network(self, build: Callable[[int], nn.Module], inputs: Inputs) -> NearestBranchNetwork:
        """The planned network with two batch norms in place of each norm."""
        return NearestBranchNetwork(build(inputs.channels))

    def training_module(self, student: Student) -> DSBNTraining:
        """The training module, which changes the images and chooses the norms."""
        return DSBNTraining(self, student)


class DSBNTraining(TrainingModule):
    """Changes the intensities of images, and tells the network the norm of each sample.

    Args:
        settings: Settings, see `DSBN`.
        student: Network in training.
    """

    def __init__(self, settings: DSBN, student: Student) -> None:
        super().__init__()
        self.settings, self.outside = settings, student.outside
        networks = [module for module in student.network.modules() if isinstance(module, NearestBranchNetwork)]
        self.branches = networks[0].branches

    def augment(self, batch: Batch) -> Batch:
        """The batch with changed image channels. Voxels outside a mask and zero padding stay as they are."""
        images = batch.images
        changed, strength, decreasing = draw_styles(len(images), self.settings.p, self.settings.strengths)
        self.branches.of_sample = to_device(decreasing.long(), images.device)
        new = restyled(images, strength, decreasing)
        changed = to_device(changed, images.device)
        keep = ~changed.reshape(-1, *[1] * (images.ndim - 1)) | self.outside.channels(images)
        return batch.with_images(torch.where(keep, images, new))
