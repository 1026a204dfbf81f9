"""C2SDG: vectors of the specification, factors in weights, its terms, and export as plain nnU-Net."""

import copy
import json

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from on_noise import initialized
from plain_student import PlainStudent, a_batch
from small_trainers import CPU, batch, planned, step
from tiny_model import CONFIGURATION, DATASET, DATASET_JSON, plans
from torch import nn

from nnunet_dg.baselines.c2sdg import C2SDG, channel_shares, content_inputs, first_convolutions
from nnunet_dg.cli import main
from nnunet_dg.errors import SettingsError
from nnunet_dg.hooks import Tap
from nnunet_dg.method import Inputs, Step
from nnunet_dg.outside import Outside
from nnunet_dg.sgcg.mixup import random_amplitude_mixup
from nnunet_dg.trainers.baselines import nnUNetTrainerC2SDG

RESIDUAL = "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"


def test_hand_value_of_the_shares():
    shares = channel_shares(torch.tensor([[0.1, -0.2], [0.3, 0.05]]))
    torch.testing.assert_close(shares, torch.tensor([[0.119203, 0.075858], [0.880797, 0.924142]]), atol=1e-6, rtol=0)


def test_hand_value_of_the_exchanged_amplitude():
    """The result is clipped to the range of the image."""
    image, partner = torch.tensor([[[[0.0, 1, 2, 3]]]]), torch.tensor([[[[8.0, 0, 0, 0]]]])
    mixed = random_amplitude_mixup(image, partner, torch.zeros(1), 0)
    torch.testing.assert_close(mixed, torch.tensor([[[[0.5, 1.5, 2.5, 3.0]]]]))


@pytest.fixture
def make(tmp_path, monkeypatch):
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, str(tmp_path / name))

    def make(residual=False, dims=3):
        content = planned(dims)
        if residual:
            (configuration,) = content["configurations"].values()
            architecture = configuration["architecture"]
            architecture["network_class_name"] = RESIDUAL
            architecture["arch_kwargs"]["n_blocks_per_stage"] = architecture["arch_kwargs"].pop("n_conv_per_stage")
        torch.manual_seed(0)
        return initialized(nnUNetTrainerC2SDG, content, CPU, "2d" if dims == 2 else "3d_fullres")

    return make


@pytest.mark.parametrize(("residual", "dims"), [(False, 3), (True, 3), (False, 2)])
def test_factors_in_the_weights_have_the_effect_of_factors_on_the_features(make, residual, dims):
    network = make(residual, dims).network.double().eval()
    plain = make(residual, dims).network.double().eval()  # a copy would share the class that folding changes
    plain.load_state_dict(network.state_dict())
    C2SDG().fold_network(plain)
    assert not content_inputs(plain)
    x = torch.rand(1, 1, *[16] * dims, dtype=torch.float64)
    with torch.no_grad():
        assert torch.equal(network(x)[0], plain(x)[0])
    content = channel_shares(content_inputs(network)[0].prompt)[0]
    unchanged = copy.deepcopy(network)
    for each in content_inputs(unchanged):
        each.forward = lambda weight: weight
    assert not torch.allclose(network(x)[0], unchanged(x)[0])
    unchanged.encoder.stages[0].register_forward_hook(
        lambda module, inputs, output: output * content.reshape(-1, *[1] * dims)
    )
    torch.testing.assert_close(network(x)[0], unchanged(x)[0])


def test_a_residual_block_that_passes_its_input_on_is_refused():
    block = nn.Module()
    block.conv1, block.skip = nn.Conv2d(4, 4, 3), lambda x: x
    with pytest.raises(SettingsError, match="needs a convolution in the skip connection of the second encoder stage"):
        first_convolutions(block)


def test_prompt_and_projector_are_trained_and_the_term_leaves_the_features_alone(make):
    trainer = make()
    result = step(trainer, batch(trainer))
    assert set(result) == {
        "loss", "segmentation", "segmentation_amplitude", "segmentation_map", "content_and_style"
    }  # fmt: skip
    prompt = content_inputs(trainer.network)[0].prompt
    assert (prompt.grad != 0).any()
    assert all((parameter.grad != 0).any() for parameter in trainer.auxiliary.parameters())


class Student(PlainStudent):
    """A student whose first stage is its first layer."""

    def __init__(self, content=True):
        super().__init__()
        torch.manual_seed(0)
        first, second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 2, 1)
        network = nn.Module()
        network.encoder, network.decoder = nn.Module(), nn.Module()
        network.encoder.output_channels = [4]
        network.encoder.stages = nn.ModuleList([first, second])
        network.decoder.stages = nn.ModuleList([nn.Conv2d(4, 2, 1)])
        network.forward = lambda x: second(first(x).tanh())
        self.network = (
            C2SDG().build_network(lambda channels: network, Inputs(1, 1, (16, 16), Outside.nowhere(1), 2)).double()
        )
        self.first, self.widths, self.patch_size = first, [4], (16, 16)
        self.case_domains = {"a": 0, "b": 1}

    def tap(self, stage):
        self.taps.append(Tap(self.first, "output"))
        return self.taps[-1]


def a_training(**settings):
    student = Student()
    return student, C2SDG(**settings).training_module(student).double()


def the_batch():
    torch.manual_seed(1)
    return a_batch(torch.rand(2, 1, 16, 16, dtype=torch.float64), torch.randint(0, 2, (2, 1, 16, 16)).float())


def test_every_term_has_the_value_of_its_definition():
    student, training = a_training()
    batch = the_batch()
    terms = training.losses(Step(student, batch, 0))
    own, amplitude, mapped = sorted(student.passes, key=lambda data: not torch.equal(data, batch.data))
    names = ("segmentation", "segmentation_amplitude", "segmentation_map")
    for name, data in zip(names, (own, amplitude, mapped), strict=True):
        torch.testing.assert_close(terms[name], student.loss(student.network(data), batch.target))
    shares = channel_shares(content_inputs(student.network)[0].prompt)
    expected = 0
    for sign, share in zip((1, -1), shares, strict=True):
        vectors = []
        for data in (own, amplitude, mapped):
            hidden = training.projector.convolution(student.first(data) * share.reshape(4, 1, 1))
            pooled = nn.functional.leaky_relu(hidden).mean((2, 3))
            vector = training.projector.linear(pooled)
            vectors.append(vector / vector.norm(dim=1, keepdim=True))
        expected = expected + sign * sum((vectors[0] - other).abs().mean() for other in vectors[1:])
    torch.testing.assert_close(terms["content_and_style"], expected)
    student.first.zero_grad()
    terms["content_and_style"].backward()
    assert student.first.weight.grad is None


def test_versions_keep_the_range_and_change_only_images():
    _, training = a_training()
    batch = the_batch()
    for version in (training.exchanged(batch), training.mapped(batch)):
        assert not torch.allclose(version.data, batch.data)
        assert (version.data.amax((2, 3)) <= batch.data.amax((2, 3)) + 1e-6).all()
        assert (version.data.amin((2, 3)) >= batch.data.amin((2, 3)) - 1e-6).all()
        assert torch.equal(version.target, batch.target)


def test_a_contrast_of_weight_0_is_not_computed_and_needs_no_projector():
    student, training = a_training(contrast=0)
    assert set(training.losses(Step(student, the_batch(), 0))) == set(training.weights(0))
    assert not list(training.parameters())


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"temperature": 0}, "temperature must be a number in"), ({"contrast": -1}, "contrast must be a number in")],
)
def test_settings_are_refused_by_name(settings, message):
    with pytest.raises(SettingsError, match=message):
        C2SDG(**settings)


def test_an_exported_model_is_nnunets_own_with_the_same_logits(tmp_path, monkeypatch, make, capsys):
    monkeypatch.setattr("nnunetv2.paths.nnUNet_results", str(tmp_path / "results"))
    monkeypatch.setattr("nnunetv2.utilities.file_path_utilities.nnUNet_results", str(tmp_path / "results"))
    content = plans()
    architecture = content["configurations"][CONFIGURATION]["architecture"]["arch_kwargs"]
    architecture |= {"n_stages": 3, "features_per_stage": [4, 6, 8], "n_conv_per_stage": [1] * 3}
    architecture |= {"kernel_sizes": [[3] * 3] * 3, "strides": [[1] * 3, [2] * 3, [2] * 3]}
    architecture["n_conv_per_stage_decoder"] = [1, 1]
    trainer = initialized(nnUNetTrainerC2SDG, content, CPU, CONFIGURATION, DATASET_JSON)
    step(trainer, batch(trainer))
    folder = tmp_path / "results" / DATASET / f"nnUNetTrainerC2SDG__nnUNetPlans__{CONFIGURATION}"
    (folder / "fold_0").mkdir(parents=True)
    trainer.save_checkpoint(str(folder / "fold_0" / "checkpoint_final.pth"))
    recorded = json.dumps(trainer.plans_manager.plans)
    (folder / "plans.json").write_text(recorded)
    (folder / "dataset.json").write_text(json.dumps(DATASET_JSON))
    output = tmp_path / "model"
    options = ["-d", DATASET, "-c", CONFIGURATION, "-tr", "nnUNetTrainerC2SDG", "-f", "0", "-o", str(output)]
    assert main(["export", *options]) == 0, capsys.readouterr().err  # it refuses other logits
    exported = torch.load(output / "fold_0" / "checkpoint_final.pth", weights_only=False)
    assert not any("parametrizations" in name for name in exported["network_weights"])
    assert exported["trainer_name"] == "nnUNetTrainer"
    optimizer = exported["optimizer_state"]
    assert optimizer["state"] == {}
    resumed = initialized(
        nnUNetTrainer, json.loads((output / "plans.json").read_text()), CPU, CONFIGURATION, DATASET_JSON
    )
    resumed.load_checkpoint(str(output / "fold_0" / "checkpoint_final.pth"))
