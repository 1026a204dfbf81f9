"""DoFE: a memory of the source domains' features enriches the bottleneck, in training and at inference.

S. Wang, L. Yu, K. Li, X. Yang, C.-W. Fu, P.-A. Heng, DoFE: Domain-oriented Feature Embedding for Generalizable Fundus
Image Segmentation on Unseen Datasets, IEEE Transactions on Medical Imaging 39(12), 2020,
https://arxiv.org/abs/2010.06208.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from nnunet_dg.errors import SettingsError
from nnunet_dg.hooks import Tap
from nnunet_dg.method import AroundPlanned, Inputs, Method, Paper, Step, Student, TrainingModule, number
from nnunet_dg.tensors import per_channel, to_device, wide

OWN_SHARE = 0.8  # smallest target share of a sample's own domain


def enriched(feature: Tensor, selector: Tensor, aggregated: Tensor) -> Tensor:
    """``feature + tanh(selector) * aggregated``, in the dtype of the feature.

    Args:
        feature: Feature map, ``(B, A, *spatial)``.
        selector: Feature map of the same shape, before tanh.
        aggregated: Vector of each sample, ``(B, A)``.

    >>> enriched(torch.tensor([[[0.5], [-1.0]]]), torch.tensor([[[0.5], [-1.0]]]), torch.tensor([[1.0, 1.75]]))
    tensor([[[ 0.9621],
             [-2.3328]]])
    """
    return (wide(feature) + wide(selector).tanh() * per_channel(aggregated, feature)).to(feature.dtype)


def remembered(memory: Tensor, means: Tensor, domains: Tensor, keep: float) -> Tensor:
    """The memory after a step: ``keep * own + (1 - keep) * mean`` for each domain that has samples.

    Args:
        memory: Vector of each domain, ``(D, A)``.
        means: Mean feature of each sample, ``(B, A)``.
        domains: Domain of each sample, ``(B,)``, int64.
        keep: Share that is kept.

    >>> memory, means = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[1.0, 3.0], [3.0, 5.0]])
    >>> remembered(memory, means, torch.tensor([0, 0]), keep=0.9)
    tensor([[1.1000, 0.4000],
            [0.0000, 2.0000]])
    """
    members = F.one_hot(domains, len(memory)).to(memory.dtype).T  # (D, B)
    samples = members.sum(1, keepdim=True)
    with torch.autocast(memory.device.type, enabled=False):
        new = members @ means.to(memory.dtype) / samples.clamp(min=1)
    return torch.where(samples > 0, keep * memory + (1 - keep) * new, memory)


def shares_of(code: Tensor, present: Tensor) -> Tensor:
    """The shares of the domains: the softmax over those that are present, and 0 for the others; in at least float32.

    Args:
        code: Predicted similarity to each domain, ``(B, D)``.
        present: Whether a domain is present, ``(D,)``, bool; at least one is.

    >>> shares_of(torch.tensor([[0.0, 5.0, 0.0]]), torch.tensor([True, False, True]))
    tensor([[0.5000, 0.0000, 0.5000]])
    """
    return wide(code).masked_fill(~present, -torch.inf).softmax(1)


def softened(domains: Tensor, present: Tensor, own: Tensor) -> Tensor:
    """The target shares of the domains: ``own`` for a sample's own domain, the rest equally for the others present.

    Args:
        domains: Domain of each sample, ``(B,)``, int64.
        present: Whether a domain is present, ``(D,)``, bool.
        own: Share of the own domain, ``(B,)``.

    Returns:
        ``(B, D)``.

    >>> softened(torch.tensor([1]), torch.tensor([True, True, True, False]), torch.tensor([0.8]))
    tensor([[0.1000, 0.8000, 0.1000, 0.0000]])
    """
    is_own = F.one_hot(domains, len(present)).bool()
    rest = (1 - own) / (present.sum() - 1).clamp(min=1)
    return torch.where(is_own, own[:, None], rest[:, None] * present)


class DomainMemory(nn.Module):
    """The memory and the layers that read it: ``(B, A, *spatial)`` -> the same shape and dtype.

    Args:
        width: Number of channels, A.
        domains: Number of domains, D.
        dims: Number of spatial axes.
    """

    vectors: Tensor
    present: Tensor
    active: Tensor

    def __init__(self, width: int, domains: int, dims: int) -> None:
        super().__init__()
        convolution: Any = {2: nn.Conv2d, 3: nn.Conv3d}[dims]
        self.code = nn.Sequential(nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, domains))
        self.selector = convolution(width, width, 1, bias=False)
        self.register_buffer("vectors", torch.zeros(domains, width))
        self.register_buffer("present", torch.ones(domains, dtype=torch.bool))  # the domains with training cases
        self.register_buffer("active", torch.ones(()))  # 0 while the memory only collects

    def forward(self, feature: Tensor) -> Tensor:
        # the memory changes after the pass, before its gradient is computed from it
        vectors, active, present = self.vectors.clone(), self.active.clone(), self.present.clone()
        shares = shares_of(self.code(feature.flatten(2).amax(2)), present)
        with torch.autocast(feature.device.type, enabled=False):
            aggregated = active * (shares @ vectors.to(shares.dtype))
        return enriched(feature, self.selector(feature), aggregated)


class DoFENetwork(AroundPlanned):
    """A network whose bottleneck is enriched by a `DomainMemory`.

    ``(B, C + R, *spatial)`` -> logits ``(B, K, *spatial)``; a list under deep supervision.

    Args:
        network: Planned network, or a network around it.
        domains: Number of domains.
        dims: Number of spatial axes.
    """

    def __init__(self, network: nn.Module, domains: int, dims: int) -> None:
        super().__init__()
        self.network = network
        planned: Any = network
        while isinstance(planned, AroundPlanned):
            planned = planned.network
        self.memory = DomainMemory(planned.encoder.output_channels[-1], domains, dims)
        planned.encoder.stages[-1].register_forward_hook(self._enrich)

    def _enrich(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return self.memory(output)

    def forward(self, x: Tensor) -> Any:
        return self.network(x)


@dataclass(frozen=True)
class DoFE(Method):
    """DoFE: a memory with a vector for each source domain enriches the bottleneck; it acts at inference as well.

    S. Wang, L. Yu, K. Li, X. Yang, C.-W. Fu, P.-A. Heng, DoFE: Domain-oriented Feature Embedding for Generalizable
    Fundus Image Segmentation on Unseen Datasets, IEEE Transactions on Medical Imaging 39(12), 2020,
    https://arxiv.org/abs/2010.06208. A layer predicts from the bottleneck how similar an image is to each domain. The
    memory's vectors, in these shares, are added to the bottleneck, weighted at each position and channel by a learned
    selector. The loss is nnU-Net's and the squared error of the shares. Training cases of at least two domains are
    needed, according to ``domains.json``; batches are balanced over them. Prediction needs this package.

    In the published code, the memory is never updated. Here, as in the paper, it is a moving average of the domains'
    mean bottlenecks in training, and it is not changed at inference. The paper fills it by a network trained before;
    here it only collects in the first tenth of the epochs. A layer norm stands for the paper's batch norm of the pooled
    bottleneck, which needs several samples. A domain without training cases in a fold has no share, neither in training
    nor at inference.

    Attributes:
        keep: Share of the memory that a step keeps.
        code: Weight of the squared error of the predicted shares; 0 disables the term.
        domains: Number of domains of the dataset, which is filled in when a training starts.
    """

    key: ClassVar[str] = "dofe"
    slot: ClassVar[str] = "network"
    changes_network: ClassVar[bool] = True
    fewest_domains: ClassVar[int] = 2
    paper: ClassVar[Paper] = Paper(
        "DoFE: Domain-oriented Feature Embedding for Generalizable Fundus Image Segmentation on Unseen Datasets",
        "Shujun Wang, Lequan Yu, Kang Li, Xin Yang, Chi-Wing Fu, Pheng-Ann Heng",
        "IEEE Transactions on Medical Imaging 39(12)",
        2020,
        "https://arxiv.org/abs/2010.06208",
        "article",
    )

    keep: float = number(0.9, 0, 1)
    code: float = number(0.1, 0)
    domains: int | None = number(None, 1, 10**6, whole=True, null=True)

    def balances_domains(self) -> bool:
        """Batches are balanced over the domains."""
        return True

    def for_domains(self, count: Callable[[], int]) -> DoFE:
        """The settings with the dataset's number of domains."""
        found = count()
        if self.domains not in (None, found):
            raise SettingsError(
                f"domains must be the number of domains in domains.json, which is {found}; got {self.domains}. Leave "
                f"it out."
            )
        return replace(self, domains=found)

    def build_network(self, build: Callable[[int], nn.Module], inputs: Inputs) -> DoFENetwork:
        """The planned network with a memory at its bottleneck."""
        return DoFENetwork(build(inputs.channels), self.domains or 1, len(inputs.patch_size))

    def training_module(self, student: Student) -> DoFETraining:
        """The training module, which fills the memory."""
        return DoFETraining(self, student)


class DoFETraining(TrainingModule):
    """Fills the memory, and trains the predicted shares.

    Args:
        settings: Settings, see `DoFE`.
        student: Network in training.
    """

    def __init__(self, settings: DoFE, student: Student) -> None:
        super().__init__()
        self.settings, self.student = settings, student
        memory = self.memory
        self.bottleneck, self.shares = Tap(memory, "input"), Tap(memory.code, "output")
        student.taps += [self.bottleneck, self.shares]

    @property
    def memory(self) -> DomainMemory:
        """The memory in the network."""
        return next(module for module in self.student.network.modules() if isinstance(module, DomainMemory))

    @property
    def first_epoch(self) -> int:
        """The epoch from which on the memory acts."""
        return self.student.num_epochs // 10

    def start_epoch(self, epoch: int) -> None:
        """In the first tenth of the epochs, the memory only collects. Domains without training cases get no share."""
        present = self.memory.present.new_zeros(len(self.memory.present), device="cpu")
        present[list(self.student.training_domains)] = True
        self.memory.present.copy_(present)
        self.memory.active.fill_(epoch >= self.first_epoch)

    def weights(self, epoch: int) -> dict[str, float]:
        """Weights of the terms."""
        return {"segmentation": 1.0} | ({"code": self.settings.code} if self.settings.code else {})

    def losses(self, step: Step) -> dict[str, Tensor]:
        """nnU-Net's loss, and the squared error of the shares. The memory is updated from the batch's bottleneck."""
        terms = {"segmentation": step.segmentation(step.output)}
        domains = to_device(self.student.domains(step.batch.keys), step.batch.data.device)
        self._remember(step.own.features(self.bottleneck), domains)
        if self.settings.code:
            present = self.memory.present.clone()
            shares = shares_of(step.own.features(self.shares), present)
            own = OWN_SHARE + (1 - OWN_SHARE) * torch.rand(len(shares), device=shares.device, dtype=shares.dtype)
            errors = (shares - softened(domains, present, own)).square()
            terms["code"] = (errors.sum(1) / present.sum()).mean()
        return terms

    @torch.no_grad()
    def _remember(self, bottleneck: Tensor, domains: Tensor) -> None:
        """Update the memory from the samples on all devices."""
        means = self.student.gathered(wide(bottleneck).flatten(2).mean(2))
        memory = self.memory
        memory.vectors.copy_(remembered(memory.vectors, means, self.student.gathered(domains), self.settings.keep))

    def conditions(self) -> dict[str, Any]:
        """The domains, which must be unchanged when a training resumes."""
        return {"domains": list(self.student.domain_names)}
