"""MixUp: pairs of images are averaged, and the prediction is trained with the labels of both.

H. Zhang, M. Cisse, Y. N. Dauphin, D. Lopez-Paz, mixup: Beyond Empirical Risk Minimization, ICLR 2018,
https://arxiv.org/abs/1710.09412.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from nnunet_dg.mechanisms.domain_samples import as_state, of_state
from nnunet_dg.mechanisms.partners import partner_order
from nnunet_dg.method import (
    SEGMENTATION,
    Batch,
    Method,
    Paper,
    Step,
    Student,
    TrainingModule,
    flag,
    number,
    probability,
)
from nnunet_dg.step import Scales
from nnunet_dg.tensors import to_device


def shifted_order(samples: int) -> Tensor:
    """A partner for each sample: the samples are shifted by a random number of places, so that all are used once.

    A random permutation, as in the reference, would leave the two samples of a batch unmixed half of the time.

    Args:
        samples: Number of samples, B. A single sample is its own partner.

    Returns:
        Index of each sample's partner, ``(B,)``, int64, on the CPU.

    >>> shifted_order(2)
    tensor([1, 0])
    """
    shift = int(torch.randint(1, samples, ())) if samples > 1 else 0
    return (torch.arange(samples) + shift) % samples


def mix_images(image: Tensor, partner: Tensor, share: float) -> Tensor:
    """``share * image + (1 - share) * partner``.

    Args:
        image: Network input, ``(B, C + R, *spatial)``: images and the channels of a cascade's previous stage.
        partner: Input of the same shape.
        share: Share of the image, in [0, 1].

    >>> mix_images(torch.tensor([[[1.0]]]), torch.tensor([[[3.0]]]), 0.75)
    tensor([[[1.5000]]])
    """
    return share * image + (1 - share) * partner


def mix_losses(
    loss: Callable[[Any, Scales], Tensor], output: Any, own: Scales, partner: Scales, share: float
) -> Tensor:
    """``share * loss(output, own) + (1 - share) * loss(output, partner)``, a scalar.

    For cross entropy it equals the loss of averaged labels; for Dice it does not. It is defined for regions, ignored
    voxels and all resolutions of deep supervision, since labels are never averaged.

    Args:
        loss: Function of output and target.
        output: Logits of the mixed images, ``(B, K, *spatial)``; under deep supervision, a list.
        own: Target of the images.
        partner: Target of their partners.
        share: Share of the images, in [0, 1].

    >>> mix_losses(lambda x, y: (x - y).abs().sum(), torch.tensor(0.0), torch.tensor(1.0), torch.tensor(2.0), 0.75)
    tensor(1.2500)
    """
    return share * loss(output, own) + (1 - share) * loss(output, partner)


@dataclass(frozen=True)
class MixUp(Method):
    """MixUp: with probability p, the images of a batch are averaged with those of partners; both labels are trained.

    H. Zhang, M. Cisse, Y. N. Dauphin, D. Lopez-Paz, mixup: Beyond Empirical Risk Minimization, ICLR 2018,
    https://arxiv.org/abs/1710.09412. The loss is nnU-Net's loss with the own labels and with the partner's, weighted by
    the shares of the images. All samples of a batch, on all devices, have one share. In a batch of one sample per
    device, the partner is the sample of the step before. The channels of a cascade's previous stage are averaged, too.
    The paper mixes every batch in a random order, with alpha between 0.1 and 1; the defaults are those with which
    DropGen's paper compares, and no sample is its own partner.

    Attributes:
        p: Probability that a batch is mixed; other batches are trained as by nnU-Net.
        alpha: Both parameters of the Beta distribution from which the share is drawn.
        other_domains: Whether partners come from other domains, according to ``domains.json``, if the batch has several
            domains; otherwise partners are any other samples.
    """

    key: ClassVar[str] = "mixup"
    slot: ClassVar[str] = "labels"
    paper: ClassVar[Paper] = Paper(
        "mixup: Beyond Empirical Risk Minimization",
        "Hongyi Zhang, Moustapha Cisse, Yann N. Dauphin, David Lopez-Paz",
        "International Conference on Learning Representations (ICLR)",
        2018,
        "https://arxiv.org/abs/1710.09412",
    )

    p: float = probability(0.75)
    alpha: float = number(0.4, above=0, high=1e3)
    other_domains: bool = flag(False)

    def training_module(self, student: Student) -> MixUpTraining:
        """The training module, which mixes batches."""
        return MixUpTraining(self, student)


class MixUpTraining(TrainingModule):
    """Mixes the samples of a batch, and weighs their labels in the loss.

    Args:
        settings: Settings, see `MixUp`.
        student: Network in training.
    """

    def __init__(self, settings: MixUp, student: Student) -> None:
        super().__init__()
        self.settings, self.student = settings, student
        self.earlier: Batch | None = None  # the last batch, if it had a single sample
        self.share = 1.0
        self.partner: Scales | None = None  # the target of the partners; None: the batch is not mixed

    def augment(self, batch: Batch) -> Batch:
        """The batch, mixed with probability p.

        All devices decide alike: Dice over the whole batch is computed on all of them together, in each call of the
        loss, and needs a common share.
        """
        if self.settings.p == 0:
            return batch
        alpha = torch.tensor(self.settings.alpha)
        drawn = torch.stack([torch.rand(()), torch.distributions.Beta(alpha, alpha).sample()])
        chance, self.share = self.student.agreed(drawn).tolist()
        partner = self._partner(batch)
        if chance >= self.settings.p:
            self.partner = None
            return batch
        self.partner = partner.target
        return replace(batch, data=mix_images(batch.data, partner.data, self.share))

    def weights(self, epoch: int) -> dict[str, float]:
        """The segmentation loss, which that of mixed batches replaces."""
        return {SEGMENTATION: 1.0}

    def losses(self, step: Step) -> dict[str, Tensor]:
        """The loss with both labels if the batch is mixed; otherwise no terms."""
        partner, self.partner = self.partner, None
        if partner is None:
            return {}
        return {SEGMENTATION: mix_losses(step.segmentation, step.output, step.batch.target, partner, self.share)}

    def get_extra_state(self) -> dict[str, Any]:
        """The earlier single sample, for checkpoints; empty if there is none."""
        return {} if self.earlier is None else as_state(self.earlier)

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore the earlier single sample."""
        self.earlier = of_state(state) if state else None

    def _partner(self, batch: Batch) -> Batch:
        """The batch of the partners. A single sample's partner is the earlier one; the first sample is its own."""
        samples = len(batch.data)
        if samples == 1:
            partner, self.earlier = self.earlier or batch, _copied(batch)
            return partner
        domains = self.student.domains(batch.keys) if self.settings.other_domains else None
        order = shifted_order(samples) if domains is None else partner_order(samples, domains)
        order = to_device(order, batch.data.device)
        return replace(batch, data=batch.data[order], target=_each(batch.target, lambda t: t[order]))


def _copied(batch: Batch) -> Batch:
    return replace(batch, data=batch.data.clone(), target=_each(batch.target, Tensor.clone))


def _each(scales: Scales, function: Callable[[Tensor], Tensor]) -> Scales:
    return [function(scale) for scale in scales] if isinstance(scales, list) else function(scales)
