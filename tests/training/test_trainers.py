"""The trainer classes in this process: their settings and networks."""

import pytest
import torch
from helpers import REPOSITORY
from on_noise import plans
from torch import nn

from nnunet_dg.dropgen import ChannelDropout, DropGenSettings
from nnunet_dg.sgcg import SgCGSettings
from nnunet_dg.tinymig import TinyMIGSettings
from nnunet_dg.tinymig.teachers import DEFAULT_TEACHERS
from nnunet_dg.trainers.nnUNetTrainerDropGen import (
    nnUNetTrainerDropGen,
    nnUNetTrainerDropGen_MIND,
    nnUNetTrainerDropGen_p025,
    nnUNetTrainerDropGen_p075,
    nnUNetTrainerDropGen_Synthetic,
)
from nnunet_dg.trainers.nnUNetTrainerDropGen_Paper import nnUNetTrainerDropGen_Paper
from nnunet_dg.trainers.nnUNetTrainerDropGen_Xepochs import nnUNetTrainerDropGen_MIND_20epochs
from nnunet_dg.trainers.nnUNetTrainerDropGenSgCG import nnUNetTrainerDropGenSgCG
from nnunet_dg.trainers.nnUNetTrainerDropGenTinyMIG import nnUNetTrainerDropGenTinyMIG
from nnunet_dg.trainers.nnUNetTrainerSgCG import nnUNetTrainerSgCG
from nnunet_dg.trainers.nnUNetTrainerTinyMIG import (
    nnUNetTrainerTeacher,
    nnUNetTrainerTinyMIG,
    nnUNetTrainerTinyMIG_DINOv2,
    nnUNetTrainerTinyMIG_Paper,
)


@pytest.mark.parametrize(
    ("trainer", "settings"),
    [
        (nnUNetTrainerDropGen, DropGenSettings(extractor="anatomix", layer="penultimate", p=0.5)),
        (nnUNetTrainerDropGen_p025, DropGenSettings(extractor="anatomix", p=0.25)),
        (nnUNetTrainerDropGen_p075, DropGenSettings(extractor="anatomix", p=0.75)),
        (nnUNetTrainerDropGen_MIND, DropGenSettings(extractor="mind", p=0.5)),
        (nnUNetTrainerDropGen_Synthetic, DropGenSettings(extractor="synthetic", p=0.5)),
        (nnUNetTrainerDropGen_MIND_20epochs, DropGenSettings(extractor="mind", p=0.5)),
        (nnUNetTrainerDropGen_Paper, DropGenSettings(extractor="anatomix", p=0.5, image_scaling="minmax")),
    ],
)
def test_a_released_name_keeps_its_meaning(trainer, settings):
    assert trainer.methods == (settings,)


@pytest.mark.parametrize("trainer", [nnUNetTrainerSgCG, nnUNetTrainerDropGenSgCG])
def test_a_released_name_of_sgcg_keeps_its_meaning(trainer):
    assert trainer.methods[-1] == SgCGSettings(
        contrast=0.1, temperature=0.1, voxels_per_class=4096, start_epoch=None, memory=250, max_count=None,
        amplitude_mixup=True, half_width=0.1, consistency=0.5, restoration=0.1, balanced_batches=True,
    )  # fmt: skip
    assert trainer.methods[:-1] == ((DropGenSettings(),) if trainer is nnUNetTrainerDropGenSgCG else ())


@pytest.mark.parametrize(
    ("trainer", "teacher"),
    [
        (nnUNetTrainerTinyMIG, None),
        (nnUNetTrainerTinyMIG_Paper, None),
        (nnUNetTrainerTinyMIG_DINOv2, "vit_base_patch14_dinov2.lvd142m"),
        (nnUNetTrainerDropGenTinyMIG, None),
    ],
)
def test_a_released_name_of_tinymig_keeps_its_meaning(trainer, teacher):
    assert trainer.methods[-1] == TinyMIGSettings(
        teacher=teacher, weights=None, teacher_scaling=None, adapter_width=None, alignment_scale="free",
        loss_weights=(1, 1, 0.5, 0.5, 0.5), statistics="ufdm", divergence="kl", ablate=(),
    )  # fmt: skip
    assert DEFAULT_TEACHERS == {2: "samvit_base_patch16.sa1b", 3: "anatomix"}
    assert trainer.methods[:-1] == ((DropGenSettings(),) if trainer is nnUNetTrainerDropGenTinyMIG else ())


def test_the_teacher_as_a_model_has_tinymigs_default_teacher():
    (method,) = nnUNetTrainerTeacher.methods
    default = TinyMIGSettings()
    names = ("teacher", "weights", "teacher_scaling", "architecture", "adapter_width")
    assert {name: getattr(method, name) for name in names} == {name: getattr(default, name) for name in names}


@pytest.mark.parametrize(("image_channels", "previous_stage"), [(1, 0), (4, 0), (1, 2), (2, 3)])
def test_previous_stage_channels_of_a_cascade_are_not_image_channels(image_channels, previous_stage):
    manager = plans(16)
    configuration = manager.get_configuration("3d_fullres")
    configuration.configuration["normalization_schemes"] = ["ZScoreNormalization"] * image_channels
    configuration.configuration["use_mask_for_norm"] = [True] * image_channels
    network = nnUNetTrainerDropGen_MIND.build_network_architecture(
        manager, configuration, image_channels + previous_stage, 3, True
    )
    assert network.num_image_channels == image_channels
    first = next(network.network.parameters())
    assert first.shape[1] == image_channels * (1 + 12) + previous_stage
    assert isinstance(network.dropout, ChannelDropout)
    assert network.dropout.p == 0.5


@pytest.mark.parametrize("trainer", [nnUNetTrainerDropGen, nnUNetTrainerDropGenSgCG, nnUNetTrainerDropGen_Paper])
def test_two_dimensions_are_refused_with_the_message_in_the_table(trainer):
    manager = plans(16)
    configuration = manager.get_configuration("3d_fullres")
    configuration.configuration["patch_size"] = [16, 16]
    with pytest.raises(NotImplementedError, match="Train with nnUNetTrainerDropGen_MIND") as refusal:
        trainer.build_network_architecture(manager, configuration, 1, 3)
    table = (REPOSITORY / "docs" / "reference" / "capabilities.md").read_text(encoding="utf-8")
    assert f"refused: “NotImplementedError: {refusal.value}”" in table


def test_the_papers_optimizer_is_adamw():
    trainer = nnUNetTrainerDropGen_Paper.__new__(nnUNetTrainerDropGen_Paper)
    trainer.network, trainer.initial_lr, trainer.weight_decay = nn.Linear(1, 1), 2e-4, 1e-4
    trainer.num_iterations_per_epoch = trainer.num_epochs = 3
    optimizer, _ = trainer.configure_optimizers()
    assert type(optimizer) is torch.optim.AdamW
