"""The augmentation of the DropGen paper (arXiv 2604.02564, appendix C.2) in nnU-Net's transforms.

The paper's pipeline is MONAI's. Where batchgeneratorsv2 has the transform it is used; bias field, Gibbs noise and an
affine with shear are written here. Every transform is applied with probability 0.33, to images min-maxed to [0, 1].
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform, ImageOnlyTransform
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.noise.sharpen import SharpeningTransform
from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.rot90 import Rot90Transform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.pseudo2d import Convert2DTo3DTransform, Convert3DTo2DTransform
from batchgeneratorsv2.transforms.utils.random import OneOfTransform, RandomTransform
from numpy.polynomial import legendre
from torch import Tensor

from nnunet_dg.extractors.base import minmax

P = 0.33


def paper_augmentation(
    patch_size: tuple[int, ...], mirror_axes: tuple[int, ...] | None, in_plane_only: bool
) -> list[BasicTransform]:
    """The paper's transforms in its order, but for the affine, which crops to the patch and so comes first.

    Args:
        patch_size: of the network.
        mirror_axes: axes along which flips, and 90-degree rotations among axes of equal size, are allowed; None or
            empty: neither, as the paper does where left and right differ.
        in_plane_only: nnU-Net's dummy 2-D augmentation for anisotropic patches: the affine leaves the first axis alone.
    """
    spatial: list[BasicTransform] = [AffineCrop(patch_size[1:] if in_plane_only else patch_size)]
    if in_plane_only:
        spatial = [Convert3DTo2DTransform(), *spatial, Convert2DTo3DTransform()]
    if mirror_axes:
        # a MirrorTransform flips its axis every second time
        spatial.append(RandomTransform(OneOfTransform([MirrorTransform((axis,)) for axis in mirror_axes]), 2 * P))
        if (axes := _axes_of_equal_size(patch_size, mirror_axes)) is not None:
            spatial.append(RandomTransform(Rot90Transform(1, (1, 2, 3), axes), P))
    intensity: list[BasicTransform] = [
        SimulateLowResolutionTransform((0.25, 1), False, True, (0,) if in_plane_only else None),
        GaussianNoiseTransform((0, 0.1)),
        BiasFieldTransform((0, 0.1)),
        GibbsNoiseTransform((0, 0.33)),
        GammaTransform((0.5, 4.5), p_invert_image=0, synchronize_channels=False, p_per_channel=1, p_retain_stats=0),
        GaussianBlurTransform((0.001, 0.1)),  # as in the paper, though below 0.1 voxel a blur changes next to nothing
        SharpeningTransform((1.25, 3.75)),  # the Laplacian of MONAI's default (alpha 10 to 30, sigma 0.5)
    ]
    return [*spatial, MinMaxTransform(), *(RandomTransform(t, P) for t in intensity), MinMaxTransform()]


class MinMaxTransform(ImageOnlyTransform):
    """Each channel of the image ``(C, *spatial)`` to [0, 1]; a constant one to zeros."""

    def _apply_to_image(self, img: Tensor, **params: Any) -> Tensor:
        return minmax(img[None])[0]


class BiasFieldTransform(ImageOnlyTransform):
    """Multiply with ``exp(field)``, a Legendre polynomial of degree 3 over [-1, 1] with random coefficients."""

    def __init__(self, coefficients: tuple[float, float], degree: int = 3) -> None:
        super().__init__()
        self.coefficients, self.degree = coefficients, degree

    def get_parameters(self, image: Tensor, **data: Any) -> dict[str, Any]:
        dims = image.ndim - 1
        coefficients = np.random.uniform(*self.coefficients, size=(self.degree + 1,) * dims)
        coefficients[np.indices(coefficients.shape).sum(0) > self.degree] = 0
        axes = [np.linspace(-1, 1, n) for n in image.shape[1:]]
        field: np.ndarray = coefficients
        for axis in axes:  # evaluate the first remaining degree, which appends the axis
            field = legendre.legval(axis, field)
        return {"field": torch.from_numpy(np.exp(field)).to(image.dtype)}

    def _apply_to_image(self, img: Tensor, **params: Any) -> Tensor:
        return img * params["field"]


class GibbsNoiseTransform(ImageOnlyTransform):
    """Ringing: frequencies beyond ``(1 - alpha) * sqrt(2) / 2 * longest side`` from zero are removed, as MONAI does."""

    def __init__(self, alpha: tuple[float, float]) -> None:
        super().__init__()
        self.alpha = alpha

    def get_parameters(self, image: Tensor, **data: Any) -> dict[str, Any]:
        shape = image.shape[1:]
        radius = (1 - np.random.uniform(*self.alpha)) * max(shape) * np.sqrt(2) / 2
        distances = torch.meshgrid(*(torch.fft.fftfreq(n) * n for n in shape), indexing="ij")
        return {"keep": torch.stack(distances).square().sum(0) <= radius**2}

    def _apply_to_image(self, img: Tensor, **params: Any) -> Tensor:
        axes = tuple(range(1, img.ndim))
        return torch.fft.ifftn(torch.fft.fftn(img, dim=axes) * params["keep"], dim=axes).real.to(img.dtype)


class AffineCrop(SpatialTransform):
    """Crop to the patch; with probability 0.33 rotate (to pi / 4), scale (0.8 to 1.2) and shear (0.2) on the way."""

    def __init__(self, patch_size: tuple[int, ...]) -> None:
        super().__init__(
            patch_size,
            patch_center_dist_from_border=0,
            random_crop=False,
            rotation=(-np.pi / 4, np.pi / 4),
            scaling=(0.8, 1.2),
            border_mode_seg="constant",
            padding_value_seg=-1,
        )

    def get_parameters(self, **data: Any) -> dict[str, Any]:
        self.p_rotation = self.p_scaling = float(np.random.uniform() < P)  # one event, not two
        parameters: dict[str, Any] = super().get_parameters(**data)
        if parameters["grid"] is not None:
            parameters["grid"] = self._shear(parameters["grid"], data["image"].shape[1:])
        return parameters

    @staticmethod
    def _shear(grid: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Shear the sampling grid ``(*patch, dims)``, in [-1, 1] of the image and last axis first, in voxels."""
        dims = len(shape)
        shear = np.random.uniform(-0.2, 0.2, (dims, dims))
        np.fill_diagonal(shear, 1)
        half = torch.tensor(shape[::-1]) / 2
        return (grid * half) @ torch.from_numpy(shear).to(grid.dtype) / half


def _axes_of_equal_size(patch_size: tuple[int, ...], axes: tuple[int, ...]) -> set[int] | None:
    """The largest group of axes with the same size, or None: a 90-degree rotation must keep the patch's shape."""
    groups = defaultdict(set)
    for axis in axes:
        groups[patch_size[axis]].add(axis)
    largest = max(groups.values(), key=len)
    return largest if len(largest) > 1 else None
