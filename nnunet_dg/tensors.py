"""Operations on image and feature tensors that several methods share.

They compute in at least float32: narrower tensors are converted to float32, float64 stays float64.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

EPS = 1e-5
Statistics = tuple[Tensor, Tensor]  # mean and deviation, (B, A) each


def wide(x: Tensor) -> Tensor:
    """The tensor in at least float32: narrower types are converted to float32, float64 stays float64.

    >>> wide(torch.ones(1, dtype=torch.float16)).dtype, wide(torch.ones(1, dtype=torch.float64)).dtype
    (torch.float32, torch.float64)
    """
    return x.to(torch.promote_types(x.dtype, torch.float32))


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """A small tensor of the CPU on the device, without waiting for a GPU to finish its work.

    It is copied from pinned memory. A copy from other memory, or ``torch.tensor(..., device=device)``, makes the host
    wait. Change the dtype before. A tensor that is on the device is returned as it is.

    >>> to_device(torch.tensor([1, 2]), torch.device("cpu"))
    tensor([1, 2])
    """
    if device.type == "cuda" and x.device.type == "cpu":
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)


def sortable(values: Tensor, group: Tensor) -> Tensor:
    """Integers with the order of the groups and, within a group, of the values: one sort of them sorts each group.

    Args:
        values: Values that are not negative. Other dtypes than float32 are rounded to it.
        group: Group of each value, int64, not negative, in a shape that broadcasts to that of the values.

    Returns:
        int64, in the shape of the values. Their group is ``result >> 32``.

    >>> sortable(torch.tensor([0.5, 0.25, 0.0]), torch.tensor([0, 0, 1])).argsort()
    tensor([1, 0, 2])
    """
    return (group << 32) + (values.float() + 0.0).view(
        torch.int32
    )  # the bits of such floats are ordered; -0.0 becomes 0.0


def minmax(x: Tensor) -> Tensor:
    """Each sample and channel of ``(B, C, *spatial)`` scaled to [0, 1]; constant channels become zero.

    The result has at least float32.

    >>> minmax(torch.tensor([[[2.0, 4.0, 3.0]]]))
    tensor([[[0.0000, 1.0000, 0.5000]]])
    """
    x = wide(x)
    axes = tuple(range(2, x.ndim))
    low = x.amin(axes, keepdim=True)
    span = x.amax(axes, keepdim=True) - low
    return (x - low) / torch.where(span > 0, span, 1)


def zscore(x: Tensor) -> Tensor:
    """Each sample and channel of ``(B, C, *spatial)`` normalized to zero mean and unit variance, as nnU-Net does.

    The result has at least float32. Constant channels become zero.

    >>> zscore(torch.tensor([[[2.0, 4.0]]]))
    tensor([[[-1.,  1.]]])
    """
    x = wide(x)
    axes = tuple(range(2, x.ndim))
    deviation = x.std(axes, correction=0, keepdim=True)
    return (x - x.mean(axes, keepdim=True)) / torch.where(deviation > 0, deviation, 1)


def instance_norm(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Each sample and channel of ``(B, C, *spatial)`` normalized to zero mean and unit variance.

    It is computed in at least float32 and returned in the dtype of ``x``.

    >>> instance_norm(torch.tensor([[[2.0, 4.0]]])).round()
    tensor([[[-1.,  1.]]])
    """
    if is_channels_last(x) and x.device.type == "cpu":
        return _instance_norm_of_channels_last(wide(x), eps).to(x.dtype)
    return F.instance_norm(wide(x), eps=eps).to(x.dtype)


def _instance_norm_of_channels_last(x: Tensor, eps: float) -> Tensor:
    """Instance norm that keeps the memory format, which PyTorch's changes first.

    Means are taken in two stages: in this format, PyTorch adds the values of a channel one after the other, so that
    rounding errors grow. `torch.var_mean` is more than twice as slow.
    """
    centered = x - x.mean((3, 4), keepdim=True).mean(2, keepdim=True)
    variance = centered.square().mean((3, 4), keepdim=True).mean(2, keepdim=True)
    scale = (variance + eps).rsqrt()
    return centered * scale if centered.requires_grad else centered.mul_(scale)


def channels_last(x: Tensor) -> Tensor:
    """The tensor ``(B, C, X, Y, Z)`` in PyTorch's memory format channels_last_3d.

    `torch.Tensor.contiguous` leaves the strides of a single channel, by which convolutions choose a format, as they
    are.

    >>> channels_last(torch.zeros(1, 1, 4, 5, 6)).stride()
    (120, 1, 30, 6, 1)
    """
    if x.shape[1] > 1:
        return x.contiguous(memory_format=torch.channels_last_3d)
    return x.contiguous().view(x.shape[0], *x.shape[2:], 1).movedim(-1, 1)


def is_channels_last(x: Tensor) -> bool:
    """Whether a tensor is in PyTorch's memory format channels_last_3d, and not in the usual one as well.

    >>> x = torch.zeros(1, 2, 3, 3, 3)
    >>> is_channels_last(x), is_channels_last(x.to(memory_format=torch.channels_last_3d))
    (False, True)
    """
    return x.ndim == 5 and x.is_contiguous(memory_format=torch.channels_last_3d) and not x.is_contiguous()


def unit_norm(x: Tensor, eps: float = 1e-8) -> Tensor:
    """Each voxel of ``(B, C, *spatial)`` normalized to unit Euclidean norm over its channels.

    It is computed in at least float32 and returned in the dtype of ``x``. A voxel whose channels are all zero stays
    zero.

    >>> unit_norm(torch.tensor([[[3.0], [4.0]]]))
    tensor([[[0.6000],
             [0.8000]]])
    """
    return F.normalize(wide(x), dim=1, eps=eps).to(x.dtype)


def per_channel(values: Tensor, x: Tensor) -> Tensor:
    """Values ``(B, A)`` reshaped to broadcast over the spatial axes of ``x``, ``(B, A, *spatial)``.

    >>> per_channel(torch.ones(2, 3), torch.ones(2, 3, 8, 8)).shape
    torch.Size([2, 3, 1, 1])
    """
    return values.reshape(*values.shape[:2], *[1] * (x.ndim - 2))


def statistics(feature: Tensor, eps: float = EPS, correction: int = 0) -> Statistics:
    """Mean and ``sqrt(variance + eps)`` over the spatial axes, in at least float32.

    Args:
        feature: Feature map, ``(B, A, *spatial)``.
        eps: Number that is added to the variance.
        correction: 0 for the biased variance, 1 for the unbiased one.

    Returns:
        Mean and deviation, each ``(B, A)``.

    >>> mean, std = statistics(torch.tensor([[[1.0, 3.0]]]))
    >>> mean.item(), round(std.item(), 4)
    (2.0, 1.0)
    """
    axes = tuple(range(2, feature.ndim))
    variance, mean = torch.var_mean(wide(feature), axes, correction=correction)
    return mean, (variance + eps).sqrt()


def moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean and biased variance of each sample and channel, without a copy of the tensor in a wider dtype.

    Args:
        x: ``(B, C, *spatial)``.

    Returns:
        ``x`` less a rough mean, in the dtype of ``x``; that rough mean, ``(B, C)``, detached; mean and variance of
        ``x``, each ``(B, C)`` in at least float32. Variances are computed from the first, since squares of values that
        are far from zero have large rounding errors.

    >>> [y.tolist() for y in moments(torch.tensor([[[0.0, 0.0, 8.0, 8.0]]]))]
    [[[[-4.0, -4.0, 4.0, 4.0]]], [[4.0]], [[4.0]], [[16.0]]]
    """
    axes, dtype = tuple(range(2, x.ndim)), torch.promote_types(x.dtype, torch.float32)
    rough = x.detach().mean(axes, dtype=dtype).to(x.dtype)
    centered = x - per_channel(rough, x)
    mean = centered.mean(axes, dtype=dtype)
    lines = torch.linalg.vector_norm(centered, 2, -1, keepdim=True, dtype=dtype)  # short sums: a long one loses digits
    squares = lines.square().flatten(2).mean(2) / x.shape[-1]
    return centered, rough, mean + rough, squares - mean.square()


def modulate(
    feature: Tensor, mean: Tensor, std: Tensor, detached: bool = False, own: Statistics | None = None
) -> Tensor:
    """The feature with the given mean and deviation per sample and channel.

    This is adaptive instance normalization: X. Huang, S. Belongie, Arbitrary Style Transfer in Real-time with Adaptive
    Instance Normalization, ICCV 2017, https://arxiv.org/abs/1703.06868, eq. 8. It is eq. 3 of TinyMIG (C. Liu et al.,
    TinyMIG: Transferring Generalization from Vision Foundation Models to Single-Domain Medical Imaging, ICML 2025,
    https://proceedings.mlr.press/v267). It is computed in at least float32 and returned in the dtype of the feature.
    The gradient flows into the feature, and into the given statistics if they require it.

    Args:
        feature: Feature map, ``(B, A, *spatial)``.
        mean: New mean, ``(B, A)``.
        std: New deviation, ``(B, A)``, as `statistics` computes it.
        detached: Whether the feature's own statistics are constants for the gradient, as in MixStyle; default False:
            the gradient flows through them as well.
        own: The feature's own mean and deviation; None: those of `statistics` with its defaults.

    >>> modulate(torch.tensor([[[1.0, 3.0]]]), torch.tensor([[10.0]]), torch.tensor([[2.0]])).round()
    tensor([[[ 8., 12.]]])
    """
    if own is None and not detached:
        return _normalized(feature, mean, std)
    own_mean, own_std = own or statistics(feature.detach() if detached else feature)
    own_mean, own_std, mean, std = (per_channel(s, feature) for s in (own_mean, own_std, mean, std))
    return (std * (wide(feature) - own_mean) / own_std + mean).to(feature.dtype)


def _normalized(feature: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """`modulate` by PyTorch's batch norm, as instance norm uses it: one pass over the feature instead of eight.

    Spatial axes are joined, since PyTorch's gradient is wrong on CPUs for a single sample of 4 or 5 axes whose gradient
    has another memory format than the feature.
    """
    channels = feature.reshape(1, feature.shape[0] * feature.shape[1], -1)
    weight, bias = (s.expand(feature.shape[:2]).reshape(-1).to(wide(feature[:0]).dtype) for s in (std, mean))
    return torch.batch_norm(channels, weight, bias, None, None, True, 0.0, EPS, True).reshape(feature.shape)


def symmetric_kl(logits_a: Tensor, logits_b: Tensor, regions: bool = False) -> Tensor:
    """``KL(a || b) + KL(b || a)`` of the class probabilities, summed over classes, averaged over voxels and samples.

    It is computed in at least float32, also under autocast. The gradient flows into both.

    Args:
        logits_a: First logits, ``(B, K, *spatial)``.
        logits_b: Second logits, the same shape.
        regions: Whether the channels are regions that may overlap, so that each is a separate Bernoulli variable;
            default False: the channels are exclusive classes.

    >>> symmetric_kl(torch.tensor([[[0.0], [0.0]]]), torch.tensor([[[0.0], [2.0]]]))
    tensor(0.7616)
    """
    with torch.autocast(logits_a.device.type, enabled=False):
        a, b = wide(logits_a), wide(logits_b)
        if regions:
            return ((a.sigmoid() - b.sigmoid()) * (a - b)).sum(1).mean()
        a, b = a.log_softmax(1), b.log_softmax(1)
        return ((a.exp() - b.exp()) * (a - b)).sum(1).mean()
