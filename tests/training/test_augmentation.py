"""The augmentation of a method in place of nnU-Net's, with everything that follows it in nnU-Net's transforms."""

import pickle
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.remove_label import RemoveLabelTansform
from helpers import set_nnunets_folders
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from on_noise import initialized
from small_trainers import CPU, planned

from nnunet_dg.baselines.bigaug import BigAug
from nnunet_dg.baselines.gin import GIN
from nnunet_dg.errors import HostError
from nnunet_dg.training.augmentation import own_training_transforms, replace_augmentation
from nnunet_dg.training.trainer import MethodsTrainer


@pytest.fixture
def transforms(tmp_path, monkeypatch):
    """Function that returns the training transforms of a trainer of one method."""
    set_nnunets_folders(monkeypatch, tmp_path)

    def transforms(method, patch_size=(16, 16, 16), in_plane_only=False, mask=False, **more):
        class Trainer(MethodsTrainer):
            methods = (method,)

        trainer = initialized(Trainer, planned(), CPU)
        with own_training_transforms(trainer):
            result = trainer.get_training_transforms(
                patch_size,
                (-0.5, 0.5),
                [[1.0] * 3, [0.5] * 3],
                (0, 1, 2),
                in_plane_only,
                use_mask_for_norm=[mask],
                **more,
            )
        assert trainer.get_training_transforms is nnUNetTrainer.get_training_transforms
        return result

    return transforms


def kinds(transform):
    return [type(getattr(each, "transform", each)).__name__ for each in transform.transforms]


def test_the_augmentation_is_replaced_and_all_that_follows_is_nnunets(transforms):
    mine = ["SpatialTransform", "Sharpen", "Blur", "Noise", "ScaleAndShift", "GammaTransform", "ScaleAndShift"]
    kept = [RemoveLabelTansform.__name__, "DownsampleSegForDSTransform"]
    assert kinds(transforms(BigAug())) == ["MarkPadding", *mine, "MirrorTransform", "ZeroPadding", *kept]
    masked = kinds(transforms(BigAug(), mask=True))
    assert masked[len(mine) + 1 :] == ["MirrorTransform", "MaskImageTransform", "ZeroPadding", *kept]


def test_other_methods_have_nnunets_augmentation(transforms):
    assert kinds(transforms(GIN()))[1:-3] == kinds(
        ComposeTransforms(
            nnUNetTrainer.get_training_transforms((16,) * 3, (-0.5, 0.5), [[1.0] * 3], (0, 1, 2), False).transforms[:-2]
        )
    )


def test_the_settings_of_the_training_are_used(transforms):
    (gamma,) = (
        each
        for each in transforms(BigAug(p=0.2)).transforms
        if isinstance(getattr(each, "transform", 0), GammaTransform)
    )
    assert gamma.apply_probability == 0.2


@pytest.mark.parametrize(
    ("patch_size", "in_plane_only"), [((16, 16, 16), False), ((6, 24, 20), True)], ids=["isotropic", "anisotropic"]
)
@pytest.mark.parametrize("labels", ["labels", "regions", "cascade"])
def test_patches_have_nnunets_format(transforms, patch_size, in_plane_only, labels):
    more = {
        "labels": {},
        "regions": {"regions": [(1, 2), (2,)], "ignore_label": 3},
        "cascade": {"is_cascaded": True, "foreground_labels": [1, 2]},
    }[labels]
    torch.manual_seed(0)
    augment = transforms(BigAug(p=1.0), patch_size, in_plane_only, **more)
    larger = tuple(n if in_plane_only and i == 0 else int(1.5 * n) for i, n in enumerate(patch_size))
    for _ in range(3):
        segmentation = torch.randint(-1, 3, (1 + (labels == "cascade"), *larger), dtype=torch.int16)
        result = augment(image=torch.randn(1, *larger), segmentation=segmentation)
        full, half = result["segmentation"]
        channels = 3 if labels == "regions" else 1
        assert full.shape == (channels, *patch_size)
        assert half.shape == (channels, *(n // 2 for n in patch_size))
        assert set(full.unique().tolist()) <= ({0, 1} if labels == "regions" else {0, 1, 2})
        assert result["image"].shape == (3 if labels == "cascade" else 1, *patch_size)
        assert torch.isfinite(result["image"]).all()
        if labels == "cascade":
            assert set(result["image"][1:].unique().tolist()) <= {0, 1}


def test_the_transforms_can_be_sent_to_a_process_of_the_data_loader(transforms):
    copy = pickle.loads(pickle.dumps(transforms(BigAug(p=1.0))))
    image, segmentation = torch.randn(1, 24, 24, 24), torch.zeros(1, 24, 24, 24, dtype=torch.int16)
    assert copy(image=image, segmentation=segmentation)["image"].shape == (1, 16, 16, 16)


def test_padding_stays_zero(transforms):
    torch.manual_seed(0)
    augment = transforms(BigAug(p=1.0))
    for _ in range(5):
        image, segmentation = torch.randn(1, 24, 24, 24) + 50, torch.zeros(1, 24, 24, 24, dtype=torch.int16)
        image[:, :10], segmentation[:, :10] = 0, -1
        assert (augment(image=image, segmentation=segmentation)["image"] == 0).any()


def test_a_trainer_with_other_transforms_is_refused():
    with pytest.raises(HostError, match=r"augmentation cannot be replaced.*MirrorTransform, MaskImageTransform or"):
        replace_augmentation(ComposeTransforms([]), [])
    with pytest.raises(HostError, match="augmentation cannot be replaced"):
        replace_augmentation(GammaTransform((1, 2), 0, False, 1, 0), [MirrorTransform((0,))])


def test_two_methods_that_replace_the_augmentation_are_refused():
    @dataclass(frozen=True)
    class Other(BigAug):
        """BigAug under another name."""

        key: ClassVar[str] = "other"

    with pytest.raises(
        TypeError, match=r"Mistaken: 'bigaug' and 'other' both replace nnU-Net's augmentation\. List one"
    ):
        type("Mistaken", (MethodsTrainer,), {"methods": (BigAug(), Other())})
