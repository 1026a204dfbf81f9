"""MixStyle: feature statistics are mixed between samples.

K. Zhou, Y. Yang, Y. Qiao, T. Xiang, Domain Generalization with MixStyle, ICLR 2021, https://arxiv.org/abs/2104.02008.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from nnunet_dg.baselines.partners import EarlierSamples, partner_order, partner_statistics
from nnunet_dg.method import (
    PLACES,
    Batch,
    Method,
    Paper,
    Student,
    TrainingModule,
    choice,
    flag,
    number,
    probability,
    setting,
)
from nnunet_dg.tensors import Statistics, modulate, statistics

EPS = 1e-6  # as in the reference implementation

Draw = tuple[Tensor, Tensor, Tensor, Tensor]  # partners (B,), shares (B, 1), mean and deviation of an earlier sample


def mix(own: Statistics, partner: Statistics, share: Tensor) -> Statistics:
    """Eq. 5 and 6 of MixStyle: ``share * own + (1 - share) * partner``, for mean and deviation.

    Args:
        own: Mean and deviation of each sample, each ``(B, A)``.
        partner: Mean and deviation of each sample's partner, each ``(B, A)``.
        share: Share of a sample's own statistics, ``(B, 1)``, in [0, 1].

    >>> one, two = (torch.zeros(1, 1), torch.ones(1, 1)), (torch.ones(1, 1), torch.ones(1, 1))
    >>> mix(one, two, torch.tensor([[0.75]]))
    (tensor([[0.2500]]), tensor([[1.]]))
    """
    mean, std = (share * a + (1 - share) * b for a, b in zip(own, partner, strict=True))
    return mean, std


def draw_share(samples: int, alpha: float, device: torch.device | None = None) -> Tensor:
    """Shares ``(samples, 1)`` from Beta(alpha, alpha).

    >>> draw_share(3, alpha=0.1).shape
    torch.Size([3, 1])
    """
    return torch.distributions.Beta(alpha, alpha).sample((samples, 1)).to(device)


@torch.no_grad()
def mixstyle_statistics(feature: Tensor, earlier: Statistics | None = None, alpha: float = 0.1) -> Statistics:
    """The statistics of each sample mixed with those of another sample, without gradient.

    Args:
        feature: Feature map, ``(B, A, *spatial)``.
        earlier: Statistics of an earlier sample, ``(1, A)`` each, used if the batch has a single sample; default None.
        alpha: Both parameters of the Beta distribution; default 0.1.

    Returns:
        Mean and deviation, each ``(B, A)``.

    >>> mean, std = mixstyle_statistics(torch.rand(2, 3, 8, 8))
    >>> mean.shape, std.requires_grad
    (torch.Size([2, 3]), False)
    """
    own = statistics(feature)
    partner = partner_statistics(own, earlier)
    return mix(own, partner, draw_share(len(feature), alpha, feature.device))


@dataclass(frozen=True)
class MixStyle(Method):
    """MixStyle: in training, features of the first encoder stages get mixed statistics of two samples.

    K. Zhou, Y. Yang, Y. Qiao, T. Xiang, Domain Generalization with MixStyle, ICLR 2021,
    https://arxiv.org/abs/2104.02008. Statistics are constants for the gradient. In a batch of one sample, the partner
    is an earlier sample. At the output of a stage, the mixed mean has no effect if the next convolution is followed by
    an instance norm, which removes it.

    Attributes:
        p: Probability that a stage mixes the statistics of a batch.
        alpha: Both parameters of the Beta distribution from which each sample's share of its own statistics is drawn.
        stages: Encoder stages whose output is changed, numbered from 0 (full resolution).
        other_domains: Whether partners come from other domains, according to ``domains.json``. Without this file, or
            if all samples of the batch are from one domain, partners are any other samples.
        at: Place at which features are changed: the output of the stage (as published), or the input of its last
            non-linearity, where the mixed mean has an effect in networks with instance norm as well.
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
        "a list of different encoder stages, numbered from 0",
        lambda value: (
            isinstance(value, (list, tuple))
            and len(value) == len({*map(repr, value)}) > 0
            and all(isinstance(stage, int) and not isinstance(stage, bool) and 0 <= stage < 32 for stage in value)
        ),
        tuple,
    )
    other_domains: bool = flag(True)
    at: str = choice(*PLACES)

    def training_module(self, student: Student) -> MixStyleTraining:
        """The training module, which changes the encoder's stages."""
        return MixStyleTraining(self, student)


class MixStyleTraining(TrainingModule):
    """Changes the statistics of encoder stages in every forward pass.

    Args:
        settings: Settings, see `MixStyle`.
        student: Network in training.
    """

    def __init__(self, settings: MixStyle, student: Student) -> None:
        super().__init__()
        self.settings, self.student = settings, student
        self.domains = torch.zeros(0, dtype=torch.long)
        self.earlier = {stage: EarlierSamples() for stage in settings.stages}
        self.draws: dict[int, Draw] = {}
        self.single: dict[int, Statistics] = {}
        student.before_each_pass(self.draw)
        for stage in settings.stages:
            student.change(stage, partial(self.styled, stage), always=True, at=settings.at)

    def augment(self, batch: Batch) -> Batch:
        """Store the domains of the batch's samples. The batch is not changed."""
        self.domains = self.student.domains(batch.keys)
        return batch

    def draw(self, data: Tensor) -> None:
        """Draw for each stage whether it mixes in this pass, the partners and the shares.

        A stage that does not mix has shares of 1, so that a compiled network has one graph for both cases.
        """
        samples = len(data)
        domains = self.domains if self.settings.other_domains and len(self.domains) == samples else None
        for stage in self.settings.stages:
            if stage in self.single:  # of the last pass
                self.earlier[stage].remember(self.single.pop(stage))
            mixes = float(torch.rand(())) < self.settings.p
            order = partner_order(samples, domains).to(data.device)
            share = draw_share(samples, self.settings.alpha, data.device)
            earlier = self.earlier[stage].draw() if samples == 1 else None
            if not mixes or (samples == 1 and earlier is None):
                share = torch.ones_like(share)
            shape = (1, self.student.widths[stage])
            nothing = torch.zeros(shape, device=data.device), torch.ones(shape, device=data.device)
            self.draws[stage] = (order, share, *(earlier or nothing))

    def styled(self, stage: int, feature: Tensor) -> Tensor:
        """The features of a stage, ``(B, A, *spatial)``, with mixed statistics (eq. 7)."""
        own = statistics(feature.detach(), EPS, correction=1)
        order, share, mean, std = self.draws[stage]
        if len(feature) == 1:
            self.single[stage] = own
            return modulate(feature, *mix(own, (mean, std), share), own=own)
        return modulate(feature, *mix(own, (own[0][order], own[1][order]), share), own=own)
