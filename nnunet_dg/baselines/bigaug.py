"""BigAug: nine transforms of quality, appearance and shape in place of nnU-Net's augmentation.

L. Zhang, X. Wang, D. Yang, T. Sanford, S. Harmon, B. Turkbey, B. J. Wood, H. Roth, A. Myronenko, D. Xu, Z. Xu,
Generalizing Deep Learning for Medical Image Segmentation to Unseen Domains via Deep Stacked Transformation, IEEE
Transactions on Medical Imaging 39(7), 2020, https://pmc.ncbi.nlm.nih.gov/articles/PMC7393676.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform, ImageOnlyTransform
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import blur_dimension
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.pseudo2d import Convert2DTo3DTransform, Convert3DTo2DTransform
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from torch import Tensor

from nnunet_dg.method import Method, Paper, number, probability
from nnunet_dg.tensors import per_channel

BLUR = (0.25, 1.5)  # in voxels, also of both blurs of the sharpening
SHARPENING = (10.0, 30.0)
LEAST_NOISE = 0.1
GAMMA = (0.5, 4.5)
SHIFT = SCALE = 0.1
ROTATION = math.radians(20)
ZOOM = (0.4, 1.6)
SMOOTHNESS = (10.0, 13.0)  # deviation of the Gaussian that smooths the displacements, in voxels
DISPLACEMENT = 7.0  # the largest one of the reference's 3-D field, whose magnitude of up to 1000 is before smoothing
TRUNCATE = 6.0  # width of a Gaussian kernel, in deviations


def blurred(image: Tensor, sigma: float) -> Tensor:
    """The image blurred by a Gaussian along all axes, with mirrored borders.

    Args:
        image: Image, ``(C, *spatial)``.
        sigma: Deviation of the Gaussian, in voxels.

    >>> blurred(torch.ones(1, 4, 1), sigma=1.0).flatten()
    tensor([1.0000, 1.0000, 1.0000, 1.0000])
    """
    for axis, size in enumerate(image.shape[1:]):
        widest = (2 * size - 1.5) / sigma  # a mirrored border is narrower than the image
        image = blur_dimension(image, sigma, axis, truncate=min(TRUNCATE, widest))
    return image


def sharpened(once: Tensor, twice: Tensor, strength: float) -> Tensor:
    """``once + strength * (once - twice)``: an image is blurred, and the details that a second blur removes are added.

    Args:
        once: Image after one blur.
        twice: Image after two blurs.
        strength: Factor of the details.

    >>> sharpened(torch.tensor(2.0), torch.tensor(1.5), strength=10)
    tensor(7.)
    """
    return once + strength * (once - twice)


def scaled_and_shifted(image: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """``scale * image + shift``.

    Args:
        image: Image, ``(C, *spatial)``.
        scale: Factor of each channel, ``(C,)``.
        shift: Offset of each channel, ``(C,)``, in deviations of the channel.

    >>> scaled_and_shifted(torch.tensor([[1.0, 3.0]]), torch.tensor([1.1]), torch.tensor([-0.1]))
    tensor([[1.0000, 3.2000]])
    """
    scale, shift = (per_channel(value[None], image[None])[0] for value in (scale, shift * deviations(image)))
    return scale * image + shift


def deviations(image: Tensor) -> Tensor:
    """The deviation of each channel of ``(C, *spatial)``, ``(C,)``.

    >>> deviations(torch.tensor([[1.0, 3.0]]))
    tensor([1.])
    """
    return image.flatten(1).std(1, correction=0)


class Blur(ImageOnlyTransform):
    """Blur each channel by a Gaussian with a deviation from U(0.25, 1.5)."""

    def _apply_to_image(self, img: Tensor, **params: Any) -> Tensor:
        return torch.cat([blurred(channel[None], np.random.uniform(*BLUR)) for channel in img])


class Sharpen(ImageOnlyTransform):
    """Sharpen each channel, see `sharpened`, with deviations from U(0.25, 1.5) and a strength from U(10, 30)."""

    def _apply_to_image(self, img: Tensor, **params: Any) -> Tensor:
        channels = []
        for channel in img:
            once = blurred(channel[None], np.random.uniform(*BLUR))
            twice = blurred(once, np.random.uniform(*BLUR))
            channels.append(sharpened(once, twice, np.random.uniform(*SHARPENING)))
        return torch.cat(channels)


class Noise(ImageOnlyTransform):
    """Add normal noise to each channel.

    Args:
        most: Largest deviation of the noise, in deviations of the channel. It is uniform from 0.1 on.
    """

    def __init__(self, most: float) -> None:
        super().__init__()
        self.most = most

    def _apply_to_image(self, img: Tensor, **params: Any) -> Tensor:
        strength = torch.from_numpy(np.random.uniform(LEAST_NOISE, self.most, len(img))).to(img)
        return img + per_channel((strength * deviations(img))[None], img[None])[0] * torch.randn_like(img)


class ScaleAndShift(ImageOnlyTransform):
    """Scale and shift each channel, see `scaled_and_shifted`.

    Args:
        scale: The factor is from U(1 - scale, 1 + scale).
        shift: The offset is from U(-shift, shift), in deviations of the channel.
    """

    def __init__(self, scale: float, shift: float) -> None:
        super().__init__()
        self.scale, self.shift = scale, shift

    def _apply_to_image(self, img: Tensor, **params: Any) -> Tensor:
        scale, shift = (np.random.uniform(-limit, limit, len(img)) for limit in (self.scale, self.shift))
        return scaled_and_shifted(img, torch.from_numpy(1 + scale).to(img), torch.from_numpy(shift).to(img))


def random_grid_scale(*args: Any, image: Tensor, patch_size: tuple[int, ...], **kwargs: Any) -> float:
    """One over a zoom from U(0.4, 1.6): `SpatialTransform` scales the sampling grid, not the image.

    The lowest zoom is that at which the loaded image fills the patch, if it is larger than 0.4.

    Args:
        *args: Not used.
        image: Loaded image, ``(C, *spatial)``.
        patch_size: Patch size.
        **kwargs: Not used.

    >>> 1 / 1.6 <= random_grid_scale(image=torch.zeros(1, 75, 75), patch_size=(60, 60)) <= 75 / 60
    True
    """
    lowest = max(patch / loaded for patch, loaded in zip(patch_size, image.shape[1:], strict=True))
    return 1 / np.random.uniform(max(ZOOM[0], lowest), ZOOM[1])


def random_smoothness(*args: Any, dim: int, patch_size: tuple[int, ...], **kwargs: Any) -> float:
    """The smoothness of displacements along an axis, U(10, 13) voxels, as a fraction of the patch's edge.

    Args:
        *args: Not used.
        dim: Number of the axis.
        patch_size: Patch size.
        **kwargs: Not used.

    >>> 0.1 <= random_smoothness(dim=1, patch_size=(50, 100)) <= 0.13
    True
    """
    return np.random.uniform(*SMOOTHNESS) / patch_size[dim]


def stacked_transforms(
    patch_size: tuple[int, ...], in_plane_only: bool, p: float, noise: float
) -> list[BasicTransform]:
    """The nine transforms, each applied with probability p: those of shape first, since they crop to the patch.

    Args:
        patch_size: Patch size of the network, two or three sizes.
        in_plane_only: Whether rotation, zoom and deformation leave the first axis unchanged, for anisotropic patches.
        p: Probability of each transform.
        noise: Largest deviation of the noise, in deviations of the channel.

    >>> [type(t).__name__ for t in stacked_transforms((32, 32), False, p=0.5, noise=1.0)][:2]
    ['SpatialTransform', 'RandomTransform']
    """
    changed = patch_size[1:] if in_plane_only else patch_size
    shape: list[BasicTransform] = [
        SpatialTransform(
            changed,
            patch_center_dist_from_border=0,
            random_crop=False,
            p_elastic_deform=p,
            elastic_deform_scale=random_smoothness,
            elastic_deform_magnitude=(0, DISPLACEMENT),
            p_rotation=p,
            rotation=(-ROTATION, ROTATION),
            p_scaling=p,
            scaling=partial(random_grid_scale, patch_size=changed),
            p_synchronize_scaling_across_axes=1,
            border_mode_seg="constant",
            padding_value_seg=-1,
        )
    ]
    if in_plane_only:
        shape = [Convert3DTo2DTransform(), *shape, Convert2DTo3DTransform()]
    intensity = [
        Sharpen(),
        Blur(),
        Noise(noise),
        ScaleAndShift(scale=0, shift=SHIFT),
        GammaTransform(GAMMA, p_invert_image=0, synchronize_channels=False, p_per_channel=1, p_retain_stats=0),
        ScaleAndShift(scale=SCALE, shift=SHIFT),
    ]
    return [*shape, *(RandomTransform(transform, p) for transform in intensity)]


@dataclass(frozen=True)
class BigAug(Method):
    """BigAug: nine transforms, each with probability p, replace nnU-Net's augmentation.

    L. Zhang, X. Wang, D. Yang, T. Sanford, S. Harmon, B. Turkbey, B. J. Wood, H. Roth, A. Myronenko, D. Xu, Z. Xu,
    Generalizing Deep Learning for Medical Image Segmentation to Unseen Domains via Deep Stacked Transformation, IEEE
    Transactions on Medical Imaging 39(7), 2020, https://pmc.ncbi.nlm.nih.gov/articles/PMC7393676. They are rotation,
    zoom and elastic deformation, then sharpening, blur, noise, brightness, contrast and perturbation. The paper changes
    shape last; here it comes first, since it also crops to the patch. Zoom is from U(0.4, 1.6) as in the paper, but not
    below that at which the part of the image that nnU-Net loads fills the patch, 0.85 in 2-D and about 0.6 in 3-D. The
    paper zooms whole images. Changes of shape are common to all channels.
    Those of intensities are drawn for each channel, and are relative to its deviation in the patch. Contrast is a gamma
    curve between the minimum and the maximum of the patch. The transforms run in nnU-Net's data loader, like its own
    augmentation. nnU-Net's mirroring is kept, since nnU-Net also mirrors images when it predicts.

    Attributes:
        p: Probability of each transform.
        noise: Largest deviation of the noise, in deviations of the image channel; the smallest one is 0.1.
    """

    key: ClassVar[str] = "bigaug"
    slot: ClassVar[str] = "images"
    paper: ClassVar[Paper] = Paper(
        "Generalizing Deep Learning for Medical Image Segmentation to Unseen Domains via Deep Stacked Transformation",
        "Ling Zhang, Xiaosong Wang, Dong Yang, Thomas Sanford, Stephanie Harmon, Baris Turkbey, Bradford J. Wood, "
        "Holger Roth, Andriy Myronenko, Daguang Xu, Ziyue Xu",
        "IEEE Transactions on Medical Imaging 39(7)",
        2020,
        "https://pmc.ncbi.nlm.nih.gov/articles/PMC7393676",
        "article",
    )

    p: float = probability(0.5)
    noise: float = number(1.0, LEAST_NOISE, 100)

    def augmentation(self, patch_size: tuple[int, ...], in_plane_only: bool) -> list[BasicTransform]:
        """The nine transforms."""
        return stacked_transforms(patch_size, in_plane_only, self.p, self.noise)
