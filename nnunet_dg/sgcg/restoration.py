"""Domain-specific restoration of the original image from the encoder's features of its amplitude-mixed twin.

Zhou, Qi, Shi: Generalizable Medical Image Segmentation via Random Amplitude Mixup and Domain-Specific Image Restoration
(RAM-DSIR), ECCV 2022, https://arxiv.org/abs/2208.03901.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from nnunet_dg.group_norm import batch_norm_of_groups
from nnunet_dg.tensors import minmax, wide

EPSILON = 1e-5  # added to variances, as in PyTorch's batch norm


class DomainBatchNorm(nn.Module):
    """Batch norm with separate statistics and a separate affine map for each domain. It is used in training only.

    ``(B, C, *spatial)`` and the domain of each sample, ``(B,)`` integers -> the same shape. There are no running
    statistics, because the decoder is not used at inference. The affine maps of all domains are a single parameter, so
    that it has a gradient in every step. The statistics of a domain are those of its samples in the batch, even of a
    single one.

    Args:
        num_channels: Number of channels, C.
        num_domains: Number of domains.
    """

    def __init__(self, num_channels: int, num_domains: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_domains, num_channels))
        self.bias = nn.Parameter(torch.zeros(num_domains, num_channels))

    def forward(self, x: Tensor, domains: Tensor) -> Tensor:
        if len(self.weight) == 1:
            normalized = torch.batch_norm(x, self.weight[0], self.bias[0], None, None, True, 0.0, EPSILON, True)
            return normalized.to(x.dtype)
        with torch.autocast(x.device.type, enabled=False):  # on a GPU it would make a copy in float32
            return batch_norm_of_groups(x, self.weight[domains], self.bias[domains], domains, EPSILON)[0]


class RestorationDecoder(nn.Module):
    """Decoder from the bottleneck to the image.

    Each stage is a convolution, `DomainBatchNorm`, a leaky ReLU and upsampling. A 1x1 convolution and tanh follow:
    ``(B, features_per_stage[-1], *bottleneck)`` and the domains ``(B,)`` -> ``(B, image_channels, *spatial)``, in
    [-1, 1]. Convolving before upsampling costs a quarter (2-D) or an eighth (3-D) of the reverse order.

    Args:
        features_per_stage: Number of channels of each encoder stage, from the first to the bottleneck.
        strides: Strides of each encoder stage, one number per axis; the first is the stem's.
        image_channels: Number of channels of the image.
        num_domains: Number of domains.
    """

    def __init__(
        self,
        features_per_stage: Sequence[int],
        strides: Sequence[Sequence[int]],
        image_channels: int,
        num_domains: int,
    ) -> None:
        super().__init__()
        dims = len(strides[0])
        convolution = nn.Conv2d if dims == 2 else nn.Conv3d
        self.mode = "bilinear" if dims == 2 else "trilinear"
        widths = list(reversed(features_per_stage))
        self.strides = [tuple(float(s) for s in stride) for stride in reversed(strides)]
        targets = [*widths[1:], widths[-1]]  # the last stage undoes the stem's stride
        self.convolutions = nn.ModuleList(
            convolution(n_in, n_out, 3, padding=1) for n_in, n_out in zip(widths, targets, strict=True)
        )
        self.norms = nn.ModuleList(DomainBatchNorm(width, num_domains) for width in targets)
        self.to_image = convolution(widths[-1], image_channels, 1)

    def forward(self, bottleneck: Tensor, domains: Tensor) -> Tensor:
        x = bottleneck
        for stride, convolution, norm in zip(self.strides, self.convolutions, self.norms, strict=True):
            x = F.leaky_relu(norm(convolution(x), domains), 0.01, inplace=True)
            if any(s > 1 for s in stride):
                x = F.interpolate(x, scale_factor=stride, mode=self.mode)
        return self.to_image(x).tanh()


def restoration_loss(restored: Tensor, image: Tensor) -> Tensor:
    """Mean squared difference to the image, which is scaled to [-1, 1], the range of tanh, per sample and channel.

    >>> restoration_loss(torch.tensor([[[-1.0, 1.0]]]), torch.tensor([[[5.0, 9.0]]]))  # restored
    tensor(0.)
    """
    return F.mse_loss(wide(restored), 2 * minmax(image) - 1)
