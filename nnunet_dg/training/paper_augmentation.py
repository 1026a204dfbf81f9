"""The augmentation of the DropGen paper as transforms of nnU-Net.

S. Diaz, P. Golland, E. Adalsteinsson, N. Dey, Why Invariance is Not Enough for Biomedical Domain Generalization and How
to Fix It, 2026, https://arxiv.org/abs/2604.02564, appendix C.2. The paper uses MONAI. Here, transforms come from
batchgeneratorsv2 if it has them. Bias field, Gibbs noise and sharpening are MONAI's, and the affine transform with
shear is implemented here. Every transform is applied with probability 0.33, to images scaled to [0, 1] in which padding
and voxels outside a mask are black.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform, ImageOnlyTransform
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.rot90 import Rot90Transform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.pseudo2d import Convert2DTo3DTransform, Convert3DTo2DTransform
from batchgeneratorsv2.transforms.utils.random import OneOfTransform, RandomTransform
from torch import Tensor

from nnunet_dg.extras import require
from nnunet_dg.outside import Outside
from nnunet_dg.tensors import minmax

if TYPE_CHECKING:
    from monai.transforms import RandomizableTransform

P = 0.33


def paper_augmentation(
    patch_size: tuple[int, ...],
    mirror_axes: tuple[int, ...] | None,
    in_plane_only: bool,
    outside: Outside | None = None,
) -> list[BasicTransform]:
    """The paper's transforms in its order, except for the affine transform, which comes first since it crops.

    Args:
        patch_size: Patch size of the network, two or three sizes.
        mirror_axes: Axes along which images are flipped. Axes of equal size are also rotated by 90 degrees. None or
            empty: no flips and rotations, as in the paper for images in which left and right differ.
        in_plane_only: Whether the affine transform leaves the first axis unchanged: nnU-Net's dummy 2-D augmentation
            for anisotropic patches.
        outside: Meaning of exact zeros in the image channels; None: ordinary intensities. At inference, the network
            sets the same voxels to black.

    Raises:
        ExtraError: The extra "report", which installs MONAI, is not installed.
    """
    require("report", "The augmentation of the DropGen paper")
    from monai.transforms import RandBiasField, RandGaussianSharpen, RandGibbsNoise

    spatial: list[BasicTransform] = [AffineCrop(patch_size[1:] if in_plane_only else patch_size)]
    if in_plane_only:
        spatial = [Convert3DTo2DTransform(), *spatial, Convert2DTo3DTransform()]
    if mirror_axes:
        # a MirrorTransform flips its axis with probability 0.5
        spatial.append(RandomTransform(OneOfTransform([MirrorTransform((axis,)) for axis in mirror_axes]), 2 * P))
        if (axes := _axes_of_equal_size(patch_size, mirror_axes)) is not None:
            spatial.append(RandomTransform(Rot90Transform(1, (1, 2, 3), axes), P))
    intensity: list[BasicTransform] = [
        SimulateLowResolutionTransform((0.25, 1), False, True, (0,) if in_plane_only else None),
        GaussianNoiseTransform((0, 0.1)),
        MonaiTransform(RandBiasField(prob=1, coeff_range=(0, 0.1))),
        MonaiTransform(RandGibbsNoise(prob=1, alpha=(0, 0.33))),
        GammaTransform((0.5, 4.5), p_invert_image=0, synchronize_channels=False, p_per_channel=1, p_retain_stats=0),
        GaussianBlurTransform((0.001, 0.1)),  # as in the paper, although a blur below 0.1 voxel has almost no effect
        MonaiTransform(RandGaussianSharpen(prob=1)),  # it blurs first, so it does not amplify the highest frequencies
    ]
    return [*spatial, MinMaxTransform(outside), *(RandomTransform(t, P) for t in intensity), MinMaxTransform()]


class MinMaxTransform(ImageOnlyTransform):
    """Scale each channel of ``(C, *spatial)`` to [0, 1], with black outside the subject; constant ones become zero."""

    def __init__(self, outside: Outside | None = None) -> None:
        super().__init__()
        self.outside = outside

    def _apply_to_image(self, img: Tensor, **params: Any) -> Tensor:
        image = img[None]
        return minmax(self.outside.to_minimum(image) if self.outside else image)[0]


class MonaiTransform(ImageOnlyTransform):
    """Apply one of MONAI's random array transforms to the image ``(C, *spatial)``.

    The seed of its parameters comes from NumPy's global generator, which nnU-Net seeds in each of its workers.
    """

    def __init__(self, transform: RandomizableTransform) -> None:
        super().__init__()
        self.transform = transform

    def get_parameters(self, **data: Any) -> dict[str, Any]:
        return {"seed": int(np.random.randint(2**31))}

    def _apply_to_image(self, img: Tensor, **params: Any) -> Tensor:
        from monai.utils import convert_to_tensor

        self.transform.set_random_state(params["seed"])
        return convert_to_tensor(self.transform(img), dtype=img.dtype, track_meta=False)


class AffineCrop(SpatialTransform):
    """Crop to the patch; with probability 0.33, also rotate (up to pi / 4), scale (0.8 to 1.2) and shear (0.2)."""

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
        self.p_rotation = self.p_scaling = float(np.random.uniform() < P)  # both happen, or neither
        parameters: dict[str, Any] = super().get_parameters(**data)
        if parameters["grid"] is not None:
            parameters["grid"] = self._shear(parameters["grid"], data["image"].shape[1:])
        return parameters

    @staticmethod
    def _shear(grid: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Shear the sampling grid in units of voxels.

        Args:
            grid: Coordinates ``(*patch, dims)``, last axis first, in [-1, 1] over the image.
            shape: Spatial shape of the image.
        """
        dims = len(shape)
        shear = np.random.uniform(-0.2, 0.2, (dims, dims))
        np.fill_diagonal(shear, 1)
        half = torch.tensor(shape[::-1]) / 2
        return (grid * half) @ torch.from_numpy(shear).to(grid.dtype) / half


def _axes_of_equal_size(patch_size: tuple[int, ...], axes: tuple[int, ...]) -> set[int] | None:
    """The largest group of axes of equal size, among which rotations keep the patch's shape; None if all differ."""
    groups = defaultdict(set)
    for axis in axes:
        groups[patch_size[axis]].add(axis)
    largest = max(groups.values(), key=len)
    return largest if len(largest) > 1 else None
