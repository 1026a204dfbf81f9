"""Training on several random versions (views) of each image: the first is segmented, and all should agree."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from nnunet_dg.method import Batch, Step, Student, TrainingModule, full_resolution
from nnunet_dg.tensors import wide

TERM = "view_consistency"


def view_divergences(logits: Sequence[Tensor], regions: bool = False, to_mean: bool = False) -> Tensor:
    """The divergence between each view's probabilities and the mean probabilities of all views, in every voxel.

    It is ``KL(mean || view)`` or ``KL(view || mean)``, summed over classes. It is computed in at least float32, also
    under autocast. The gradient flows into all views, also through the mean.

    Args:
        logits: Logits of each view, ``(B, K, *spatial)``.
        regions: Whether the channels are regions that may overlap, so that each is a separate Bernoulli variable;
            default False: the channels are exclusive classes.
        to_mean: Whether the divergence is ``KL(view || mean)``; default False: ``KL(mean || view)``.

    Returns:
        ``(views, B, *spatial)``.

    >>> view_divergences([torch.tensor([[[0.0], [0.0]]]), torch.tensor([[[0.0], [2.0]]])]).flatten()
    tensor([0.0744, 0.1273])
    """
    with torch.autocast(logits[0].device.type, enabled=False):
        views = torch.stack([wide(view) for view in logits])
        logs = torch.cat([F.logsigmoid(views), F.logsigmoid(-views)], 2) if regions else views.log_softmax(2)
        mean = logs.logsumexp(0, keepdim=True) - math.log(len(views))
        divergence = logs.exp() * (logs - mean) if to_mean else mean.exp() * (mean - logs)
        return divergence.sum(2)


class ViewsTraining(TrainingModule, ABC):
    """Trains the segmentation of the first view and, if the consistency has a weight, the agreement of all views.

    Each view is a separate forward pass, so that a step with three views needs about three times the memory and time of
    nnU-Net's step. All views have the same cascade channels. In a trainer with several methods, list a method of this
    kind after those that augment the batch: later ones would change only the first view.

    Args:
        student: Network in training.
        consistency: Weight of the consistency; 0: only the first view is computed.
    """

    def __init__(self, student: Student, consistency: float) -> None:
        super().__init__()
        self.student, self.consistency = student, consistency
        self.others: list[Tensor] = []

    @abstractmethod
    def views(self, images: Tensor) -> Iterator[Tensor]:
        """Random versions of the images, ``(B, C, *spatial)``; the same number in every step and on every device."""

    @abstractmethod
    def disagreement(self, logits: list[Tensor]) -> Tensor:
        """The consistency loss, a scalar, of the logits of all views at full resolution, ``(B, K, *spatial)``."""

    def augment(self, batch: Batch) -> Batch:
        """The batch with the first view as its images. The other views are kept for `losses`."""
        views = self.views(batch.images)
        augmented = batch.with_images(next(views))
        if self.consistency:
            self.others = [batch.with_images(view).data for view in views]
        return augmented

    def prepare(self) -> None:
        """Log what the consistency needs."""
        if self.consistency:
            self.student.log(
                "The consistency of views needs about three times the memory of nnU-Net's step. If memory is short, "
                "plan with a third of the GPU memory (-gpu_memory_target)."
            )

    def weights(self, epoch: int) -> dict[str, float]:
        """The weight of the consistency."""
        return {TERM: self.consistency} if self.consistency else {}

    def losses(self, step: Step) -> dict[str, Tensor]:
        """The consistency. The segmentation of the first view is nnU-Net's own loss."""
        if not self.consistency:
            return {}
        others, self.others = self.others, []
        outputs = [step.output, *(step.forward(data).output for data in others)]
        return {TERM: self.disagreement([full_resolution(output) for output in outputs])}
