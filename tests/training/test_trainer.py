"""What every trainer of ours adds to nnU-Net's, whatever its method: settings of folds, plans, padding, warnings."""

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
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from on_noise import plans as plans_manager

from nnunet_dg.errors import DataError, SettingsError, UserError
from nnunet_dg.outside import Outside
from nnunet_dg.tinymig import DimensionError
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
    """nnU-Net's three folders, empty, in this process."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    return tmp_path


def plans(section=None, scheme="ZScoreNormalization", masked=False):
    """Of a small network, with a patch of 16 along each axis."""
    content = deepcopy(plans_manager(16).plans) | ({"nnunet_dg": section} if section else {})
    configuration = content["configurations"]["3d_fullres"]
    configuration |= {"normalization_schemes": [scheme], "use_mask_for_norm": [masked]}
    configuration["architecture"]["arch_kwargs"]["features_per_stage"] = [2, 4, 8]
    return content


def build(section=None, fold=0, trainer=nnUNetTrainerDropGen_MIND, **normalization):
    content = plans(section, **normalization) | {"continue_training": False}
    return trainer(content, "3d_fullres", fold, DATASET, CPU)


def start(section=None, fold=0, trainer=nnUNetTrainerDropGen_MIND):
    """As far as nnU-Net goes before the first step, without data."""
    return initialize(build(section, fold, trainer))


def initialize(made):
    folder = Path(made.preprocessed_dataset_folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "case_0.b2nd").touch()
    made.initialize()
    return made


def save(trainer):
    trainer.save_checkpoint(f"{trainer.output_folder}/checkpoint_final.pth")


def recorded(trainer):
    return json.loads(Path(trainer.output_folder, FILE).read_text())


def test_plans_that_are_given_stay_as_they_are_and_serve_several_trainers(world):
    given = plans() | {"continue_training": False}
    before = deepcopy(given)
    first = nnUNetTrainerDropGen_p025(given, "3d_fullres", 0, DATASET, CPU)
    second = nnUNetTrainerDropGen_p075(given, "3d_fullres", 0, DATASET, CPU)
    assert given == before
    assert (first.settings("dropgen").p, second.settings("dropgen").p) == (0.25, 0.75)
    written = first.my_init_kwargs["plans"]  # what a checkpoint holds
    assert written["nnunet_dg"]["dropgen"]["p"] == 0.25
    assert written is first.plans_manager.plans
    assert "continue_training" not in written


def test_settings_are_on_disk_before_the_first_step(world):
    made = start({"dropgen": {"p": 0.25}})
    assert recorded(made)["dropgen"]["p"] == 0.25


def test_another_fold_with_other_settings_is_refused_before_there_is_any_checkpoint(world):
    start({"dropgen": {"p": 0.25}})
    start({"dropgen": {"p": 0.25}}, fold=1)
    said = r"fold_0 in .* was started with other settings: p was 0\.25 and is 0\.75.* start fold_0 again with the new"
    with pytest.raises(SettingsError, match=said):
        build({"dropgen": {"p": 0.75}}, fold=2)


def test_a_training_that_is_refused_leaves_no_settings(world):
    with pytest.raises(DimensionError):
        start({"tinymig": {"teacher": "samvit_base_patch16.sa1b"}}, trainer=nnUNetTrainerTinyMIG)  # 2-D
    build({"tinymig": {"teacher": "random:anatomix"}}, fold=1, trainer=nnUNetTrainerTinyMIG)


def test_a_training_whose_weights_are_refused_leaves_no_settings(world):
    made = start(
        {"dropgen": {"extractor": "anatomix", "weights": str(world / "nowhere.pth")}}, trainer=nnUNetTrainerDropGen
    )
    assert Path(made.output_folder, FILE).exists()
    with pytest.raises(UserError):
        train_start(made)
    assert not Path(made.output_folder, FILE).exists()
    build({"dropgen": {"extractor": "mind"}}, fold=1, trainer=nnUNetTrainerDropGen)


def test_a_refused_start_leaves_the_settings_of_a_trained_fold(world):
    save(start({"dropgen": {"p": 0.25}}))
    again = start({"dropgen": {"p": 0.75}})
    with pytest.raises(ValueError, match="splits"):
        again.on_train_start()  # there is one case only
    assert recorded(again)["dropgen"]["p"] == 0.25


def test_of_two_folds_started_at_once_with_other_settings_the_later_is_refused(world):
    first, second = (build({"dropgen": {"p": p}}, fold) for fold, p in enumerate((0.25, 0.75)))
    initialize(first)
    with pytest.raises(SettingsError, match=r"fold_0 in .* was started with other settings: p was 0\.25 and is 0\.75"):
        initialize(second)
    assert not Path(second.output_folder, FILE).exists()
    assert recorded(first)["dropgen"]["p"] == 0.25
    build({"dropgen": {"p": 0.25}}, fold=2)


def test_a_trained_fold_that_starts_again_beside_a_new_one_is_refused_and_keeps_its_settings(world):
    save(start({"dropgen": {"p": 0.25}}))
    again = start({"dropgen": {"p": 0.75}})
    other = start({"dropgen": {"p": 0.25}}, fold=1)
    with pytest.raises(SettingsError, match=r"fold_1 in .* was started with other settings"):
        train_start(again)
    assert recorded(again)["dropgen"]["p"] == 0.25
    assert not Path(other.output_folder_base, "plans.json").exists()  # nor is there one with the refused settings


def test_a_fold_renamed_in_place_no_longer_counts(world):
    made = start({"dropgen": {"p": 0.25}})
    save(made)
    Path(made.output_folder).rename(Path(made.output_folder_base, "fold_0_old"))
    build({"dropgen": {"p": 0.75}}, fold=1)
    start({"dropgen": {"p": 0.75}}, fold="all")
    with pytest.raises(SettingsError, match="fold_all in"):
        build({"dropgen": {"p": 0.25}}, fold=1)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_fold_with_any_checkpoint_is_trained(world, name):
    made = start({"dropgen": {"p": 0.25}})
    made.save_checkpoint(f"{made.output_folder}/{name}")
    (Path(made.output_folder) / FILE).unlink()
    with pytest.raises(SettingsError, match=r"fold_0 in .* was trained with other settings: p was 0\.25 and is 0\.75"):
        build({"dropgen": {"p": 0.75}}, fold=1)


@pytest.mark.parametrize("state", ["whole", "missing", "cut off", "a list", "without the section"])
def test_a_trained_fold_without_a_file_of_its_own_is_compared_by_its_checkpoint(world, state):
    """As development versions of before left it."""
    made = start({"dropgen": {"p": 0.25}})
    made.logger.local_logger.my_fantastic_logging["train_losses"] = [np.float32(0.5), np.float64(0.5)]
    save(made)
    folder = Path(made.output_folder)
    (folder / FILE).unlink()
    written = json.dumps(made.plans_manager.plans)
    contents = {"whole": written, "cut off": written[:300], "a list": "[]", "without the section": json.dumps(plans())}
    if state in contents:
        (folder.parent / "plans.json").write_text(contents[state])
    build({"dropgen": {"p": 0.25}}, fold=1)
    with pytest.raises(SettingsError, match=r"fold_0 in .* p was 0\.25 and is 0\.75"):
        build({"dropgen": {"p": 0.75}}, fold=1)


def test_a_trained_fold_of_which_nothing_can_be_read_is_named(world):
    made = start()
    (Path(made.output_folder) / FILE).unlink()
    (Path(made.output_folder) / "checkpoint_final.pth").write_bytes(b"cut off")
    with pytest.raises(DataError, match=r"with which settings .*fold_0 was trained: .*checkpoint_final.*move the fold"):
        build(fold=1)


def test_a_checkpoint_that_would_run_code_is_not_run(world):
    made = start()
    folder, marker = Path(made.output_folder), world / "ran"
    (folder / FILE).unlink()

    class Call:
        def __reduce__(self):
            return open, (str(marker), "w")

    torch.save({"init_args": {"plans": Call()}}, folder / "checkpoint_final.pth")
    with pytest.raises(DataError, match="Nothing says with which settings"):
        build(fold=1)
    assert not marker.exists()


def test_the_only_fold_may_be_trained_from_scratch_with_other_settings_and_then_counts(world):
    save(start({"dropgen": {"p": 0.25}}))
    again = start({"dropgen": {"p": 0.75}})
    assert recorded(again)["dropgen"]["p"] == 0.25  # until it trains: `--c` may yet be refused
    train_start(again)
    assert recorded(again)["dropgen"]["p"] == 0.75
    with pytest.raises(SettingsError, match=r"p was 0\.75 and is 0\.25"):
        build({"dropgen": {"p": 0.25}}, fold=1)


def test_a_fold_is_not_trained_from_scratch_with_other_settings_than_its_siblings(world):
    for fold in (0, 1):
        save(start({"dropgen": {"p": 0.25}}, fold))
    with pytest.raises(SettingsError, match=r"fold_1 in .* p was 0\.25 and is 0\.75.* move that fold away"):
        build({"dropgen": {"p": 0.75}}, fold=0)


def test_a_checkpoint_is_loaded_under_the_argument_name_of_any_release(world):
    made = start({"dropgen": {"p": 0.25}})
    save(made)
    resumed = build({"dropgen": {"p": 0.25}})
    name = list(inspect.signature(nnUNetTrainer.load_checkpoint).parameters)[1]
    resumed.load_checkpoint(**{name: f"{made.output_folder}/checkpoint_final.pth"})
    for key, value in made.network.state_dict().items():
        assert torch.equal(resumed.network.state_dict()[key], value)


def test_refused_resuming_leaves_the_record_of_the_fold(world):
    made = start({"dropgen": {"p": 0.25}})
    save(made)
    resumed = build({"dropgen": {"p": 0.75}})
    with pytest.raises(SettingsError, match=r"This checkpoint was trained with other settings: p was 0\.25"):
        resumed.load_checkpoint(f"{made.output_folder}/checkpoint_final.pth")
    assert recorded(made)["dropgen"]["p"] == 0.25


def test_other_settings_are_named_where_the_weights_do_not_fit_either(world):
    made = start({"dropgen": {"p": 0.25}})
    save(made)
    resumed = build({"dropgen": {"p": 0.25, "inputs": "image"}})  # a network with fewer input channels
    with pytest.raises(SettingsError, match=r"This checkpoint was trained with other settings: inputs was "):
        resumed.load_checkpoint(f"{made.output_folder}/checkpoint_final.pth")


def test_a_training_that_keeps_no_checkpoints_leaves_no_settings(world):
    made = build()
    made.disable_checkpointing = True
    train_start(made)
    assert not (Path(made.output_folder) / FILE).exists()


def write_preprocessed(made, shape, value=5.0, masked=False):
    """Small preprocessed cases, none of whose voxels is zero, except outside a mask."""
    folder = Path(made.preprocessed_dataset_folder)
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


def train_start(made):
    """nnU-Net's, which loads the first batches."""
    write_preprocessed(made, (20, 20, 20))
    made.on_train_start()


def batches(made, number=12):
    """From nnU-Net's own data loader, in this process."""
    if not made.was_initialized:
        made.initialize()
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(0)
    loader, _ = made.get_dataloaders()
    return torch.cat([next(loader)["data"] for _ in range(number)])


SHAPE = (12, 20, 24)  # the patch is 16 along each axis


def test_padding_is_exactly_zero_in_training_batches(world):
    """The image is 5 or so everywhere: what is far below is padding, and has to be zero, not about zero."""
    made = build()
    write_preprocessed(made, SHAPE)
    data = batches(made)
    zero = data == 0
    assert zero.flatten(1).any(1).all()  # every patch is longer than the image
    assert zero.float().mean() > 0.2
    assert ((data.abs() < 1) & ~zero).float().mean() < 0.01  # interpolation between image and padding is all there is
    outside = Outside.of(made.configuration_manager).voxels(data)
    assert torch.equal(outside, zero[:, 0])


def test_targets_are_nnunets_where_padding_is_kept(world):
    """Labels and nothing else, though padding is marked in them for a while."""
    made = build()
    write_preprocessed(made, SHAPE)
    initialize(made)
    loader, _ = made.get_dataloaders()
    for _ in range(4):
        assert set(torch.cat([t.flatten() for t in next(loader)["target"]]).tolist()) <= {0, 1}


def test_what_is_sampled_from_beyond_the_patch_is_exactly_zero():
    """Patches without any padding of their own, 1.5 times as much of which is seen, and noise after that."""
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


def test_nnunets_own_trainer_is_untouched_and_does_not_keep_padding(world):
    made = build(trainer=nnUNetTrainer)
    write_preprocessed(made, SHAPE)
    data = batches(made)
    near = data.abs() < 1
    assert (near & (data != 0)).float().mean() > 0.02  # the fault this is about
    before = made.get_training_transforms
    assert before is nnUNetTrainer.get_training_transforms


def test_away_from_the_padding_batches_are_nnunets(world):
    """The same random numbers, the same voxels."""
    ours, theirs = (build(trainer=t) for t in (nnUNetTrainerDropGen_MIND, nnUNetTrainer))
    write_preprocessed(ours, SHAPE)
    made, plain = batches(ours), batches(theirs)
    image = made != 0
    assert torch.allclose(made[image], plain[image], atol=1e-4)  # nnU-Net blurs by what is faster at the moment
    assert (plain[~image] != 0).any()


def test_the_papers_augmentation_keeps_padding_too(world):
    made = build(trainer=nnUNetTrainerDropGen_Paper)
    made.initialize = lambda: None  # its extractor needs weights, its data do not
    made.dataset_class, made.was_initialized = None, True
    made._set_batch_size_and_oversample()
    write_preprocessed(made, SHAPE)
    data = batches(made)
    assert (data == 0).flatten(1).any(1).all()
    assert (data == 0).float().mean() > 0.2


def test_outside_a_mask_is_zero_as_nnunet_leaves_it(world):
    made = build(masked=True)
    write_preprocessed(made, (16, 20, 24), masked=True)
    data = batches(made)
    assert torch.equal(Outside.of(made.configuration_manager).voxels(data), (data == 0)[:, 0])
    assert ((data.abs() < 1) & (data != 0)).float().mean() < 0.02


def test_where_zero_is_an_ordinary_intensity_nothing_is_changed(world):
    both = (nnUNetTrainerDropGen_MIND, nnUNetTrainer)
    ours, theirs = (build(scheme="NoNormalization", trainer=trainer) for trainer in both)
    write_preprocessed(ours, SHAPE)
    assert torch.allclose(batches(ours), batches(theirs), atol=1e-4)


@pytest.mark.parametrize("scheme", ["CTNormalization", "ZScoreNormalization", "AnyModalityNormalization"])
def test_what_a_training_logs_before_it_starts(world, scheme):
    made = build({"sgcg": {"temperature": 0.2}}, scheme=scheme)
    train_start(made)
    text = Path(made.log_file).read_text()
    assert text.count('does not use plans["nnunet_dg"]["sgcg"]') == 1
    assert text.count("WARNING: CTNormalization clips channel MRI") == (scheme == "CTNormalization")
    assert ("plan with nnUNetPlannerAnyModality" in text) == (scheme == "CTNormalization")


def test_trainers_with_auxiliary_modules_write_their_settings_too(world):
    made = start({"sgcg": {"temperature": 0.2}}, trainer=nnUNetTrainerSgCG)
    assert recorded(made)["sgcg"]["temperature"] == 0.2
