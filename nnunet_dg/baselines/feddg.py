"""FedDG without federation: images with amplitudes of other domains, meta-learning, and a contrast of borders.

Q. Liu, C. Chen, J. Qin, Q. Dou, P.-A. Heng, FedDG: Federated Domain Generalization on Medical Image Segmentation via
Episodic Learning in Continuous Frequency Space, CVPR 2021, https://arxiv.org/abs/2103.06030.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from nnunet_dg.mechanisms.borders import Embeddings, embeddings, foreground, gathered
from nnunet_dg.mechanisms.meta import descended, gradients_of, trained_parameters
from nnunet_dg.mechanisms.partners import partner_order
from nnunet_dg.method import Batch, Method, Paper, Step, Student, TrainingModule, number
from nnunet_dg.sgcg.mixup import Partners, random_amplitude_mixup
from nnunet_dg.tensors import to_device, wide

LARGEST_GRADIENT = 100  # elements of the inner gradient are clamped to it, as in the reference implementation
ONE_FREQUENCY = 1 + 1e-6  # with a margin for rounding
NEVER = -1e4  # logarithm of a similarity that does not count


def border_contrast(vectors: Tensor, is_border: Tensor, valid: Tensor, temperature: float) -> Tensor:
    """NT-Xent: border vectors should be more similar to each other than to those of the band, and vice versa.

    For every ordered pair i, j of different vectors of one kind, ``-log(e_ij / (e_ij + sum_k e_ik))`` with the vectors
    k of the other kind and ``e_ij = exp(cosine(i, j) / temperature)``; the mean over the pairs, summed over classes. A
    class without pairs adds 0. It is computed in at least float32, also under autocast.

    Args:
        vectors: ``(F, N, A)``: N vectors of each of F classes.
        is_border: Whether a vector is of a border, not of a band, ``(N,)``, bool.
        valid: Whether a vector counts, ``(F, N)``, bool. Every class that counts has valid vectors of both kinds.
        temperature: Temperature.

    Returns:
        Scalar.

    >>> vectors = torch.tensor([[[1.0, 0.0], [2.0, 1.0], [0.0, 1.0], [-1.0, 1.0]]])
    >>> is_border = torch.tensor([True, True, False, False])
    >>> border_contrast(vectors, is_border, torch.ones(1, 4).bool(), temperature=0.5)
    tensor(0.3434)
    """
    with torch.autocast(vectors.device.type, enabled=False):
        unit = F.normalize(wide(vectors), dim=-1, eps=1e-6)
        similar = unit @ unit.transpose(1, 2) / temperature
        both = valid[:, :, None] & valid[:, None]
        same = is_border[:, None] == is_border
        pairs = both & same & ~torch.eye(len(is_border), dtype=torch.bool, device=vectors.device)
        others = similar.masked_fill(~(both & ~same), NEVER).logsumexp(-1, keepdim=True)
        terms = (torch.logaddexp(similar, others) - similar).masked_fill(~pairs, 0)
        return (terms.sum((1, 2)) / pairs.sum((1, 2)).clamp(min=1)).sum()


@dataclass(frozen=True)
class FedDG(Method):
    """FedDG's loss on mixed batches, without federation: "ELCFS, centralized". The network is the planned one.

    Q. Liu, C. Chen, J. Qin, Q. Dou, P.-A. Heng, FedDG: Federated Domain Generalization on Medical Image Segmentation
    via Episodic Learning in Continuous Frequency Space, CVPR 2021, https://arxiv.org/abs/2103.06030. Each image gets a
    twin with the low-frequency amplitude of an image of another domain, in a share drawn uniformly. The network after
    one step of gradient descent on the images, with the gradient as a constant, is trained with nnU-Net's loss of the
    twins and with the contrast of borders: the mean penultimate features of the border of each class and of the
    background around it, in images and twins. nnU-Net's loss of the images is added.

    There are no clients and no averaging of models: batches are balanced over the domains of ``domains.json``, which
    must assign the training cases to at least two. The published code exchanges only the mean of the images, since its
    window has a width of 0, and does not parse; here, the paper's equations are computed. A sample whose patch lacks a
    border or the background around it is left out of the contrast of this class. A step takes three more passes,
    without `torch.compile` for two of them, and about three times the memory of nnU-Net's.

    Attributes:
        half_width: Half-width of the frequency window in which amplitudes are mixed, as a fraction of the patch's
            shortest side. Unless it is 0, the window has at least one frequency besides the mean.
        step_size: Size of the step of gradient descent.
        meta: Weight of the loss of the twins after this step.
        contrast: Weight of the contrast of borders; 0 disables the term.
        temperature: Temperature of the contrast.
    """

    key: ClassVar[str] = "feddg"
    slot: ClassVar[str] = "auxiliary task"
    fewest_domains: ClassVar[int] = 2
    paper: ClassVar[Paper] = Paper(
        "FedDG: Federated Domain Generalization on Medical Image Segmentation via Episodic Learning in Continuous "
        "Frequency Space",
        "Quande Liu, Cheng Chen, Jing Qin, Qi Dou, Pheng-Ann Heng",
        "IEEE Conference on Computer Vision and Pattern Recognition (CVPR)",
        2021,
        "https://arxiv.org/abs/2103.06030",
    )

    half_width: float = number(0.01, 0, 0.5)
    step_size: float = number(1e-3, above=0, high=1)
    meta: float = number(1.0, above=0)
    contrast: float = number(0.1, 0)
    temperature: float = number(0.05, 1e-2, 1e3)

    def balances_domains(self) -> bool:
        """Batches are balanced over the domains."""
        return True

    def training_module(self, student: Student) -> FedDGTraining:
        """The training module, which makes the twins and the step of gradient descent."""
        return FedDGTraining(self, student)


class FedDGTraining(TrainingModule):
    """Adds the losses after a step of gradient descent.

    Args:
        settings: Settings, see `FedDG`.
        student: Network in training.
    """

    def __init__(self, settings: FedDG, student: Student) -> None:
        super().__init__()
        self.settings, self.student = settings, student
        self.partners = Partners()
        self.penultimate = student.tap("penultimate")

    def weights(self, epoch: int) -> dict[str, float]:
        """Weights of the terms."""
        weights = {"segmentation": 1.0, "segmentation_meta": self.settings.meta}
        return weights | ({"border_contrast": self.settings.contrast} if self.settings.contrast else {})

    def losses(self, step: Step) -> dict[str, Tensor]:
        """nnU-Net's loss, that of the twins after the step, and the contrast of borders."""
        student, batch = self.student, step.batch
        terms = {"segmentation": step.segmentation(step.output)}
        twins = self.mix(batch)
        with student.aside():
            inner = gradients_of(student, step.segmentation(step.forward(batch.data).output))
        weights = descended(
            trained_parameters(student), inner, self.settings.step_size,
            lambda gradient: gradient.clamp(-LARGEST_GRADIENT, LARGEST_GRADIENT),
        )  # fmt: skip
        of_twins = student.run(twins.data, weights)
        terms["segmentation_meta"] = step.segmentation(of_twins.output)
        if self.settings.contrast:
            passes = student.run(batch.data, weights), of_twins
            masks, known = foreground(student, batch.target)
            found = [embeddings(each.features(self.penultimate), masks, known) for each in passes]
            terms["border_contrast"] = self._contrast([gathered(student, each) for each in found])
        return terms

    def _contrast(self, found: list[Embeddings]) -> Tensor:
        """The contrast of the borders and bands of images and twins, on all devices."""
        vectors = torch.cat([each.border for each in found] + [each.band for each in found]).transpose(0, 1)
        valid = torch.cat([each.present for each in found * 2]).T
        is_border = torch.arange(valid.shape[1], device=valid.device) < valid.shape[1] // 2
        return border_contrast(vectors, is_border, valid, self.settings.temperature)

    def mix(self, batch: Batch) -> Batch:
        """The twins: the batch with mixed amplitudes. Voxels outside a mask and padding stay zero."""
        images = batch.images
        domains = self.student.domains(batch.keys)
        partners = self.partners.of(images, domains)  # earlier samples, for a batch of one domain
        if len(domains.unique()) > 1:
            partners = images[to_device(partner_order(len(images), domains), images.device)]
        ratio = torch.rand(len(images), device=images.device)
        shortest = min(images.shape[2:])
        width = min(0.5, max(self.settings.half_width, ONE_FREQUENCY / shortest)) if self.settings.half_width else 0
        mixed = random_amplitude_mixup(images, partners, ratio, width)
        return batch.with_images(mixed.masked_fill(self.student.outside.channels(images), 0))
