"""The augmentation of the DropGen paper (arXiv 2604.02564, appendix C.2) in nnU-Net's transforms.

The paper's pipeline is MONAI's. Where batchgeneratorsv2 has the transform it is used; bias field, Gibbs noise and
sharpening are MONAI's, and an affine with shear is written here. Every transform is applied with probability 0.33, to
images min-maxed to [0, 1], in which padding and what is outside a mask are black.
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
from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.rot90 import Rot90Transform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.pseudo2d import Convert2DTo3DTransform, Convert3DTo2DTransform
from batchgeneratorsv2.transforms.utils.random import OneOfTransform, RandomTransform
from monai.transforms import RandBiasField, RandGaussianSharpen, RandGibbsNoise, RandomizableTransform
from monai.utils import convert_to_tensor
from torch import Tensor

from nnunet_dg.outside import Outside
from nnunet_dg.tensors import minmax

P = 0.33


def paper_augmentation(
    patch_size: tuple[int, ...],
    mirror_axes: tuple[int, ...] | None,
    in_plane_only: bool,
    outside: Outside | None = None,
) -> list[BasicTransform]:
    """The paper's transforms in its order, but for the affine, which crops to the patch and so comes first.

    Args:
        patch_size: of the network.
        mirror_axes: axes along which flips, and 90-degree rotations among axes of equal size, are allowed; None or
            empty: neither, as the paper does where left and right differ.
        in_plane_only: nnU-Net's dummy 2-D augmentation for anisotropic patches: the affine leaves the first axis alone.
        outside: what exact zeros mean in the image channels; None: ordinary intensities. The network makes the same
            voxels black when it predicts.
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
        MonaiTransform(RandBiasField(prob=1, coeff_range=(0, 0.1))),
        MonaiTransform(RandGibbsNoise(prob=1, alpha=(0, 0.33))),
        GammaTransform((0.5, 4.5), p_invert_image=0, synchronize_channels=False, p_per_channel=1, p_retain_stats=0),
        GaussianBlurTransform((0.001, 0.1)),  # as in the paper, though below 0.1 voxel a blur changes next to nothing
        MonaiTransform(RandGaussianSharpen(prob=1)),  # blurs first: the highest frequencies of a volume do not grow
    ]
    return [*spatial, MinMaxTransform(outside), *(RandomTransform(t, P) for t in intensity), MinMaxTransform()]


class MinMaxTransform(ImageOnlyTransform):
    """Each channel of the image ``(C, *spatial)`` to [0, 1], black outside the subject; a constant one to zeros."""

    def __init__(self, outside: Outside | None = None) -> None:
        super().__init__()
        self.outside = outside

    def _apply_to_image(self, img: Tensor, **params: Any) -> Tensor:
        image = img[None]
        return minmax(self.outside.to_minimum(image) if self.outside else image)[0]


class MonaiTransform(ImageOnlyTransform):
    """One of MONAI's random transforms of an array, on the image ``(C, *spatial)``.

    Its parameters are drawn from a seed from NumPy's global generator, which nnU-Net seeds in each of its workers.
    """

    def __init__(self, transform: RandomizableTransform) -> None:
        super().__init__()
        self.transform = transform

    def get_parameters(self, **data: Any) -> dict[str, Any]:
        return {"seed": int(np.random.randint(2**31))}

    def _apply_to_image(self, img: Tensor, **params: Any) -> Tensor:
        self.transform.set_random_state(params["seed"])
        return convert_to_tensor(self.transform(img), dtype=img.dtype, track_meta=False)


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
