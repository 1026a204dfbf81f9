"""MixStyle: statistics of features are mixed between samples.

K. Zhou, Y. Yang, Y. Qiao, T. Xiang, Domain Generalization with MixStyle, ICLR 2021, https://arxiv.org/abs/2104.02008.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from nnunet_dg.baselines.partners import EarlierSamples, partner_order, partner_statistics
from nnunet_dg.method import Batch, Method, Paper, Student, TrainingModule, flag, number, probability, setting
from nnunet_dg.tensors import Statistics, modulate, statistics

EPS = 1e-6  # the reference's


def mix(own: Statistics, partner: Statistics, share: Tensor) -> Statistics:
    """Eq. 5, 6: ``share * own + (1 - share) * partner`` of mean and deviation.

    Args:
        own: Mean and deviation, each ``(B, A)``.
        partner: Those of each sample's partner.
        share: ``(B, 1)``, in [0, 1].

    >>> one, two = (torch.zeros(1, 1), torch.ones(1, 1)), (torch.ones(1, 1), torch.ones(1, 1))
    >>> mix(one, two, torch.tensor([[0.75]]))
    (tensor([[0.2500]]), tensor([[1.]]))
    """
    mean, std = (share * mine + (1 - share) * other for mine, other in zip(own, partner, strict=True))
    return mean, std


def draw_share(samples: int, alpha: float, device: torch.device | None = None) -> Tensor:
    """``(samples, 1)`` shares from Beta(alpha, alpha)."""
    return torch.distributions.Beta(alpha, alpha).sample((samples, 1)).to(device)


@torch.no_grad()
def mixstyle_statistics(feature: Tensor, earlier: Statistics | None = None, alpha: float = 0.1) -> Statistics:
    """A sample's own statistics mixed with those of another one, without gradient.

    Args:
        feature: ``(B, A, *spatial)``.
        earlier: Statistics of an earlier sample, ``(1, A)`` each, the partner where the batch has a single sample.
        alpha: Of the Beta distribution.
    """
    own = statistics(feature)
    partner = partner_statistics(own, earlier)
    return mix(own, partner, draw_share(len(feature), alpha, feature.device))


@dataclass(frozen=True)
class MixStyle(Method):
    """MixStyle: in training, features of the first encoder stages take mixed statistics of two samples.

    K. Zhou, Y. Yang, Y. Qiao, T. Xiang, Domain Generalization with MixStyle, ICLR 2021,
    https://arxiv.org/abs/2104.02008. Statistics are constants to the gradient. A batch of one sample takes its partner
    from earlier samples. Where the next convolution has an instance norm, it removes the mixed mean again, so that only
    the deviations act.

    Attributes:
        p: Probability that a stage mixes the statistics of a batch.
        alpha: Of Beta(alpha, alpha), from which each sample's share of its own statistics is drawn.
        stages: Encoder stages whose output is changed, from 0 (full resolution) on.
        other_domains: Take partners from other domains where ``domains.json`` says so. Without it, or without another
            domain in the batch, partners are other samples.
    """

    key: ClassVar[str] = "mixstyle"
    slot: ClassVar[str] = "feature statistics"
    paper: ClassVar[Paper] = Paper(
        "Domain Generalization with MixStyle",
        "Kaiyang Zhou, Yongxin Yang, Yu Qiao, Tao Xiang",
        "International Conference on Learning Representations (ICLR)",
        2021,
        "https://arxiv.org/abs/2104.02008",
    )

    p: float = probability(0.5)
    alpha: float = number(0.1, above=0, high=1e3)
    stages: tuple[int, ...] = setting(
        (0, 1),
        "a list of different stages of the encoder, from 0 on",
        lambda value: (
            isinstance(value, (list, tuple))
            and len(value) == len({*map(repr, value)}) > 0
            and all(isinstance(stage, int) and not isinstance(stage, bool) and 0 <= stage < 32 for stage in value)
        ),
        tuple,
    )
    other_domains: bool = flag(True)

    def training_module(self, student: Student) -> MixStyleTraining:
        """The changes of the encoder's stages."""
        return MixStyleTraining(self, student)


class MixStyleTraining(TrainingModule):
    """Changes the statistics of encoder stages in every forward pass.

    Args:
        settings: See `MixStyle`.
        student: The network in training.
    """

    def __init__(self, settings: MixStyle, student: Student) -> None:
        super().__init__()
        self.settings, self.student = settings, student
        self.domains = torch.zeros(0, dtype=torch.long)
        self.earlier = {stage: EarlierSamples() for stage in settings.stages}
        self.draws: dict[int, tuple[Tensor, Tensor, Statistics | None] | None] = {}
        student.before_each_pass(self.draw)
        for stage in settings.stages:
            student.change(stage, partial(self.styled, stage), always=True)

    def augment(self, batch: Batch) -> Batch:
        """Note the domains of the batch's samples."""
        self.domains = self.student.domains(batch.keys)
        return batch

    def draw(self, data: Tensor) -> None:
        """Draw whether each stage mixes in this pass, with which partners and in which shares."""
        samples = len(data)
        domains = self.domains if self.settings.other_domains and len(self.domains) == samples else None
        for stage in self.settings.stages:
            mixes = float(torch.rand(())) < self.settings.p
            order = partner_order(samples, domains).to(data.device)
            share = draw_share(samples, self.settings.alpha, data.device)
            self.draws[stage] = (order, share, self.earlier[stage].draw()) if mixes else None

    def styled(self, stage: int, feature: Tensor) -> Tensor:
        """The output of a stage, ``(B, A, *spatial)``, with mixed statistics; eq. 7."""
        own = statistics(feature.detach(), EPS, correction=1)
        drawn = self.draws.get(stage)
        if len(feature) == 1:
            self.earlier[stage].remember(own)
        if drawn is None or len(drawn[0]) != len(feature):
            return feature
        order, share, earlier = drawn
        partner = (own[0][order], own[1][order]) if len(feature) > 1 or earlier is None else earlier
        return modulate(feature, *mix(own, partner, share), own=own)
