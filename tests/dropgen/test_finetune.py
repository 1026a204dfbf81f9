"""Fine-tuning anatomix: its features with published weights, what is frozen, and training by nnU-Net's trainer."""

import pytest
import torch
from helpers import set_nnunets_folders
from on_noise import initialized
from plain_anatomix import PlainAnatomix, random_weights
from small_trainers import CPU, batch, planned, step
from torch import nn

from nnunet_dg.dropgen.finetune import AnatomixFinetune, AnatomixSegmenter
from nnunet_dg.errors import SettingsError
from nnunet_dg.extractors.anatomix_unet import AnatomixUNet, repeated_for_channels
from nnunet_dg.extractors.weights import WeightsError
from nnunet_dg.outside import Outside
from nnunet_dg.training.trainer import MethodsTrainer


class Trainer(MethodsTrainer):
    methods = (AnatomixFinetune(),)


@pytest.fixture
def make(tmp_path, monkeypatch):
    set_nnunets_folders(monkeypatch, tmp_path)

    def make(channels=1, **settings):
        torch.manual_seed(0)
        content = planned(channels=channels) | {"nnunet_dg": {"anatomix_finetune": settings}}
        return initialized(Trainer, content, CPU)

    return make


def loaded(weights, **options):
    network = AnatomixUNet(**options)
    network.load_published(weights)
    return network


def test_hand_value_of_a_repeated_kernel():
    """Example FT-1: a kernel (1, -2, 0.5) and an image (1, 2, 4) in one and in both of two channels."""
    kernel, image = torch.tensor([[[1.0, -2.0, 0.5]]]), torch.tensor([[[1.0, 2.0, 4.0]]])
    convolve = nn.functional.conv1d
    assert convolve(image, kernel).item() == convolve(image.repeat(1, 2, 1), repeated_for_channels(kernel, 2)).item()
    assert convolve(image, kernel).item() == -1


def test_with_published_weights_it_computes_the_features_of_the_published_network(anatomix_weights):
    torch.manual_seed(0)
    image = torch.rand(2, 1, 32, 48, 32)
    expected = PlainAnatomix(anatomix_weights)(image)["final"]
    torch.testing.assert_close(loaded(anatomix_weights).eval()(image), expected, rtol=1e-4, atol=1e-4)


def test_equal_image_channels_give_the_features_of_one(anatomix_weights):
    image = torch.rand(1, 1, 32, 32, 32).double()
    one, three = (loaded(anatomix_weights, image_channels=n).eval().double() for n in (1, 3))
    torch.testing.assert_close(three(image.repeat(1, 3, 1, 1, 1)), one(image), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("spatial", [(32, 32, 32), (8, 40, 33)])
def test_every_patch_size_is_accepted_and_all_weights_are_trained(spatial):
    network = AnatomixUNet(frozen_encoder=False).train()
    features = network(torch.rand(2, 1, *spatial))
    assert features.shape == (2, 16, *spatial)
    (features * torch.randn_like(features)).sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad.abs().sum() > 0, name


def test_a_frozen_encoder_keeps_its_weights_and_statistics(make):
    trainer = make(train="decoder", initial="random")
    before = {key: value.clone() for key, value in trainer.network.state_dict().items()}
    step(trainer, batch(trainer))
    changed = {key for key, value in trainer.network.state_dict().items() if not torch.equal(value, before[key])}
    assert {key for key in before if key.startswith("anatomix.encoder.")}.isdisjoint(changed)
    trained = {key for key in before if not key.startswith("anatomix.encoder.")}
    assert trained == changed
    encoder = trainer.network.anatomix.encoder
    assert not any(module.training for module in encoder.modules())
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(trainer.network).train()  # as nnU-Net does on several GPUs
    assert not any(module.training for module in synced.anatomix.encoder.modules())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


def test_without_freezing_the_encoder_and_its_statistics_are_trained(make):
    trainer = make(initial="random")
    before = {key: value.clone() for key, value in trainer.network.state_dict().items()}
    step(trainer, batch(trainer))
    assert all(not torch.equal(value, before[key]) for key, value in trainer.network.state_dict().items())


def test_the_image_is_scaled_and_the_previous_stage_enters_the_last_convolution():
    torch.manual_seed(0)
    network = AnatomixSegmenter(AnatomixUNet(), 2, 3, Outside((True,), (True,))).eval()
    x = torch.randn(1, 3, 16, 16, 16)
    x[:, 0, :4] = 0  # outside the mask, which becomes black
    image = x[:, :1].clone()
    image[:, :, :4] = image.min()
    image = (image - image.min()) / (image.max() - image.min())
    features = torch.cat([network.anatomix(image), x[:, 1:]], 1)
    torch.testing.assert_close(network(x), network.head(features))


def test_published_weights_are_loaded_when_a_training_starts_and_not_when_it_resumes(make, tmp_path):
    torch.save(random_weights(seed=1), tmp_path / "anatomix.pth")
    trainer = make(weights=str(tmp_path / "anatomix.pth"))
    trainer.prepare_training()
    expected = loaded(random_weights(seed=1)).state_dict()
    assert all(torch.equal(trainer.network.anatomix.state_dict()[key], value) for key, value in expected.items())
    step(trainer, batch(trainer))
    trainer.save_checkpoint(str(tmp_path / "checkpoint.pth"))
    (tmp_path / "anatomix.pth").unlink()
    resumed = make(weights=str(tmp_path / "anatomix.pth"))
    resumed.load_checkpoint(str(tmp_path / "checkpoint.pth"))
    resumed.prepare_training()
    state = resumed.network.state_dict()
    assert all(torch.equal(state[key], value) for key, value in trainer.network.state_dict().items())
    with pytest.raises(WeightsError, match="There is no file"):
        make(weights=str(tmp_path / "anatomix.pth")).prepare_training()


def test_weights_of_another_network_are_refused(make, tmp_path):
    torch.save(random_weights("anatomix-dev"), tmp_path / "dev.pth")
    with pytest.raises(WeightsError, match=r"dev\.pth does not match extractor 'anatomix'.*anatomix-dev\.pth"):
        make(weights=str(tmp_path / "dev.pth")).prepare_training()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train": "head"}, "train must be one of all, decoder; got 'head'"),
        ({"initial": "imagenet"}, "initial must be one of published, random; got 'imagenet'"),
        ({"initial": "random", "weights": "a.pth"}, "initial 'random' does not read weights"),
        ({"weights": ""}, "weights must be the path of a file, or null; got ''"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(SettingsError, match=message):
        AnatomixFinetune(**settings)
