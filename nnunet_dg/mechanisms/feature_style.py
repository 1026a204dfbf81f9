"""Base of the methods that change the style of features: in training, encoder stages get other values per channel.

A method draws random numbers before a pass and computes the changed features from them. Everything else is here: where
and when the features change, the partner of each sample, and the earlier samples that replace it in a batch of one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from nnunet_dg.hooks import Change
from nnunet_dg.mechanisms.partners import EarlierSamples, partner_order
from nnunet_dg.method import PLACES, Batch, Method, Step, Student, TrainingModule, choice, encoder_stages, probability
from nnunet_dg.tensors import Statistics, to_device

Draw = tuple[Tensor, ...]
Partner = Callable[[Tensor], Tensor]  # from values of each sample, (B, A, N), to those of each sample's partner
STATISTICS_PER_CHANNEL = 2  # mean and deviation


def statistics_of_partners(own: Statistics, partner: Partner) -> Statistics:
    """Mean and deviation of each sample's partner, each ``(B, A)``.

    >>> own = torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0], [4.0]])
    >>> statistics_of_partners(own, lambda values: values.flip(0))[0].flatten()
    tensor([2., 1.])
    """
    mean, std = partner(torch.stack(own, 2)).unbind(2)
    return mean, std


@dataclass(frozen=True)
class FeatureStyle(Method):
    """Base of the methods that change the style of features.

    A subclass implements `draw` and `styled`. One that gives samples values of other samples implements `values_kept`.

    Attributes:
        p: Probability that a stage changes its features in a pass. Each stage decides separately, for the whole batch.
            0: the training is nnU-Net's own.
        stages: Encoder stages whose features are changed, numbered from 0 (full resolution).
        at: Place at which features are changed: ``"stage"``, the output of the stage, as published, or
            ``"pre-activation"``, the input of its last non-linearity. At the output of a stage, a changed mean has
            little effect in networks with instance norm, since the norm after the next convolution removes it.
    """

    slot: ClassVar[str] = "feature statistics"
    needs_batch: ClassVar[bool] = False
    """Whether the features of a batch of one sample are not changed."""

    p: float = probability(0.5)
    stages: tuple[int, ...] = encoder_stages(0, 1)
    at: str = choice(*PLACES)

    def draw(self, samples: int, width: int) -> Draw:
        """The random numbers of a stage with ``width`` channels for a pass of ``samples`` samples, on the CPU."""
        return ()

    def styled(self, feature: Tensor, draw: Draw, partner: Partner) -> Tensor:
        """The changed features, ``(B, A, *spatial)``, in the dtype of the feature.

        Args:
            feature: Feature map, ``(B, A, *spatial)``.
            draw: Random numbers, on the feature's device.
            partner: Function from values of each sample, ``(B, A, N)``, to those of each sample's partner. In a batch
                of one sample, it returns the values of an earlier sample, without gradient, and N is `values_kept`.
        """
        raise NotImplementedError

    def values_kept(self) -> int:
        """Number of values per channel that later batches of one sample get as their partner's; 0: no partners."""
        return 0

    def across_domains(self) -> bool:
        """Whether partners are of other domains, where they are known."""
        return False

    def training_module(self, student: Student) -> FeatureStyleTraining:
        """The training module, which changes the encoder's stages."""
        return FeatureStyleTraining(self, student)


class FeatureStyleTraining(TrainingModule):
    """Changes the features of encoder stages in every forward pass.

    A compiled network has one graph, whether a stage changes its features in a pass or not.

    Args:
        settings: Settings, see `FeatureStyle`.
        student: Network in training.
        always: Whether features are changed in every pass; False: only inside `styling`. Default True.
    """

    def __init__(self, settings: FeatureStyle, student: Student, always: bool = True) -> None:
        super().__init__()
        self.settings, self.student = settings, student
        self.domains = torch.zeros(0, dtype=torch.long)
        self.earlier: dict[int, EarlierSamples[Tensor]] = {stage: EarlierSamples() for stage in settings.stages}
        self.single: dict[int, Tensor] = {}  # values of the last pass's single sample
        self.acts: dict[int, bool] = {}
        self.draws: dict[int, Draw] = {}
        self.changes: list[Change] = []
        if settings.p > 0:
            self.register(always)

    def register(self, always: bool) -> None:
        """Register the changes of the stages and, if they act in every pass, that it draws random numbers before."""
        if always:
            self.student.before_each_pass(self.draw)
        at = self.settings.at
        self.changes = [self.student.change(s, partial(self.styled, s), always, at) for s in self.settings.stages]

    @contextmanager
    def styling(self, step: Step, acting: Tensor) -> Iterator[None]:
        """Inside this context, passes have new styles, which are drawn here.

        Args:
            step: Training step.
            acting: Whether each stage acts, ``(stages,)``, bool, on the CPU.
        """
        self.draw_stages(step.batch.data, acting)
        with ExitStack() as stack:
            for change in self.changes:
                stack.enter_context(change)
            self.search(step, acting)
            yield

    def search(self, step: Step, acting: Tensor) -> None:
        """Change the drawn styles before they are used, for methods that search them. Here: not."""

    def augment(self, batch: Batch) -> Batch:
        """Store the domains of the batch's samples. The batch is not changed."""
        if self.settings.across_domains():
            self.domains = self.student.domains(batch.keys)
        return batch

    def draw(self, data: Tensor) -> None:
        """Draw for each stage whether it acts in this pass, the partners, and the method's random numbers."""
        self.draw_stages(data, torch.rand(len(self.settings.stages)) < self.settings.p)

    def draw_stages(self, data: Tensor, acting: Tensor) -> None:
        """Draw the partners and the method's random numbers for stages of which it is known whether they act."""
        for stage, acts in zip(self.settings.stages, acting.tolist(), strict=True):
            if stage in self.single:
                self.earlier[stage].remember(self.single.pop(stage))
            partner = self._partners(stage, len(data))
            self.acts[stage] = acts and partner is not None
            if partner is None:
                partner = torch.ones(1, self.student.widths[stage], self.settings.values_kept())
            draw = self.settings.draw(len(data), self.student.widths[stage])
            drawn = torch.tensor(self.acts[stage]), partner, *draw
            self.draws[stage] = tuple(to_device(part, data.device) for part in drawn)

    def _partners(self, stage: int, samples: int) -> Tensor | None:
        """The partners' indices, ``(B,)``, or for a single sample the values of an earlier one; None: there is none."""
        if not self.settings.values_kept():
            return torch.zeros(0)
        if samples == 1:
            return self.earlier[stage].draw()
        return partner_order(samples, self.domains if len(self.domains) == samples else None)

    def styled(self, stage: int, feature: Tensor) -> Tensor:
        """The features of a stage, ``(B, A, *spatial)``, changed if the stage acts in this pass."""
        acts, partners, *draw = self.draws[stage]
        if len(feature) > 1 and not torch.compiler.is_compiling() and not self.acts[stage]:
            return feature  # as below, but without its cost

        def partner(values: Tensor) -> Tensor:
            if len(values) > 1:
                return values[partners]
            self.single[stage] = values.detach()
            return partners

        return torch.where(acts, self.settings.styled(feature, tuple(draw), partner), feature)

    def get_extra_state(self) -> dict[str, Any]:
        """The values of earlier single samples, for checkpoints."""
        return {"earlier": {stage: earlier.state() for stage, earlier in self.earlier.items()}, "single": self.single}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore the values of earlier single samples."""
        for stage, values in state["earlier"].items():
            self.earlier[stage].restore(values)
        self.single = dict(state["single"])

    def prepare(self) -> None:
        """Log a note if each device has one sample, and the method needs more or takes earlier ones as partners."""
        name = type(self.settings).__name__
        if self.student.samples_per_device > 1 or self.settings.p == 0:
            return
        if self.settings.needs_batch:
            self.student.log(
                f"{name} needs two samples per device, but there is only one, so it has no effect. Set batch_size in "
                f"the plans to at least two per device, or choose another method."
            )
        elif self.settings.values_kept():
            self.student.log(f"{name}: one sample per device, so partners are earlier samples.")
