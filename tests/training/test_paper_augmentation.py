"""The augmentation of the DropGen paper: shapes, ranges, parameters, and each transform that is not nnU-Net's."""

import random

import numpy as np
import pytest
import torch

from nnunet_dg.trainers.nnUNetTrainerDropGen_Paper import nnUNetTrainerDropGen_Paper
from nnunet_dg.training import paper_augmentation as paper


@pytest.fixture(autouse=True)
def seeded():
    np.random.seed(0)
    torch.manual_seed(0)


def transforms(patch_size, in_plane_only=False, mirror_axes=None, masked=(False,), **more):
    return nnUNetTrainerDropGen_Paper.get_training_transforms(
        patch_size, None, [[1.0] * len(patch_size), [0.5] * len(patch_size)], mirror_axes, in_plane_only,
        use_mask_for_norm=list(masked), **more,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("patch_size", "in_plane_only"), [((16, 24, 16), False), ((6, 24, 20), True), ((24, 24), False), ((24, 30), False)]
)
def test_results_have_the_patchs_shape_the_range_0_1_and_nnunets_labels(patch_size, in_plane_only):
    axes = tuple(range(len(patch_size)))
    augment = transforms(patch_size, in_plane_only, axes, (False, True))
    larger = tuple(n if in_plane_only and i == 0 else int(1.5 * n) for i, n in enumerate(patch_size))
    for _ in range(25):
        segmentation = torch.randint(-1, 3, (1, *larger), dtype=torch.int16)
        out = augment(image=100 * torch.randn(2, *larger), segmentation=segmentation)
        assert out["image"].shape == (2, *patch_size)
        assert out["image"].amin((*[a + 1 for a in axes],)).tolist() == [0, 0]
        assert out["image"].amax((*[a + 1 for a in axes],)).tolist() == [1, 1]
        full, half = out["segmentation"]
        assert full.shape == (1, *patch_size)
        assert half.shape == (1, *(n // 2 for n in patch_size))
        assert set(full.unique().tolist()) <= {0, 1, 2}  # nnU-Net's own label handling is still there


def test_intensities_are_augmented_on_images_in_zero_to_one():
    """The result therefore does not depend on the scale of the image."""
    x, background = torch.rand(1, 16, 16, 16), torch.zeros(1, 16, 16, 16, dtype=torch.int16)
    outs = []
    for scale in (1, 1000):
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        augment = transforms((16, 16, 16))
        outs.append(torch.stack([augment(image=scale * x, segmentation=background)["image"] for _ in range(10)]))
    torch.testing.assert_close(*outs, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("masked", [True, False], ids=["mask", "padding"])
def test_padding_and_voxels_outside_a_mask_are_black_as_at_inference(masked):
    """nnU-Net sets these voxels to zero, the mean of the image; at inference, the network makes them black."""
    augment = transforms((16, 16, 16), masked=[masked])
    corners = []
    for _ in range(40):
        image, segmentation = torch.randn(1, 16, 16, 16), torch.zeros(1, 16, 16, 16, dtype=torch.int16)
        image[:, :4], segmentation[:, :4] = 0, -1
        corners.append(augment(image=image, segmentation=segmentation)["image"][0, 0, 0, 0].item())
    assert np.median(corners) < 0.2  # not 0, since noise and bias field follow; without black it would be about 0.5
    (before, *_) = (t for t in augment.transforms if isinstance(t, paper.MinMaxTransform))
    image = torch.randn(1, 16, 16, 16)
    image[:, :4] = 0
    assert (before(image=image)["image"][:, :4] == 0).all()


def test_every_transform_of_the_paper_is_applied_with_its_parameters():
    built = {}
    for transform in paper.paper_augmentation((16, 16, 16), (0, 1, 2), False):
        inner = getattr(transform, "transform", transform)
        inner = getattr(inner, "transform", inner)  # MONAI's transform inside MonaiTransform
        built[type(inner).__name__] = (getattr(transform, "apply_probability", 1), inner)
    assert {name for name, (p, _) in built.items() if p == 1} == {"AffineCrop", "MinMaxTransform"}
    # the MirrorTransform inside OneOfTransform flips with probability 0.5
    assert {name: p for name, (p, _) in built.items() if p < 1} == {
        "OneOfTransform": 0.66, "Rot90Transform": 0.33, "SimulateLowResolutionTransform": 0.33,
        "GaussianNoiseTransform": 0.33, "RandBiasField": 0.33, "RandGibbsNoise": 0.33,
        "GammaTransform": 0.33, "GaussianBlurTransform": 0.33, "RandGaussianSharpen": 0.33,
    }  # fmt: skip
    assert built["SimulateLowResolutionTransform"][1].scale == (0.25, 1)
    assert built["RandBiasField"][1].coeff_range == (0, 0.1)
    assert built["RandGibbsNoise"][1].alpha == (0, 0.33)
    assert all(t.prob == 1 for _, t in built.values() if hasattr(t, "prob"))
    assert built["GaussianNoiseTransform"][1].noise_variance == (0, 0.1)
    assert built["GammaTransform"][1].gamma == (0.5, 4.5)
    assert built["GammaTransform"][1].p_invert_image == 0
    assert built["GaussianBlurTransform"][1].blur_sigma == (0.001, 0.1)
    assert built["RandGaussianSharpen"][1].alpha == (10, 30)
    assert built["AffineCrop"][1].rotation == (-np.pi / 4, np.pi / 4)
    assert built["AffineCrop"][1].scaling == (0.8, 1.2)


def test_the_affine_rotates_scales_and_shears():
    """The affine map is estimated from the sampling grid, in voxels, and decomposed."""
    crop = paper.AffineCrop((8, 8))
    identity = torch.stack(torch.meshgrid(*[torch.arange(8) - 3.5] * 2, indexing="ij"), -1).reshape(-1, 2)
    skews, angles, determinants = [], [], []
    while len(skews) < 60:
        grid = crop.get_parameters(image=torch.zeros(1, 8, 8))["grid"]
        if grid is not None:
            voxels = grid.flip(-1).reshape(-1, 2) * 4
            matrix = torch.linalg.lstsq(identity, voxels - voxels.mean(0)).solution
            singular = torch.linalg.svdvals(matrix)
            assert singular.min() > 0.8 * 0.8 - 0.05
            assert singular.max() < 1.2 * 1.2 + 0.05
            angles.append(torch.atan2(matrix[0, 1] - matrix[1, 0], matrix[0, 0] + matrix[1, 1]).abs().item())
            determinants.append(torch.linalg.det(matrix).item())
            skews.append(torch.nn.functional.cosine_similarity(matrix[0], matrix[1], dim=0).abs().item())
    assert max(skews) > 0.15  # with only rotation and scaling, axes stay almost orthogonal
    assert 0.5 < max(angles) < np.pi / 4 + 0.25
    assert min(determinants) < 0.75
    assert max(determinants) > 1.25


def test_image_and_labels_are_transformed_alike():
    augment = transforms((20, 20, 20), mirror_axes=(0, 1, 2))
    overlaps = []
    for _ in range(40):
        segmentation = torch.zeros(1, 32, 32, 32, dtype=torch.int16)
        segmentation[:, 8:14, 9:15, 17:24] = 1  # off center, so that a flip of only one of them would be seen
        out = augment(image=segmentation.float() + 0.01 * torch.randn(1, 32, 32, 32), segmentation=segmentation)
        bright, labeled = out["image"] > 0.5, out["segmentation"][0] > 0
        overlaps.append((2 * (bright & labeled).sum() / (bright.sum() + labeled.sum())).item())
    assert np.median(overlaps) > 0.8


def test_without_mirror_axes_there_are_no_flips_and_rotations():
    flips = {"MirrorTransform", "Rot90Transform", "OneOfTransform"}
    names = {type(getattr(t, "transform", t)).__name__ for t in transforms((16, 16, 16)).transforms}
    assert not names & flips
    names = {
        type(getattr(t, "transform", t)).__name__ for t in transforms((16, 16, 16), mirror_axes=(0, 1, 2)).transforms
    }
    assert {"OneOfTransform", "Rot90Transform"} <= names


def test_rotations_by_90_degrees_need_axes_of_equal_size():
    assert paper._axes_of_equal_size((16, 24, 16), (0, 1, 2)) == {0, 2}
    assert paper._axes_of_equal_size((16, 24, 16), (0, 1)) is None
    assert paper._axes_of_equal_size((24, 24), (0, 1)) == {0, 1}


def only(name, patch_size, in_plane_only=False):
    """The augmentation's transform of that name."""
    built = paper.paper_augmentation(patch_size, tuple(range(len(patch_size))), in_plane_only)
    (found,) = (t for t in (getattr(b, "transform", b) for b in built) if type(t).__name__ == name)
    return found


def test_rotations_are_by_90_180_and_270_degrees():
    image = torch.rand(1, 6, 5, 6)
    turn = only("Rot90Transform", (6, 5, 6))
    seen = [turn(image=image.clone())["image"] for _ in range(60)]
    for times in (1, 2, 3):
        assert any(torch.equal(s, image.rot90(times, (1, 3))) for s in seen)
    assert all(s.shape == image.shape for s in seen)


def test_low_resolution_leaves_the_axis_across_thick_slices_unchanged():
    image = torch.rand(1, 8, 1, 1).expand(1, 8, 16, 16).clone()  # every slice is constant
    lower = only("SimulateLowResolutionTransform", (8, 16, 16), in_plane_only=True)
    torch.testing.assert_close(lower(image=image.clone())["image"], image)
    everywhere = only("SimulateLowResolutionTransform", (8, 16, 16))
    assert max((everywhere(image=image.clone())["image"] - image).abs().max() for _ in range(10)) > 0.05


MONAI = ("RandBiasField", "RandGibbsNoise", "RandGaussianSharpen")


def of_monai(name):
    built = paper.paper_augmentation((16, 16, 16), None, False)
    wrappers = [getattr(t, "transform", t) for t in built]
    (found,) = (t for t in wrappers if type(getattr(t, "transform", None)).__name__ == name)
    return found


def test_sharpening_does_not_amplify_the_highest_frequencies():
    """A checkerboard is the highest frequency of a volume. A Laplacian without a blur would amplify it 26 times."""
    sharpen = of_monai("RandGaussianSharpen")
    board = (-1.0) ** torch.stack(torch.meshgrid(*[torch.arange(24)] * 3, indexing="ij")).sum(0)[None]
    middle = (0, *[slice(8, 16)] * 3)
    gains = [(sharpen(image=board.clone())["image"] / board)[middle].abs().max().item() for _ in range(40)]
    assert max(gains) <= 1
    assert max(gains) > 0.1  # with the kernels of MONAI's default, the blur does not remove it


def test_sharpening_makes_edges_steeper():
    edge = torch.zeros(1, 20, 20, 20)
    edge[:, 10:] = 1
    sharpened = of_monai("RandGaussianSharpen")(image=edge.clone())["image"][0, 4:16, 10, 10]
    assert sharpened.max() > 1.2
    assert sharpened.min() < -0.2


@pytest.mark.parametrize("name", MONAI)
@pytest.mark.parametrize("shape", [(1, 15, 16), (3, 8, 9, 10)])
def test_transforms_of_monai_are_reproducible_and_differ_between_workers(name, shape):
    """nnU-Net seeds NumPy's global generator in each worker."""
    transform = of_monai(name)
    image = torch.rand(shape)

    def three_by(seed):
        np.random.seed(seed)
        return torch.stack([transform(image=image.clone())["image"] for _ in range(3)])

    first = three_by(1)
    assert first.shape == (3, *shape)
    assert first.dtype == torch.float32
    assert type(first) is torch.Tensor
    assert type(transform(image=image.clone())["image"]) is torch.Tensor
    assert first.isfinite().all()
    assert torch.equal(first, three_by(1))
    assert not torch.equal(first, three_by(2))
    assert not torch.equal(first[0], first[1])
    constant = transform(image=torch.full(shape, 0.5))["image"]
    assert constant.isfinite().all()


def test_gibbs_noise_removes_high_frequencies_only():
    image = torch.rand(1, 15, 17)
    transform = of_monai("RandGibbsNoise")
    transform.transform.alpha = (0.6, 0.6)
    filtered = transform(image=image.clone())["image"]
    before, after = (torch.fft.fftn(i[0]) for i in (image, filtered))
    axes = [torch.fft.fftfreq(n) * n for n in (15, 17)]
    distance = torch.stack(torch.meshgrid(*axes, indexing="ij")).norm(dim=0)
    inside = distance <= 0.4 * 17 * 2**0.5 / 2
    torch.testing.assert_close(after[inside], before[inside], rtol=1e-3, atol=1e-3)
    assert after[~inside].abs().max() < 1e-3


def test_a_third_of_the_patches_is_transformed_by_the_affine():
    crop = paper.AffineCrop((8, 8))
    moved = sum(crop.get_parameters(image=torch.zeros(1, 12, 12))["grid"] is not None for _ in range(600))
    assert moved / 600 == pytest.approx(0.33, abs=0.06)


def test_shear_keeps_the_center_and_is_in_units_of_voxels():
    grid = torch.zeros(1, 1, 2)
    assert torch.equal(paper.AffineCrop._shear(grid, (10, 40)), grid)
    np.random.seed(3)
    along_x = paper.AffineCrop._shear(torch.tensor([[[1.0, 0.0]]]), (10, 40))[0, 0]  # 20 voxels along the last axis
    assert along_x[0] == pytest.approx(1.0)
    assert 0 < abs(along_x[1].item() * 5) <= 0.2 * 20  # sheared by at most 0.2 voxels per voxel
