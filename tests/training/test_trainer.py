"""What all trainers of this package add to nnU-Net's: settings of folds, plans, padding and warnings."""

import inspect
import json
import random
import shutil
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.remove_label import RemoveLabelTansform
from filelock import FileLock
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from on_noise import plans as plans_manager

from nnunet_dg.errors import DataError, SettingsError, UserError
from nnunet_dg.files import locked
from nnunet_dg.outside import Outside
from nnunet_dg.tinymig import DimensionError
from nnunet_dg.trainers.comparisons import nnUNetTrainerERM
from nnunet_dg.trainers.nnUNetTrainerDropGen import (
    nnUNetTrainerDropGen,
    nnUNetTrainerDropGen_MIND,
    nnUNetTrainerDropGen_p025,
    nnUNetTrainerDropGen_p075,
)
from nnunet_dg.trainers.nnUNetTrainerDropGen_Paper import nnUNetTrainerDropGen_Paper
from nnunet_dg.trainers.nnUNetTrainerSgCG import nnUNetTrainerSgCG
from nnunet_dg.trainers.nnUNetTrainerTinyMIG import nnUNetTrainerTinyMIG
from nnunet_dg.training.fold_settings import FILE
from nnunet_dg.training.padding import UNLABELED, keep_padding

CPU = torch.device("cpu")
CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_best.pth", "checkpoint_latest.pth")  # nnU-Net's three
LABELS = {"background": 0, "box": 1}
DATASET = {"channel_names": {"0": "MRI"}, "labels": LABELS, "numTraining": 4, "file_ending": ".nii.gz"}


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A folder with nnU-Net's three empty folders, which are set in the environment."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    return tmp_path


def plans(section=None, scheme="ZScoreNormalization", masked=False):
    """Plans of a small network, with a patch of 16 voxels along each axis."""
    content = deepcopy(plans_manager(16).plans) | ({"nnunet_dg": section} if section else {})
    configuration = content["configurations"]["3d_fullres"]
    configuration |= {"normalization_schemes": [scheme], "use_mask_for_norm": [masked]}
    configuration["architecture"]["arch_kwargs"]["features_per_stage"] = [2, 4, 8]
    return content


def build(section=None, fold=0, trainer=nnUNetTrainerDropGen_MIND, **normalization):
    content = plans(section, **normalization) | {"continue_training": False}
    return trainer(content, "3d_fullres", fold, DATASET, CPU)


def start(section=None, fold=0, trainer=nnUNetTrainerDropGen_MIND):
    """An initialized trainer, before nnU-Net reads data and makes the first step."""
    return initialize(build(section, fold, trainer))


def initialize(trainer):
    folder = Path(trainer.preprocessed_dataset_folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "case_0.b2nd").touch()
    trainer.initialize()
    return trainer


def save(trainer):
    trainer.save_checkpoint(f"{trainer.output_folder}/checkpoint_final.pth")


def recorded(trainer):
    return json.loads(Path(trainer.output_folder, FILE).read_text())


def test_trainers_do_not_change_the_plans_and_several_can_share_them(world):
    content = plans() | {"continue_training": False}
    before = deepcopy(content)
    first = nnUNetTrainerDropGen_p025(content, "3d_fullres", 0, DATASET, CPU)
    second = nnUNetTrainerDropGen_p075(content, "3d_fullres", 0, DATASET, CPU)
    assert content == before
    assert (first.settings("dropgen").p, second.settings("dropgen").p) == (0.25, 0.75)
    written = first.my_init_kwargs["plans"]  # nnU-Net writes these into checkpoints
    assert written["nnunet_dg"]["dropgen"]["p"] == 0.25
    assert written is first.plans_manager.plans
    assert "continue_training" not in written


def test_settings_are_written_before_the_first_step(world):
    trainer = start({"dropgen": {"p": 0.25}})
    assert recorded(trainer)["dropgen"]["p"] == 0.25


def test_another_fold_with_other_settings_is_refused_before_the_first_checkpoint(world):
    start({"dropgen": {"p": 0.25}})
    start({"dropgen": {"p": 0.25}}, fold=1)
    message = r"fold_0 in .* was started with other settings: p was 0\.25 and is 0\.75.* start fold_0 again with the"
    with pytest.raises(SettingsError, match=message):
        build({"dropgen": {"p": 0.75}}, fold=2)


def test_a_training_that_is_refused_leaves_no_settings(world):
    with pytest.raises(DimensionError):
        start({"tinymig": {"teacher": "samvit_base_patch16.sa1b"}}, trainer=nnUNetTrainerTinyMIG)  # 2-D
    build({"tinymig": {"teacher": "random:anatomix"}}, fold=1, trainer=nnUNetTrainerTinyMIG)


def test_a_training_whose_weights_are_refused_leaves_no_settings(world):
    trainer = start(
        {"dropgen": {"extractor": "anatomix", "weights": str(world / "nowhere.pth")}}, trainer=nnUNetTrainerDropGen
    )
    assert Path(trainer.output_folder, FILE).exists()
    with pytest.raises(UserError):
        train_start(trainer)
    assert not Path(trainer.output_folder, FILE).exists()
    build({"dropgen": {"extractor": "mind"}}, fold=1, trainer=nnUNetTrainerDropGen)


def test_a_refused_start_keeps_the_settings_of_a_trained_fold(world):
    save(start({"dropgen": {"p": 0.25}}))
    restarted = start({"dropgen": {"p": 0.75}})
    with pytest.raises(ValueError, match="splits"):
        restarted.on_train_start()  # one case is not enough
    assert recorded(restarted)["dropgen"]["p"] == 0.25


def test_the_second_of_two_folds_that_start_together_with_different_settings_is_refused(world):
    first, second = (build({"dropgen": {"p": p}}, fold) for fold, p in enumerate((0.25, 0.75)))
    initialize(first)
    with pytest.raises(SettingsError, match=r"fold_0 in .* was started with other settings: p was 0\.25 and is 0\.75"):
        initialize(second)
    assert not Path(second.output_folder, FILE).exists()
    assert recorded(first)["dropgen"]["p"] == 0.25
    build({"dropgen": {"p": 0.25}}, fold=2)


def test_a_restarted_fold_with_other_settings_than_a_new_fold_is_refused_and_keeps_its_settings(world):
    save(start({"dropgen": {"p": 0.25}}))
    restarted = start({"dropgen": {"p": 0.75}})
    other = start({"dropgen": {"p": 0.25}}, fold=1)
    with pytest.raises(SettingsError, match=r"fold_1 in .* was started with other settings"):
        train_start(restarted)
    assert recorded(restarted)["dropgen"]["p"] == 0.25
    assert not Path(other.output_folder_base, "plans.json").exists()  # none was written with the refused settings


def test_a_renamed_fold_is_ignored(world):
    trainer = start({"dropgen": {"p": 0.25}})
    save(trainer)
    Path(trainer.output_folder).rename(Path(trainer.output_folder_base, "fold_0_old"))
    build({"dropgen": {"p": 0.75}}, fold=1)
    start({"dropgen": {"p": 0.75}}, fold="all")
    with pytest.raises(SettingsError, match="fold_all in"):
        build({"dropgen": {"p": 0.25}}, fold=1)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_fold_with_any_checkpoint_counts_as_trained(world, name):
    trainer = start({"dropgen": {"p": 0.25}})
    trainer.save_checkpoint(f"{trainer.output_folder}/{name}")
    (Path(trainer.output_folder) / FILE).unlink()
    with pytest.raises(SettingsError, match=r"fold_0 in .* was trained with other settings: p was 0\.25 and is 0\.75"):
        build({"dropgen": {"p": 0.75}}, fold=1)


@pytest.mark.parametrize("state", ["whole", "missing", "cut off", "a list", "without the section"])
def test_settings_of_a_trained_fold_without_its_own_file_come_from_plans_or_checkpoint(world, state):
    """Development versions did not write this file."""
    trainer = start({"dropgen": {"p": 0.25}})
    trainer.logger.local_logger.my_fantastic_logging["train_losses"] = [np.float32(0.5), np.float64(0.5)]
    save(trainer)
    folder = Path(trainer.output_folder)
    (folder / FILE).unlink()
    written = json.dumps(trainer.plans_manager.plans)
    contents = {"whole": written, "cut off": written[:300], "a list": "[]", "without the section": json.dumps(plans())}
    if state in contents:
        (folder.parent / "plans.json").write_text(contents[state])
    build({"dropgen": {"p": 0.25}}, fold=1)
    with pytest.raises(SettingsError, match=r"fold_0 in .* p was 0\.25 and is 0\.75"):
        build({"dropgen": {"p": 0.75}}, fold=1)


def test_a_trained_fold_whose_settings_cannot_be_read_is_named(world):
    trainer = start()
    (Path(trainer.output_folder) / FILE).unlink()
    (Path(trainer.output_folder) / "checkpoint_final.pth").write_bytes(b"cut off")
    with pytest.raises(DataError, match=r"fold_0 was trained cannot be read: .*checkpoint_final.*move the fold"):
        build(fold=1)


def test_code_in_a_checkpoint_is_not_executed(world):
    trainer = start()
    folder, marker = Path(trainer.output_folder), world / "ran"
    (folder / FILE).unlink()

    class Call:
        def __reduce__(self):
            return open, (str(marker), "w")

    torch.save({"init_args": {"plans": Call()}}, folder / "checkpoint_final.pth")
    with pytest.raises(DataError, match=r"The settings with which .* was trained cannot be read"):
        build(fold=1)
    assert not marker.exists()


def test_the_only_fold_may_be_retrained_with_other_settings_which_then_apply_to_other_folds(world):
    save(start({"dropgen": {"p": 0.25}}))
    retrained = start({"dropgen": {"p": 0.75}})
    assert recorded(retrained)["dropgen"]["p"] == 0.25  # until it trains, since resuming may be refused
    train_start(retrained)
    assert recorded(retrained)["dropgen"]["p"] == 0.75
    with pytest.raises(SettingsError, match=r"p was 0\.75 and is 0\.25"):
        build({"dropgen": {"p": 0.25}}, fold=1)


def test_a_fold_is_not_retrained_with_other_settings_than_other_folds(world):
    for fold in (0, 1):
        save(start({"dropgen": {"p": 0.25}}, fold))
    with pytest.raises(SettingsError, match=r"fold_1 in .* p was 0\.25 and is 0\.75.* move that fold away"):
        build({"dropgen": {"p": 0.75}}, fold=0)


def test_a_checkpoint_is_loaded_with_the_argument_name_of_any_release(world):
    trainer = start({"dropgen": {"p": 0.25}})
    save(trainer)
    resumed = build({"dropgen": {"p": 0.25}})
    name = list(inspect.signature(nnUNetTrainer.load_checkpoint).parameters)[1]
    resumed.load_checkpoint(**{name: f"{trainer.output_folder}/checkpoint_final.pth"})
    for key, value in trainer.network.state_dict().items():
        assert torch.equal(resumed.network.state_dict()[key], value)


def test_the_recorded_settings_are_kept_if_resuming_is_refused(world):
    trainer = start({"dropgen": {"p": 0.25}})
    save(trainer)
    resumed = build({"dropgen": {"p": 0.75}})
    with pytest.raises(SettingsError, match=r"This checkpoint was trained with other settings: p was 0\.25"):
        resumed.load_checkpoint(f"{trainer.output_folder}/checkpoint_final.pth")
    assert recorded(trainer)["dropgen"]["p"] == 0.25


def test_changed_settings_are_named_even_if_the_weights_do_not_fit(world):
    trainer = start({"dropgen": {"p": 0.25}})
    save(trainer)
    resumed = build({"dropgen": {"p": 0.25, "inputs": "image"}})  # a network with fewer input channels
    with pytest.raises(SettingsError, match=r"This checkpoint was trained with other settings: inputs was "):
        resumed.load_checkpoint(f"{trainer.output_folder}/checkpoint_final.pth")


def test_a_training_without_checkpoints_leaves_no_settings(world):
    trainer = build()
    trainer.disable_checkpointing = True
    train_start(trainer)
    assert not (Path(trainer.output_folder) / FILE).exists()


def write_preprocessed(trainer, shape, value=5.0, masked=False):
    """Write small preprocessed cases without zero voxels, except outside a mask."""
    folder = Path(trainer.preprocessed_dataset_folder)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(4):
        image = (value + rng.standard_normal((1, *shape))).astype(np.float32)
        segmentation = np.zeros((1, *shape), np.int16)
        segmentation[:, 2:5, 2:5, 2:5] = 1
        if masked:
            image[:, :, :, -3:], segmentation[:, :, :, -3:] = 0, -1
        properties = {"class_locations": {1: np.argwhere(segmentation == 1)}}
        nnUNetDatasetBlosc2.save_case(image, segmentation, properties, str(folder / f"case_{i}"))
    splits = [{"train": [f"case_{i}" for i in range(4)], "val": ["case_0"]}]
    (folder.parent / "splits_final.json").write_text(json.dumps(splits))
    (folder.parent / "dataset_fingerprint.json").write_text("{}")


def train_start(trainer):
    """Run ``on_train_start``, which loads the first batches."""
    write_preprocessed(trainer, (20, 20, 20))
    trainer.on_train_start()


def batches(trainer, number=12):
    """Batches of nnU-Net's own data loader, in this process."""
    if not trainer.was_initialized:
        trainer.initialize()
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(0)
    loader, _ = trainer.get_dataloaders()
    return torch.cat([next(loader)["data"] for _ in range(number)])


SHAPE = (12, 20, 24)  # the patch has 16 voxels along each axis


def test_padding_is_exactly_zero_in_training_batches(world):
    """The image is about 5 everywhere, so that much lower values are padding, which must be exactly zero."""
    trainer = build()
    write_preprocessed(trainer, SHAPE)
    data = batches(trainer)
    zero = data == 0
    assert zero.flatten(1).any(1).all()  # every patch is larger than the image along the first axis
    assert zero.float().mean() > 0.2
    assert ((data.abs() < 1) & ~zero).float().mean() < 0.01  # only where image and padding were interpolated
    outside = Outside.of(trainer.configuration_manager).voxels(data)
    assert torch.equal(outside, zero[:, 0])


def test_targets_contain_only_labels(world):
    """During the augmentation, padding is marked in them by another value."""
    trainer = build()
    write_preprocessed(trainer, SHAPE)
    initialize(trainer)
    loader, _ = trainer.get_dataloaders()
    for _ in range(4):
        assert set(torch.cat([t.flatten() for t in next(loader)["target"]]).tolist()) <= {0, 1}


def test_voxels_sampled_from_beyond_the_patch_are_exactly_zero():
    """A patch without padding is zoomed out by a factor of 1.5, and noise is added afterwards."""
    spatial = SpatialTransform(
        (16, 16), 8, False, p_scaling=1, scaling=(1.5, 1.5), border_mode_seg="constant", padding_value_seg=UNLABELED
    )
    noise = GaussianNoiseTransform(noise_variance=(1, 1))
    planned = ComposeTransforms([spatial, noise, RemoveLabelTansform(UNLABELED, 0)])
    result = keep_padding(planned)(image=torch.full((1, 16, 16), 50.0), segmentation=torch.ones(1, 16, 16))
    beyond = result["image"][0, :2]
    assert torch.equal(beyond, torch.zeros_like(beyond))
    assert (result["image"][0, 4:12, 4:12] > 40).all()
    assert set(result["segmentation"].unique().tolist()) == {0, 1}


def test_nnunets_own_trainer_is_not_changed_and_does_not_keep_padding(world):
    trainer = build(trainer=nnUNetTrainer)
    write_preprocessed(trainer, SHAPE)
    data = batches(trainer)
    near = data.abs() < 1
    assert (near & (data != 0)).float().mean() > 0.02  # padding that the augmentation has changed
    before = trainer.get_training_transforms
    assert before is nnUNetTrainer.get_training_transforms


def test_outside_the_padding_batches_equal_those_of_nnunet(world):
    """Both trainers use the same random numbers."""
    trainer, plain = (build(trainer=t) for t in (nnUNetTrainerDropGen_MIND, nnUNetTrainer))
    write_preprocessed(trainer, SHAPE)
    data, expected = batches(trainer), batches(plain)
    image = data != 0
    assert torch.allclose(data[image], expected[image], atol=1e-4)  # nnU-Net times several ways to blur
    assert (expected[~image] != 0).any()


def test_the_papers_augmentation_keeps_padding(world):
    trainer = build(trainer=nnUNetTrainerDropGen_Paper)
    trainer.initialize = lambda: None  # its extractor would need weights, which batches do not
    trainer.dataset_class, trainer.was_initialized = None, True
    trainer._set_batch_size_and_oversample()
    write_preprocessed(trainer, SHAPE)
    data = batches(trainer)
    assert (data == 0).flatten(1).any(1).all()
    assert (data == 0).float().mean() > 0.2


def test_voxels_outside_a_mask_are_zero_as_in_nnunet(world):
    trainer = build(masked=True)
    write_preprocessed(trainer, (16, 20, 24), masked=True)
    data = batches(trainer)
    assert torch.equal(Outside.of(trainer.configuration_manager).voxels(data), (data == 0)[:, 0])
    assert ((data.abs() < 1) & (data != 0)).float().mean() < 0.02


def test_batches_equal_nnunets_if_zero_is_an_ordinary_intensity(world):
    both = (nnUNetTrainerDropGen_MIND, nnUNetTrainer)
    trainer, plain = (build(scheme="NoNormalization", trainer=t) for t in both)
    write_preprocessed(trainer, SHAPE)
    assert torch.allclose(batches(trainer), batches(plain), atol=1e-4)


@pytest.mark.parametrize("scheme", ["CTNormalization", "ZScoreNormalization", "AnyModalityNormalization"])
def test_unused_settings_and_ct_normalization_are_logged_before_the_training(world, scheme):
    trainer = build({"sgcg": {"temperature": 0.2}}, scheme=scheme)
    train_start(trainer)
    text = Path(trainer.log_file).read_text()
    assert text.count('does not use plans["nnunet_dg"]["sgcg"]') == 1
    assert text.count("WARNING: CTNormalization clips channel MRI") == (scheme == "CTNormalization")
    assert ("plan with nnUNetPlannerAnyModality" in text) == (scheme == "CTNormalization")


def test_trainers_with_training_modules_write_their_settings(world):
    trainer = start({"sgcg": {"temperature": 0.2}}, trainer=nnUNetTrainerSgCG)
    assert recorded(trainer)["sgcg"]["temperature"] == 0.2


def planned(**training):
    return start({"training": training}, trainer=nnUNetTrainerERM)


@pytest.mark.parametrize(("epochs", "every"), [(1, 1), (4, 1), (99, 1), (200, 4), (10_000, 50)])
def test_a_planned_training_resumes_from_its_latest_checkpoint_not_from_the_best(world, epochs, every):
    """nnU-Net's ``--c`` reads the best one, chosen on validation cases, if there is no latest one."""
    assert planned(epochs=epochs).save_every == every
    assert planned(seed=1).save_every == 20  # of nnU-Net's 1000 epochs
    assert start(trainer=nnUNetTrainerERM).save_every == 50


def test_two_planned_trainings_never_write_to_one_folder(world, monkeypatch):
    ran = []
    monkeypatch.setattr(nnUNetTrainer, "run_training", lambda self: ran.append(self))
    trainer, plain = planned(seed=1), start(trainer=nnUNetTrainerERM)
    with locked(Path(trainer.output_folder), "training"):
        with pytest.raises(DataError, match=r"Another training is running in .*fold_0\. Wait for it"):
            trainer.run_training()
        plain.run_training()  # as nnU-Net
    assert ran == [plain]
    trainer.run_training()
    assert ran == [plain, trainer]

    def unsupported(*_, **__):
        raise NotImplementedError

    monkeypatch.setattr(FileLock, "acquire", unsupported)
    trainer.run_training()  # on a file system without locks
    assert ran == [plain, trainer, trainer]
    with pytest.raises(DataError, match="has no locks"), locked(world, "benchmark"):
        pass
