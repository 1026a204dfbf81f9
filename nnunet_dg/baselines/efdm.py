"""EFDMix: samples exchange the distribution of their feature values, by exact histogram matching.

Y. Zhang, M. Li, R. Li, K. Jia, L. Zhang, Exact Feature Distribution Matching for Arbitrary Style Transfer and Domain
Generalization, CVPR 2022, https://arxiv.org/abs/2203.07740.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from nnunet_dg.baselines.mixstyle import draw_share
from nnunet_dg.mechanisms.feature_style import Draw, FeatureStyle, Partner
from nnunet_dg.method import Paper, encoder_stages, flag, number
from nnunet_dg.tensors import wide

QUANTILES = 1024  # number of values per channel of an earlier sample; all voxels of a 3-D patch would take gigabytes


def resampled(ordered: Tensor, number: int) -> Tensor:
    """Sorted values ``(B, A, N)`` as ``number`` sorted values, by linear interpolation between neighboring ranks.

    The first and the last value stay the same. They are returned as they are if N is ``number``.

    >>> resampled(torch.tensor([[[0.0, 1.0, 4.0]]]), 5)
    tensor([[[0.0000, 0.5000, 1.0000, 2.5000, 4.0000]]])
    """
    if ordered.shape[2] == number:
        return ordered
    return F.interpolate(ordered, number, mode="linear", align_corners=True)


def matched(feature: Tensor, order: Tensor, values: Tensor, share: Tensor) -> Tensor:
    """EFDMix: ``share * own + (1 - share) * other``, where the other value has the same rank in its channel.

    The gradient with respect to the feature is 1: the difference that is added is a constant.

    Args:
        feature: Feature map, ``(B, A, *spatial)``.
        order: Voxels of each channel in the order of their values, ``(B, A, voxels)``.
        values: Sorted values of the partner, ``(B, A, voxels)``.
        share: Share of a sample's own values, ``(B, 1)``, in [0, 1].

    >>> x = torch.tensor([[[3.0, 1.0, 2.0]]])
    >>> matched(x, x.argsort(2), torch.tensor([[[10.0, 20.0, 30.0]]]), torch.tensor([[0.0]]))
    tensor([[[30., 10., 20.]]])
    """
    own = wide(feature.detach()).flatten(2)
    difference = torch.zeros_like(own).scatter(2, order, values) - own
    return (wide(feature) + ((1 - share[..., None]) * difference).reshape(feature.shape)).to(feature.dtype)


@dataclass(frozen=True)
class EFDM(FeatureStyle):
    """EFDMix: in training, features of the first encoder stages get the value distribution of another sample in part.

    Y. Zhang, M. Li, R. Li, K. Jia, L. Zhang, Exact Feature Distribution Matching for Arbitrary Style Transfer and
    Domain Generalization, CVPR 2022, https://arxiv.org/abs/2203.07740. All moments of a channel are matched, not only
    mean and deviation. The voxels of a channel are sorted, equal values in the order of their positions; a voxel is
    mixed with the partner's value of the same rank. The partner's values are constants for the gradient, unlike in the
    reference implementation, where it flows into unrelated voxels of the partner. In a batch of one sample, the partner
    is an earlier sample, of which 1024 quantiles per channel are kept. A compiled network sorts in every pass, also if
    a stage does not act.

    Attributes:
        stages: Encoder stages whose features are changed, numbered from 0 (full resolution). The paper changes the
            first two or three; here the first is left out, since in 3-D sorting at full resolution can take several
            gigabytes.
        alpha: Both parameters of the Beta distribution from which each sample's share of its own values is drawn
            (EFDMix); null: the share is 0 (EFDM).
        other_domains: Whether partners come from other domains, according to ``domains.json``. Without this file, or
            if all samples of the batch are from one domain, partners are any other samples.
    """

    key: ClassVar[str] = "efdm"
    paper: ClassVar[Paper] = Paper(
        "Exact Feature Distribution Matching for Arbitrary Style Transfer and Domain Generalization",
        "Yabin Zhang, Minghan Li, Ruihuang Li, Kui Jia, Lei Zhang",
        "IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)",
        2022,
        "https://arxiv.org/abs/2203.07740",
    )

    stages: tuple[int, ...] = encoder_stages(1, 2)
    alpha: float | None = number(0.1, above=0, high=1e3, null=True)
    other_domains: bool = flag(True)

    def draw(self, samples: int, width: int) -> Draw:
        """Each sample's share of its own values, ``(B, 1)``."""
        return (torch.zeros(samples, 1) if self.alpha is None else draw_share(samples, self.alpha),)

    def styled(self, feature: Tensor, draw: Draw, partner: Partner) -> Tensor:
        """The features with mixed values, ``(B, A, *spatial)``."""
        own, order = wide(feature.detach()).flatten(2).sort(dim=2, stable=True)
        values = partner(own if len(own) > 1 else resampled(own, QUANTILES))
        return matched(feature, order, resampled(values, own.shape[2]), *draw)

    def values_kept(self) -> int:
        """Quantiles of a channel."""
        return QUANTILES

    def across_domains(self) -> bool:
        """Whether partners are of other domains, where they are known."""
        return self.other_domains
