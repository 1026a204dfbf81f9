"""The adapted teacher as the model itself."""

import pytest
import torch
from on_noise import initialized
from small_trainers import CPU, batch, planned, step

from nnunet_dg.errors import SettingsError
from nnunet_dg.method import Inputs
from nnunet_dg.outside import Outside
from nnunet_dg.tinymig.teacher_model import Teacher, TeacherNetwork
from nnunet_dg.tinymig.teachers import fingerprint
from nnunet_dg.trainers.nnUNetTrainerTinyMIG import nnUNetTrainerTeacher

RANDOM = {3: "random:anatomix", 2: "random:vit_tiny_patch16_224"}


@pytest.fixture
def make(tmp_path, monkeypatch):
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, str(tmp_path / name))

    def make(dims=3, load=True):
        content = planned(dims) | {"nnunet_dg": {"teacher": {"teacher": RANDOM[dims]}}}
        torch.manual_seed(0)
        trainer = initialized(nnUNetTrainerTeacher, content, CPU, "2d" if dims == 2 else "3d_fullres")
        if load:
            trainer.prepare_training()
        return trainer

    return make


@pytest.mark.parametrize("dims", [2, 3])
def test_the_model_is_the_teachers_decoder_and_everything_but_the_frozen_model_learns(make, dims):
    trainer = make(dims)
    network = trainer.network
    assert type(network) is TeacherNetwork
    assert not trainer.enable_deep_supervision
    data = batch(trainer)["data"]
    with torch.no_grad():
        torch.testing.assert_close(network(data), network.teaching(network.outside.to_minimum(data)).logits)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    for seed in range(2):
        step(trainer, batch(trainer, seed), seed)
    changed = {key for key, value in network.state_dict().items() if not torch.equal(value, before[key])}
    assert not any(key.startswith("frozen.") for key in changed)
    for part in ("teaching.teacher.adapters", "teaching.reprogramming", "teaching.decoder"):
        assert any(key.startswith(part) for key in changed)
    assert not any(module.training for module in network.frozen.modules())
    assert network.training


@pytest.mark.parametrize("dims", [2, 3])
def test_a_checkpoint_has_all_weights_and_predicting_needs_no_file(make, dims):
    trainer = make(dims)
    step(trainer, batch(trainer))
    other = make(dims, load=False).network
    data = batch(trainer, seed=5)["data"]
    with pytest.raises(RuntimeError, match="The teacher has no weights yet"):
        other(data)
    for parameter in other.frozen.parameters():
        parameter.zero_()
    other.load_state_dict(trainer.network.state_dict())
    assert fingerprint(other.frozen) == int(other.teaching.teacher.fingerprint) != 0
    with torch.no_grad():
        assert torch.equal(other.eval()(data), trainer.network.eval()(data))


def test_a_resumed_training_takes_the_weights_of_the_checkpoint(make, tmp_path, capsys):
    trainer = make()
    trainer.save_checkpoint(str(tmp_path / "checkpoint.pth"))
    resumed = make(load=False)
    resumed.load_checkpoint(str(tmp_path / "checkpoint.pth"))
    resumed.prepare_training()
    assert "Teacher: weights from the checkpoint" in capsys.readouterr().out
    assert fingerprint(resumed.network.frozen) == fingerprint(trainer.network.frozen)


def test_the_teacher_sees_the_minimum_in_padding(make):
    trainer, shown = make(), []
    trainer.network.outside = Outside.zeros([False])
    trainer.network.teaching.register_forward_pre_hook(lambda _, inputs: shown.append(inputs[0]))
    data = batch(trainer)["data"]
    data[:, :, :4] = 0
    trainer.network(data)
    low = data.amin((2, 3, 4), keepdim=True)
    assert torch.equal(shown[0][:, :, :4], low.expand(-1, -1, 4, 16, 16))
    assert torch.equal(shown[0][:, :, 4:], data[:, :, 4:])


def test_the_second_stage_of_a_cascade_and_a_network_without_encoder_are_refused(make):
    network = make().network
    inputs = {"image_channels": 1, "patch_size": (16, 16, 16), "outside": network.outside, "outputs": 3}
    method = Teacher(teacher="random:anatomix")
    with pytest.raises(SettingsError, match="segmentation of a cascade's previous stage as well"):
        method.build_network(lambda channels: network, Inputs(channels=3, **inputs))
    with pytest.raises(SettingsError, match="no encoder whose widths the teacher could keep"):
        method.build_network(lambda channels: torch.nn.Identity(), Inputs(channels=1, **inputs))
