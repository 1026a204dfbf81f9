"""SAML: meta-learning over domains with losses of shape.

Q. Liu, Q. Dou, P.-A. Heng, Shape-aware Meta-learning for Generalizing Prostate MRI Segmentation to Unseen Domains,
MICCAI 2020, https://arxiv.org/abs/2007.02035.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from nnunet_dg.mechanisms.borders import Embeddings, embeddings, foreground, gathered
from nnunet_dg.mechanisms.domain_samples import DomainSamples, each_scale, joined, part
from nnunet_dg.mechanisms.meta import clipped, descended, gradients_of, trained_parameters
from nnunet_dg.method import Batch, Method, Paper, Step, Student, TrainingModule, full_resolution, number
from nnunet_dg.tensors import wide

LARGEST_NORM = 10  # of the inner gradient of each parameter
SMALLEST_AREA = 1e-5
TRAIN = 2  # domains of the step of gradient descent
HIDDEN, EMBEDDING = 24, 16


def compactness(probability: Tensor) -> Tensor:
    """``perimeter^2 / (4 pi area)`` in 2-D, 1 for a disc; ``surface^3 / (36 pi volume^2)`` in 3-D, 1 for a ball.

    The border is the sum of ``sqrt(|backward differences|^2 + 1e-8)``, where all of them exist. It is computed in at
    least float32, also under autocast.

    Args:
        probability: Foreground probability, ``(B, F, *spatial)``, in [0, 1].

    Returns:
        ``(B, F)``.

    >>> square = torch.zeros(1, 1, 12, 12)
    >>> square[..., 4:8, 4:8] = 1
    >>> compactness(square)
    tensor([[1.1833]])
    """
    with torch.autocast(probability.device.type, enabled=False):
        p = wide(probability)
        dims = p.ndim - 2
        inner = _moved(p, set())
        squares = torch.full_like(inner, 1e-8)
        for axis in range(2, p.ndim):
            squares = squares + (inner - _moved(p, {axis})).square()
        border, area = squares.sqrt().flatten(2).sum(2), p.flatten(2).sum(2) + SMALLEST_AREA
        if dims == 2:
            return border.square() / (4 * math.pi * area)
        return (border / (36 * math.pi * area.square()) ** (1 / 3)) ** 3


def _moved(p: Tensor, axes: set[int]) -> Tensor:
    """The voxels that have a voxel before them along every spatial axis; along ``axes``, the voxels before these."""
    for axis in range(2, p.ndim):
        p = p.narrow(axis, 0 if axis in axes else 1, p.shape[axis] - 1)
    return p


def semi_hard_triplets(vectors: Tensor, is_border: Tensor, valid: Tensor, margin: float) -> Tensor:
    """Triplet loss: vectors of one kind should be closer to each other than to the other kind, by a margin.

    For each ordered pair i, j of different vectors of one kind, ``max(d_ij - d_in + margin, 0)`` with squared distances
    and the nearest vector n of the other kind that is farther than j, or the farthest if there is none; the mean over
    the pairs, summed over classes. A class without pairs adds 0. It is computed in at least float32.

    Args:
        vectors: ``(F, N, A)``: N vectors of each of F classes.
        is_border: Whether a vector is of a border, not of a band, ``(N,)``, bool.
        valid: Whether a vector counts, ``(F, N)``, bool.
        margin: Margin.

    Returns:
        Scalar.

    >>> vectors = torch.tensor([[[0.0, 0], [1, 0], [3, 0], [0, 2], [5, 0]]])
    >>> is_border = torch.tensor([True, True, False, True, False])
    >>> semi_hard_triplets(vectors, is_border, torch.ones(1, 5).bool(), margin=10)
    tensor(2.7500)
    """
    with torch.autocast(vectors.device.type, enabled=False):
        vectors = wide(vectors)
        distances = (vectors[:, :, None] - vectors[:, None]).square().sum(-1)  # (F, N, N)
        both = valid[:, :, None] & valid[:, None]
        same = is_border[:, None] == is_border
        others = both & ~same
        pairs = both & same & ~torch.eye(len(is_border), dtype=torch.bool, device=vectors.device)
        pairs = pairs & others.any(2, keepdim=True)
        farther = others[:, :, None] & (distances[:, :, None] > distances[..., None])  # (F, i, j, n)
        nearest = distances[:, :, None].expand_as(farther).masked_fill(~farther, torch.inf).amin(-1)
        farthest = distances.masked_fill(~others, 0).amax(-1, keepdim=True).expand_as(nearest)
        negative = torch.where(farther.any(-1), nearest, farthest)
        terms = (distances - negative + margin).clamp(min=0).masked_fill(~pairs, 0)
        return (terms.sum((1, 2)) / pairs.sum((1, 2)).clamp(min=1)).sum()


@dataclass(frozen=True)
class SAML(Method):
    """SAML: after a step of gradient descent on two domains, the network is trained on a third, with losses of shape.

    Q. Liu, Q. Dou, P.-A. Heng, Shape-aware Meta-learning for Generalizing Prostate MRI Segmentation to Unseen Domains,
    MICCAI 2020, https://arxiv.org/abs/2007.02035. Each step draws two domains and another one. After a step of gradient
    descent on the two, with the gradient as a constant, three losses of the third are computed: nnU-Net's loss, the
    compactness of the predicted shapes, and a triplet loss of learned embeddings of the borders and of the background
    around them, in all three. nnU-Net's loss of the batch is added. Training cases of at least three domains are
    needed, according to ``domains.json``. Batches are balanced over the domains; a domain that a batch lacks is
    represented by its last sample before.

    The paper trains nnU-Net's loss and the others by separate optimizers; here they are added. The published code
    multiplies perimeters by 0.01, which is a weight of 0.0001 here, and predicts with the statistics of the test
    batch, which nnU-Net does not. The compactness is averaged over samples; it skips classes that the label lacks. The
    embeddings are those of the penultimate features alone. In 3-D, compactness is that of surface and volume. A step
    takes two more passes of three samples, one of them without `torch.compile`.

    Attributes:
        step_size: Size of the step of gradient descent.
        meta: Weight of nnU-Net's loss of the third domain.
        compactness: Weight of the compactness of predicted shapes; 0 disables the term.
        smoothness: Weight of the triplet loss of borders; 0 disables the term.
        margin: Margin of the triplet loss.
    """

    key: ClassVar[str] = "saml"
    slot: ClassVar[str] = "auxiliary task"
    fewest_domains: ClassVar[int] = 3
    paper: ClassVar[Paper] = Paper(
        "Shape-aware Meta-learning for Generalizing Prostate MRI Segmentation to Unseen Domains",
        "Quande Liu, Qi Dou, Pheng-Ann Heng",
        "Medical Image Computing and Computer Assisted Intervention (MICCAI)",
        2020,
        "https://arxiv.org/abs/2007.02035",
    )

    step_size: float = number(1e-4, above=0, high=1)
    meta: float = number(1.0, above=0)
    compactness: float = number(1e-4, 0)
    smoothness: float = number(0.005, 0)
    margin: float = number(10.0, above=0, high=1e4)

    def balances_domains(self) -> bool:
        """Batches are balanced over the domains."""
        return True

    def training_module(self, student: Student) -> SAMLTraining:
        """The training module, with the layers that embed borders."""
        return SAMLTraining(self, student)


class SAMLTraining(TrainingModule):
    """Adds the losses of one domain after a step of gradient descent on two others.

    Args:
        settings: Settings, see `SAML`.
        student: Network in training.
    """

    def __init__(self, settings: SAML, student: Student) -> None:
        super().__init__()
        self.settings, self.student = settings, student
        self.samples = DomainSamples()
        if settings.smoothness:
            self.penultimate = student.tap("penultimate")
            self.metric = nn.Sequential(
                nn.Linear(student.penultimate_width, HIDDEN), nn.LeakyReLU(), nn.Linear(HIDDEN, EMBEDDING)
            )

    def weights(self, epoch: int) -> dict[str, float]:
        """Weights of the terms."""
        settings = self.settings
        shape = {"compactness": settings.compactness, "smoothness": settings.smoothness}
        weights = {"segmentation": 1.0, "segmentation_meta": settings.meta}
        return weights | {name: weight for name, weight in shape.items() if weight}

    def losses(self, step: Step) -> dict[str, Tensor]:
        """nnU-Net's loss of the batch, and the losses after the step; 0 while fewer than two domains were seen."""
        terms = {"segmentation": step.segmentation(step.output)}
        self.samples.see(step.batch, self.student.domains(step.batch.keys).tolist())
        drawn = self.draw()
        if len(drawn) < 2:
            metric = sum(parameter.sum() for parameter in self.parameters())  # for DDP, in every step
            zero = terms["segmentation"].detach() * 0 + 0 * metric
            return terms | {name: zero for name in self.weights(step.epoch) if name != "segmentation"}
        test, *train = (self.samples.of(domain) for domain in drawn)
        return terms | self._after_a_step(step, joined(train), test, with_band=len(train[0].data))

    def draw(self) -> list[int]:
        """The domain whose losses are computed, then up to two of the step; alike on all devices."""
        domains = len(self.student.domain_names)
        known = torch.tensor([[float(domain in self.samples.known()) for domain in range(domains)]])
        everywhere = (self.student.gathered(known) > 0).all(0).tolist()
        order = self.student.agreed(torch.randperm(domains)).tolist()
        return [domain for domain in order if everywhere[domain]][: 1 + TRAIN]

    def _after_a_step(self, step: Step, train: Batch, test: Batch, with_band: int) -> dict[str, Tensor]:
        student, settings = self.student, self.settings
        with student.aside():
            output = step.forward(train.data).output
            domains = [range(with_band), range(with_band, len(train.data))]
            each = [student.loss(part(output, d), part(train.target, d)) for d in domains if len(d)]
            inner = gradients_of(student, torch.stack(each).mean())
        parameters = trained_parameters(student)
        weights = descended(parameters, inner, settings.step_size, lambda gradient: clipped(gradient, LARGEST_NORM))
        batch, first = joined([train, test]), len(train.data)
        after = student.run(batch.data, weights)
        output = each_scale(after.output, lambda scale: scale[first:])
        terms = {"segmentation_meta": student.loss(output, test.target)}
        masks, known = foreground(student, batch.target)
        if settings.compactness:
            terms["compactness"] = self._compactness(full_resolution(output), masks[first:])
        if settings.smoothness:
            own = embeddings(after.features(self.penultimate), masks, known)
            sample = torch.arange(len(masks), device=masks.device)
            has_band = (sample < with_band) | (sample >= first)  # as in the paper, without the second domain's
            terms["smoothness"] = self._smoothness(gathered(student, own), student.gathered(has_band.float()) > 0)
        return terms

    def _compactness(self, logits: Tensor, masks: Tensor) -> Tensor:
        """The mean over samples of the sum over classes that the label and the prediction have.

        A prediction of less than a voxel has no shape, and its squared border over its area would be huge.
        """
        probability = wide(logits).sigmoid() if self.student.regions else wide(logits).softmax(1)[:, 1:]
        present = masks.flatten(2).any(2) & (probability.detach().flatten(2).sum(2) >= 1)
        return compactness(probability).masked_fill(~present, 0).sum(1).mean()

    def _smoothness(self, found: Embeddings, has_band: Tensor) -> Tensor:
        with torch.autocast(found.border.device.type, enabled=False):
            weight: Tensor = self.metric[0].weight  # type: ignore[assignment]
            vectors = self.metric(torch.cat([found.border, found.band]).to(weight.dtype)).transpose(0, 1)
        valid = torch.cat([found.present, found.present & has_band[:, None]]).T
        is_border = torch.arange(valid.shape[1], device=valid.device) < valid.shape[1] // 2
        return semi_hard_triplets(vectors, is_border, valid, self.settings.margin)
