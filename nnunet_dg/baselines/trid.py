"""TriD: random channels get random feature statistics.

Z. Chen, Y. Pan, Y. Ye, H. Cui, Y. Xia, Treasure in Distribution: A Domain Randomization based Multi-Source Domain
Generalization for 2D Medical Image Segmentation, MICCAI 2023, https://arxiv.org/abs/2305.19949.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from nnunet_dg.mechanisms.feature_style import Draw, FeatureStyle, FeatureStyleTraining, Partner
from nnunet_dg.method import Paper, Student
from nnunet_dg.tensors import Statistics, modulate, statistics

EPS = 1e-6  # as in the reference implementation


def replaced(own: Statistics, chosen: Tensor, random: Statistics) -> Statistics:
    """The random statistics where a channel is chosen, and its own elsewhere, each ``(B, A)``.

    Args:
        own: Mean and deviation, each ``(B, A)``.
        chosen: Which channels of which samples are chosen, ``(B, A)``, 1 or 0.
        random: Random mean and deviation, each ``(B, A)``.

    >>> own, random = (torch.zeros(1, 2), torch.ones(1, 2)), (torch.full((1, 2), 0.3), torch.full((1, 2), 0.7))
    >>> replaced(own, torch.tensor([[1.0, 0.0]]), random)
    (tensor([[0.3000, 0.0000]]), tensor([[0.7000, 1.0000]]))
    """
    mean, std = (torch.where(chosen.bool(), a, b) for a, b in zip(random, own, strict=True))
    return mean, std


@dataclass(frozen=True)
class TriD(FeatureStyle):
    """TriD: in training, random channels of the first encoder stages get a random mean and deviation.

    Z. Chen, Y. Pan, Y. Ye, H. Cui, Y. Xia, Treasure in Distribution: A Domain Randomization based Multi-Source Domain
    Generalization for 2D Medical Image Segmentation, MICCAI 2023, https://arxiv.org/abs/2305.19949. Each channel of
    each sample is changed with probability one half. The paper draws this probability from Beta(0.1, 0.1) for each of
    them, which gives the same distribution. The new mean and deviation are drawn from U(0, 1). This range suits
    features after batch norm and ReLU. In every epoch, the log shows the features' own mean and deviation of each stage
    for comparison. Statistics are constants for the gradient.
    """

    key: ClassVar[str] = "trid"
    paper: ClassVar[Paper] = Paper(
        "Treasure in Distribution: A Domain Randomization based Multi-Source Domain Generalization for 2D Medical "
        "Image Segmentation",
        "Ziyang Chen, Yongsheng Pan, Yiwen Ye, Hengfei Cui, Yong Xia",
        "Medical Image Computing and Computer Assisted Intervention (MICCAI)",
        2023,
        "https://arxiv.org/abs/2305.19949",
    )

    def draw(self, samples: int, width: int) -> Draw:
        """Which channels are changed (1 or 0), and their new mean and deviation, each ``(B, A)``."""
        chosen = torch.bernoulli(torch.full((samples, width), 0.5))
        return chosen, torch.rand(samples, width), torch.rand(samples, width)

    def styled(self, feature: Tensor, draw: Draw, partner: Partner) -> Tensor:
        """The features with random statistics, ``(B, A, *spatial)``."""
        chosen, *random = draw
        own = statistics(feature.detach(), EPS, correction=1)
        return modulate(feature, *replaced(own, chosen, (random[0], random[1])), own=own)

    def training_module(self, student: Student) -> TriDTraining:
        """The training module, which also logs the features' own statistics."""
        return TriDTraining(self, student)


class TriDTraining(FeatureStyleTraining):
    """Logs the features' own statistics in every epoch, in addition."""

    def __init__(self, settings: TriD, student: Student, always: bool = True) -> None:
        super().__init__(settings, student, always)
        unknown = torch.tensor(torch.nan)
        self.seen: dict[int, Statistics] = dict.fromkeys(settings.stages, (unknown, unknown))

    def styled(self, stage: int, feature: Tensor) -> Tensor:
        """The features of a stage, ``(B, A, *spatial)``, changed if the stage acts in this pass."""
        mean, std = statistics(feature.detach(), EPS, correction=1)
        self.seen[stage] = mean.abs().mean(), std.mean()
        return super().styled(stage, feature)

    def end_epoch(self, epoch: int) -> None:
        """Log the statistics of the last pass, averaged over samples and channels."""
        if self.settings.p == 0:
            return
        for stage, (mean, std) in sorted(self.seen.items()):
            self.student.log(
                f"TriD, stage {stage}: the features' own |mean| is {float(mean):.2f}, their deviation {float(std):.2f}"
            )
