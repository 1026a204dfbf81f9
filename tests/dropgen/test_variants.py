"""The ablations of DropGen in nnU-Net's trainer: training, inference, checkpoints, and the neutral setting."""

import pytest
import torch
from helpers import set_nnunets_folders
from on_noise import DATASET, initialized
from small_trainers import CPU, batch, planned, step

from nnunet_dg.dropgen import DropGen
from nnunet_dg.trainers import comparisons
from nnunet_dg.training.trainer import MethodsTrainer

VARIANTS = {
    "structured": {"masking": "structured"},
    "features": {"inputs": "features"},
    "squeeze-excitation": {"fusion": "squeeze-excitation", "p": 0.0},
    "range": {"p": [0.0, 0.75]},
    "annealed": {"p": [0.0, 0.75], "p_end": 0.1},
}
every_variant = pytest.mark.parametrize("variant", VARIANTS)


class Trainer(MethodsTrainer):
    methods = (DropGen(extractor="mind"),)


@pytest.fixture
def make(tmp_path, monkeypatch):
    set_nnunets_folders(monkeypatch, tmp_path)

    def make(settings, dims=3, channels=1):
        torch.manual_seed(0)
        content = planned(dims, channels) | {"nnunet_dg": {"dropgen": settings}}
        dataset = DATASET | {"channel_names": {str(i): "MRI" for i in range(channels)}}
        trainer = initialized(Trainer, content, CPU, "2d" if dims == 2 else "3d_fullres", dataset)
        trainer.prepare_training()
        return trainer

    return make


@every_variant
@pytest.mark.parametrize(("dims", "channels"), [(2, 1), (3, 3)])
def test_trains_and_predicts_without_chance(make, variant, dims, channels):
    trainer = make(VARIANTS[variant], dims, channels)
    assert all(torch.isfinite(torch.tensor(float(step(trainer, batch(trainer))["loss"]))) for _ in range(2))
    data = batch(trainer, seed=5)["data"]
    with torch.no_grad():
        first, second = (trainer.network.eval()(data)[0] for _ in range(2))
    assert torch.equal(first, second)


@every_variant
def test_a_resumed_training_equals_an_uninterrupted_one(make, variant, tmp_path):
    uninterrupted = make(VARIANTS[variant])
    step(uninterrupted, batch(uninterrupted, 0), 0)
    uninterrupted.save_checkpoint(str(tmp_path / "checkpoint.pth"))
    resumed = make(VARIANTS[variant])
    resumed.load_checkpoint(str(tmp_path / "checkpoint.pth"))
    resumed.prepare_training()
    for trainer in (uninterrupted, resumed):
        trainer.current_epoch = trainer.num_epochs - 1
        trainer.on_train_epoch_start()
        step(trainer, batch(trainer, 1), 1)
    for key, value in uninterrupted.network.state_dict().items():
        torch.testing.assert_close(resumed.network.state_dict()[key], value, rtol=1e-6, atol=1e-7, msg=key)


def test_without_features_and_dropping_a_step_equals_nnunets_bit_for_bit(make):
    class Plain(MethodsTrainer):
        methods = ()

    trainer = make({"inputs": "image", "p": 0.0})
    torch.manual_seed(0)
    plain = initialized(Plain, planned(), CPU)
    losses = [float(step(t, batch(t))["loss"]) for t in (trainer, plain)]
    assert losses[0] == losses[1]
    ours = trainer.network.state_dict()
    assert all(torch.equal(ours[f"network.{key}"], value) for key, value in plain.network.state_dict().items())


def test_the_trainers_of_ablations_have_their_settings():
    assert comparisons.nnUNetTrainerDropGen_Structured.methods == (DropGen(masking="structured"),)
    assert comparisons.nnUNetTrainerDropGen_FeaturesOnly.methods == (DropGen(inputs="features"),)
    assert comparisons.nnUNetTrainerDropGen_SqueezeExcite.methods == (DropGen(fusion="squeeze-excitation", p=0.0),)
