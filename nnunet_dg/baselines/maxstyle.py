"""MaxStyle: styles are mixed and perturbed so that they increase the loss, before a step trains with them.

C. Chen, Z. Li, C. Ouyang, M. Sinclair, W. Bai, D. Rueckert, MaxStyle: Adversarial Style Composition for Robust Medical
Image Segmentation, MICCAI 2022, https://arxiv.org/abs/2206.01737.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from nnunet_dg.mechanisms.feature_style import (
    STATISTICS_PER_CHANNEL,
    Draw,
    FeatureStyle,
    FeatureStyleTraining,
    Partner,
    statistics_of_partners,
)
from nnunet_dg.method import Paper, Step, Student, number
from nnunet_dg.tensors import modulate, statistics

EPS = 1e-6  # as in the reference implementation


def composed(own: Tensor, partner: Tensor, share: Tensor, noise: Tensor) -> Tensor:
    """New means or deviations: ``(1 - share) * own + share * partner + noise * spread``.

    The spread is the unbiased deviation of the own values over the samples; for a single sample, that of its own and
    its partner's value.

    Args:
        own: Means or deviations, ``(B, A)``.
        partner: Those of each sample's partner, ``(B, A)``.
        share: Share of the partner's, ``(B, 1)``, clamped to [0, 1].
        noise: Noise, ``(B, A)``.

    >>> own, noise = torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [0.0]])
    >>> composed(own, own.flip(0), torch.tensor([[0.25], [1.4]]), noise)
    tensor([[1.9142],
            [0.0000]])
    """
    share = share.clamp(0, 1)
    samples = own if len(own) > 1 else torch.cat([own, partner])
    return (1 - share) * own + share * partner + noise * samples.std(0, correction=1, keepdim=True)


@dataclass(frozen=True)
class MaxStyle(FeatureStyle):
    """MaxStyle: a step trains with mixed and perturbed styles of the first encoder stages that increase its loss.

    C. Chen, Z. Li, C. Ouyang, M. Sinclair, W. Bai, D. Rueckert, MaxStyle: Adversarial Style Composition for Robust
    Medical Image Segmentation, MICCAI 2022, https://arxiv.org/abs/2206.01737. Shares of the partners' statistics start
    uniform, the noise starts normal. Before each step, Adam increases nnU-Net's own loss with respect to both, with the
    network fixed; then the step trains with the result. Statistics are constants for the gradient. The paper changes
    the features of a decoder that reconstructs the image, and trains with the reconstruction and with the clean image;
    nnU-Net has no such decoder, so the features of the encoder are changed, and only steps in which no stage acts
    train with the clean image. A step takes ``steps`` more forward and backward passes. In a batch of one sample, the
    partner is an earlier sample, and the spread is that of both.

    Attributes:
        steps: Number of steps of ascent; 0: styles are random.
        learning_rate: Learning rate of Adam in the ascent, which is the size of its first step.
    """

    key: ClassVar[str] = "maxstyle"
    slot: ClassVar[str] = "gradients and masks"
    paper: ClassVar[Paper] = Paper(
        "MaxStyle: Adversarial Style Composition for Robust Medical Image Segmentation",
        "Chen Chen, Zeju Li, Cheng Ouyang, Matt Sinclair, Wenjia Bai, Daniel Rueckert",
        "Medical Image Computing and Computer Assisted Intervention (MICCAI)",
        2022,
        "https://arxiv.org/abs/2206.01737",
    )

    steps: int = number(5, 0, 20, whole=True)
    learning_rate: float = number(0.1, above=0, high=10)

    def draw(self, samples: int, width: int) -> Draw:
        """The shares ``(B, 1)`` and the noise of mean and deviation, each ``(B, A)``, with which the ascent starts."""
        return torch.rand(samples, 1), torch.randn(samples, width), torch.randn(samples, width)

    def styled(self, feature: Tensor, draw: Draw, partner: Partner) -> Tensor:
        """The features with composed statistics, ``(B, A, *spatial)``."""
        share, *noises = draw
        own = statistics(feature.detach(), EPS, correction=1)
        pairs = zip(own, statistics_of_partners(own, partner), noises, strict=True)
        mean, std = (composed(values, others, share, noise) for values, others, noise in pairs)
        return modulate(feature, mean, std, own=own)

    def values_kept(self) -> int:
        """Mean and deviation."""
        return STATISTICS_PER_CHANNEL

    def training_module(self, student: Student) -> MaxStyleTraining:
        """The training module, which searches the styles."""
        return MaxStyleTraining(self, student)


class MaxStyleTraining(FeatureStyleTraining):
    """Replaces the loss by that of the pass with the styles that the ascent has found."""

    settings: MaxStyle

    def __init__(self, settings: MaxStyle, student: Student, always: bool = False) -> None:
        super().__init__(settings, student, always)

    def weights(self, epoch: int) -> dict[str, float]:
        """The segmentation loss, which the styled pass replaces."""
        return {"segmentation": 1.0}

    def losses(self, step: Step) -> dict[str, Tensor]:
        """nnU-Net's loss of the styled pass if a stage acts; otherwise no terms.

        All devices make the same number of passes. A single sample is passed through the changes although no stage
        acts, since its statistics are remembered there.
        """
        if self.settings.p == 0:
            return {}
        acting = self.student.agreed(torch.rand(len(self.settings.stages))).cpu() < self.settings.p
        data = step.batch.data
        if not acting.any() and len(data) > 1:
            return {}
        with self.styling(step, acting):
            return {"segmentation": step.segmentation(step.forward(data).output)}

    def search(self, step: Step, acting: Tensor) -> None:
        """Change shares and noise so that they increase the loss, with the network fixed."""
        if not acting.any():
            return
        styles = [numbers.requires_grad_() for _, _, *draw in self.draws.values() for numbers in draw]
        optimizer = torch.optim.Adam(styles, self.settings.learning_rate, maximize=True)
        with self.student.aside():
            for _ in range(self.settings.steps):
                loss = self.student.scaled(step.segmentation(step.forward(step.batch.data).output))
                gradients = torch.autograd.grad(loss, styles, allow_unused=True)
                for style, gradient in zip(styles, gradients, strict=True):
                    # in float16, a scaled gradient may overflow; Adam does not depend on its scale
                    style.grad = None if gradient is None else gradient.nan_to_num(0, 0, 0)
                optimizer.step()
