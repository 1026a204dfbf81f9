"""RSC: the most helpful features are muted, so that the network learns to predict without them.

Z. Huang, H. Wang, E. P. Xing, D. Huang, Self-Challenging Improves Cross-Domain Generalization, ECCV 2020,
https://arxiv.org/abs/2007.02454.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from nnunet_dg.method import Method, Paper, Step, Student, TrainingModule, choice, number, probability
from nnunet_dg.tensors import wide


def challenge_mask(feature: Tensor, gradient: Tensor, share: float, unit: str = "element") -> Tensor:
    """A mask that is zero for each sample's ``ceil(share * n)`` most helpful units out of n, and one elsewhere.

    Args:
        feature: Feature map, ``(B, A, *spatial)``.
        gradient: Signed gradient of the truth's score with respect to the feature, the same shape. Large positive
            values are helpful.
        share: Fraction of the units that are muted, in (0, 1).
        unit: What is muted. ``"element"`` (default): the elements with the largest gradients. ``"channel"``: the
            channels with the largest mean gradient. ``"spatial"``: the positions with the largest sum over channels of
            the feature times the channel's mean gradient.

    Returns:
        A mask of shape ``(B, A, *spatial)``, or a shape that broadcasts to it, without gradient, in the dtype of the
        feature.

    >>> gradient = torch.tensor([[[0.3, -2.0, 0.1, 0.9]]])
    >>> challenge_mask(torch.ones(1, 1, 4), gradient, 0.25)
    tensor([[[1., 1., 1., 0.]]])
    """
    z, g = wide(feature.detach()), wide(gradient.detach())
    means = g.mean(tuple(range(2, g.ndim)), keepdim=True)
    score = {"element": g, "channel": means, "spatial": (z * means).sum(1, keepdim=True)}[unit]
    flat = score.flatten(1)
    muted = flat.topk(math.ceil(share * flat.shape[1]), dim=1).indices
    return torch.ones_like(flat).scatter_(1, muted, 0).reshape(score.shape).to(feature.dtype)


@dataclass(frozen=True)
class RSC(Method):
    """RSC: with probability p, a step trains the prediction without the bottleneck's most helpful features.

    Z. Huang, H. Wang, E. P. Xing, D. Huang, Self-Challenging Improves Cross-Domain Generalization, ECCV 2020,
    https://arxiv.org/abs/2007.02454. The score of the truth is minus nnU-Net's own loss. A first forward pass computes
    its gradient with respect to the bottleneck. The loss of a second pass, with the mask, is trained. Only this pass
    changes the running statistics of batch norm. Gradient and mask are constants. The paper mutes channels or positions
    of a third of a batch's samples; the defaults here mute a fifth of the elements of every second batch.

    Attributes:
        p: Probability that a batch is challenged; other batches are trained as by nnU-Net. 0: the training is nnU-Net's
            own.
        share: Fraction of the units that are muted.
        unit: Unit that is muted: single elements, whole channels, or positions with all their channels.
    """

    key: ClassVar[str] = "rsc"
    slot: ClassVar[str] = "gradients and masks"
    paper: ClassVar[Paper] = Paper(
        "Self-Challenging Improves Cross-Domain Generalization",
        "Zeyi Huang, Haohan Wang, Eric P. Xing, Dong Huang",
        "European Conference on Computer Vision (ECCV)",
        2020,
        "https://arxiv.org/abs/2007.02454",
    )

    p: float = probability(0.5)
    share: float = number(0.2, above=0, high=0.99)
    unit: str = choice("element", "channel", "spatial")

    def training_module(self, student: Student) -> RSCTraining:
        """The training module, which runs the challenged passes."""
        return RSCTraining(self, student)


class RSCTraining(TrainingModule):
    """Replaces the loss of challenged batches by that of the masked pass.

    Args:
        settings: Settings, see `RSC`.
        student: Network in training.
    """

    def __init__(self, settings: RSC, student: Student) -> None:
        super().__init__()
        self.settings, self.student = settings, student
        self.mask: Tensor | None = None
        self.probe: Tensor | None = None
        self.tap = student.tap(-1)
        self.challenge = student.change(-1, self._challenged)

    def _challenged(self, feature: Tensor) -> Tensor:
        if self.mask is not None:
            feature = feature * self.mask
        return feature if self.probe is None else feature + self.probe.to(feature.dtype)

    def weights(self, epoch: int) -> dict[str, float]:
        """The segmentation loss, which the masked pass replaces."""
        return {"segmentation": 1.0}

    def losses(self, step: Step) -> dict[str, Tensor]:
        """nnU-Net's loss of the masked pass if the batch is challenged; otherwise no terms."""
        if self.settings.p == 0:
            return {}
        chance = self.student.agreed(torch.rand(()))
        if float(chance) >= self.settings.p:
            return {}
        try:
            with self.challenge:
                self.mask = self._mask_of(step)
                return {"segmentation": step.segmentation(step.forward(step.batch.data).output)}
        finally:
            self.mask, self.probe = None, None

    def _mask_of(self, step: Step) -> Tensor:
        """The mask, from a first pass in which a zero tensor is added to the bottleneck.

        The gradient with respect to this tensor is that of the bottleneck. A compiled network has gradients with
        respect to its inputs, but not to its intermediate results.
        """
        student, data = self.student, step.batch.data
        shape = (len(data), student.widths[-1], *student.grids[-1])
        probe = self.probe = torch.zeros(shape, device=data.device, requires_grad=True)
        with student.aside():
            first = step.forward(data)
            self.probe = None
            (gradient,) = torch.autograd.grad(student.scaled(step.segmentation(first.output)), probe)
        return challenge_mask(first.features(self.tap), -gradient, self.settings.share, self.settings.unit)
