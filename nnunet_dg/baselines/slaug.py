"""SLAug: intensities are changed in the whole image and in each class; where the loss is sensitive, the whole counts.

Z. Su, K. Yao, X. Yang, K. Huang, Q. Wang, J. Sun, Rethinking Data Augmentation for Single-source Domain Generalization
in Medical Image Segmentation, AAAI 2023, https://arxiv.org/abs/2211.14805.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from nnunet_dg.mechanisms.bezier import bezier_curve, control_points, look_up_groups
from nnunet_dg.mechanisms.bspline import spline_field
from nnunet_dg.method import Batch, Method, Paper, Step, Student, TrainingModule, number, probability
from nnunet_dg.tensors import minmax, per_channel, sortable, to_device, wide

FLOOR = 0.01  # local maps do not change voxels that are at most this much above the darkest value, of a range of 1
ROUNDING = 1e-5  # differences that are smaller, relative to the largest value, are rounding errors
FIFTHS = 5  # the location leaves at least one in five values above 0, and one in five below 1
POOL = {2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}


class Maps(NamedTuple):
    """Random maps of intensities, on the CPU.

    Attributes:
        inner: Inner control points of the Bezier curves, see `bezier_map`, ``(maps, 2, 2)``.
        scale: Factors, ``(maps,)``.
        location: Offsets, ``(maps,)``, before their limits.
    """

    inner: Tensor
    scale: Tensor
    location: Tensor


def draw_maps(number: int) -> Maps:
    """Random maps.

    The first inner control point is uniform in the square between the ends, the second one in the square between the
    lower end and the first. The scale is from N(1, 0.1), clipped to [0.9, 1.1], the location from N(0, 0.5).

    >>> draw_maps(3).inner.shape
    torch.Size([3, 2, 2])
    """
    upper = torch.rand(number, 2)
    inner = torch.stack([upper * torch.rand(number, 2), upper], 1)
    return Maps(inner, (1 + 0.1 * torch.randn(number)).clamp(0.9, 1.1), 0.5 * torch.randn(number))


def map_groups(values: Tensor, group: Tensor, maps: Maps, inverted: bool = False) -> Tensor:
    """``scale * curve(values) + location``, clipped to [0, 1], with a separate map for each group of values.

    The curve is the Bezier map of `bezier_map`, within the range of the group. The location is first limited to the
    range from minus the 20th percentile to one minus the 80th percentile of the curve's values. All groups are mapped
    at once, after one sort, so that a GPU is not waited for.

    Args:
        values: Values in [0, 1], ``(N,)``, float32.
        group: Group of each value, ``(N,)``, int64, from 0 to the number of maps - 1. A group may be empty.
        maps: One map for each group.
        inverted: Whether the curves are decreasing; default False.

    >>> straight = torch.tensor([[[1 / 3, 1 / 3], [2 / 3, 2 / 3]]])
    >>> maps = Maps(straight, scale=torch.tensor([0.9]), location=torch.tensor([0.4]))
    >>> map_groups(torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0]), torch.zeros(5, dtype=torch.long), maps)
    tensor([0.2000, 0.4250, 0.6500, 0.8750, 1.0000])
    """
    keys, order = sortable(values, group).sort()
    every = torch.arange(len(maps.scale), device=values.device)
    start = torch.searchsorted(keys, torch.arange(len(every) + 1, device=values.device) << 32)
    last = start.diff() - 1  # rank of the largest value of each group

    def at(rank: Tensor) -> Tensor:  # the value of a rank in each group
        return values[order[(start[:-1] + rank).clamp(0, len(order) - 1)]]

    low, span = at(torch.zeros_like(last)), at(last) - at(torch.zeros_like(last))
    x, y = bezier_curve(control_points(maps.inner))
    x, y, scale, location = (
        to_device(part.to(values.dtype), values.device)
        for part in (x, y.flip(1) if inverted else y, maps.scale, maps.location)
    )

    def curve(values: Tensor, group: Tensor) -> Tensor:
        fractions = (values - low[group]) / torch.where(span > 0, span, 1)[group]
        return low[group] + span[group] * look_up_groups(fractions.clamp(0, 1), group, x, y)

    def percentile(fifths: int) -> Tensor:  # of the curve's values, linear between ranks
        before = fifths * last // FIFTHS
        ranks = (before, torch.minimum(before + 1, last))
        below, above = (curve(at(last - rank if inverted else rank), every) for rank in ranks)
        return below + (fifths * last % FIFTHS) / FIFTHS * (above - below)

    location = torch.minimum(torch.maximum(location, -percentile(1)), 1 - percentile(FIFTHS - 1))
    return (scale[group] * curve(values, group) + location[group]).clamp(0, 1)


@torch.no_grad()
def global_augmentation(images: Tensor) -> Tensor:
    """GLA: one increasing random map for each sample and channel.

    Args:
        images: Images in [0, 1], ``(B, C, *spatial)``, float32.

    >>> global_augmentation(torch.rand(2, 1, 4, 4)).shape
    torch.Size([2, 1, 4, 4])
    """
    maps = images.shape[0] * images.shape[1]
    group = per_channel(torch.arange(maps, device=images.device).reshape(images.shape[:2]), images).expand_as(images)
    return map_groups(images.flatten(), group.flatten(), draw_maps(maps)).reshape(images.shape)


@torch.no_grad()
def local_augmentation(images: Tensor, classes: Tensor, num_classes: int, p: float = 0.5) -> Tensor:
    """LLA: in each sample and channel, one decreasing random map for each class.

    Args:
        images: Images in [0, 1], ``(B, C, *spatial)``, float32. Voxels of at most 0.01 keep their value.
        classes: Class of each voxel, ``(B, *spatial)``, int64. Class 0, the background, is always mapped.
        num_classes: Number of classes.
        p: Probability that another class is mapped in a sample; otherwise it keeps its values.

    >>> images, classes = torch.tensor([[[0.0, 0.4, 0.6, 1.0]]]), torch.tensor([[0, 0, 0, 1]])
    >>> local_augmentation(images, classes, num_classes=2, p=0.0)[..., [0, 3]]
    tensor([[[0., 1.]]])
    """
    samples, channels = images.shape[:2]
    mapped = torch.rand(samples, num_classes) < p
    mapped[:, 0] = True
    channel = torch.arange(samples * channels, device=images.device).reshape(samples, channels)
    group = per_channel(channel, images) * num_classes + classes[:, None]
    changed = map_groups(images.flatten(), group.flatten(), draw_maps(samples * channels * num_classes), inverted=True)
    of_class = to_device(mapped[:, None].expand(-1, channels, -1).flatten(), images.device)
    return torch.where(of_class[group] & (images > FLOOR), changed.reshape(images.shape), images)


@torch.no_grad()
def saliency(gradient: Tensor, grid: int = 3) -> Tensor:
    """Where the loss is sensitive to the image, as a smooth map in [0, 1] for each sample.

    The root mean square of the gradient over channels is averaged over a coarse grid, upsampled by quadratic B-splines
    and scaled to [0, 1]. If it is constant, it becomes 0. Values that are not finite, as in a step that mixed precision
    skips, count as 0. It is computed in at least float32.

    Args:
        gradient: Gradient of the loss with respect to the images, ``(B, C, *spatial)``.
        grid: Number of cells along each axis; default 3.

    Returns:
        ``(B, 1, *spatial)``, without gradient.

    >>> saliency(torch.tensor([[[[4.0, 0.0], [1.0, -3.0]]]]), grid=2)
    tensor([[[[1.0000, 0.0000],
              [0.2500, 0.7500]]]])
    """
    shape = gradient.shape[2:]
    with torch.autocast(gradient.device.type, enabled=False):
        strength = wide(gradient).square().mean(1, keepdim=True).sqrt().nan_to_num(0, 0, 0)
        cells = F.pad(POOL[len(shape)](strength, grid), [1, 1] * len(shape), mode="replicate")
        spacing = [math.ceil(size / grid) for size in shape]
        field = spline_field(cells[:, 0], spacing, shape)[:, None]
        low, high = (limit(field.flatten(1), 1) for limit in (torch.amin, torch.amax))
        constant = per_channel((high - low <= ROUNDING * high)[:, None], field)
        return minmax(field).masked_fill(constant, 0)


@dataclass(frozen=True)
class SLAug(Method):
    """SLAug: one version of an image is mapped as a whole, one is fused from it and a version mapped class by class.

    Z. Su, K. Yao, X. Yang, K. Huang, Q. Wang, J. Sun, Rethinking Data Augmentation for Single-source Domain
    Generalization in Medical Image Segmentation, AAAI 2023, https://arxiv.org/abs/2211.14805. Where the loss of the
    first version is sensitive to the image, the fused version equals the first one; elsewhere it is the local one. Both
    are trained with nnU-Net's loss. The maps act on each channel of a patch, scaled to [0, 1], and the result is scaled
    back to the range of the patch. Classes are combinations of regions if the dataset has regions; ignored voxels are
    mapped as background. Voxels outside a mask and padding stay zero.

    The sensitivity needs a forward pass of its own, since compiled networks free the buffers of a pass with its first
    gradient. It does not change the running statistics of batch norm. Together, a step has three forward passes and
    about two and a half backward passes.

    Attributes:
        p: Probability that a class other than the background is mapped in the local version.
        grid: Number of cells along each axis in which the sensitivity is averaged.
    """

    key: ClassVar[str] = "slaug"
    slot: ClassVar[str] = "images"
    paper: ClassVar[Paper] = Paper(
        "Rethinking Data Augmentation for Single-source Domain Generalization in Medical Image Segmentation",
        "Zixian Su, Kai Yao, Xi Yang, Kaizhu Huang, Qiufeng Wang, Jie Sun",
        "AAAI Conference on Artificial Intelligence",
        2023,
        "https://arxiv.org/abs/2211.14805",
    )

    p: float = probability(0.5)
    grid: int = number(3, 1, 64, whole=True)

    def training_module(self, student: Student) -> SLAugTraining:
        """The training module, which makes both versions and computes their losses."""
        return SLAugTraining(self, student)


class SLAugTraining(TrainingModule):
    """Makes the global and the fused version of every batch, and computes the loss of both.

    In a trainer with several methods, list SLAug after those that augment the batch: later ones would change only the
    global version.

    Args:
        settings: Settings, see `SLAug`.
        student: Network in training.
    """

    def __init__(self, settings: SLAug, student: Student) -> None:
        super().__init__()
        self.settings, self.student = settings, student
        self.local = torch.zeros(0)  # the locally augmented images of the step

    def augment(self, batch: Batch) -> Batch:
        """The batch with globally augmented images. The locally augmented ones are kept for `losses`."""
        images, outside = batch.images, self.student.outside
        classes = self.student.classes(batch.target).clamp(min=0)  # ignored voxels are background
        visible = wide(outside.to_minimum(images))
        axes = tuple(range(2, images.ndim))
        low, high = visible.amin(axes, keepdim=True), visible.amax(axes, keepdim=True)
        unit, hidden = minmax(visible), outside.channels(images)

        def scaled_back(changed: Tensor) -> Tensor:
            return (low + (high - low) * changed).to(images.dtype).masked_fill(hidden, 0)

        self.local = scaled_back(local_augmentation(unit, classes, self.student.num_classes, self.settings.p))
        return batch.with_images(scaled_back(global_augmentation(unit)))

    def weights(self, epoch: int) -> dict[str, float]:
        """The losses of the global and of the fused version."""
        return {"segmentation": 1.0, "segmentation_fused": 1.0}

    def losses(self, step: Step) -> dict[str, Tensor]:
        """nnU-Net's loss of the global and of the fused version."""
        local, self.local = self.local, torch.zeros(0)
        fused = step.forward(self._fused(step, local))
        return {"segmentation": step.segmentation(step.output), "segmentation_fused": step.segmentation(fused.output)}

    def _fused(self, step: Step, local: Tensor) -> Tensor:
        """The data of the fused version: the global one where a first pass is sensitive to it, else the local one."""
        batch = step.batch
        images = batch.images.detach().requires_grad_()
        with self.student.aside():
            first = step.forward(batch.with_images(images).data)
            (gradient,) = torch.autograd.grad(self.student.scaled(step.segmentation(first.output)), images)
        share = saliency(gradient, self.settings.grid).to(local.dtype)
        return batch.with_images(share * batch.images + (1 - share) * local).data
