"""A method that is never applied trains the same network as nnU-Net's own trainer, bit for bit."""

import pytest
import torch
from helpers import set_nnunets_folders
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from on_noise import initialized
from small_trainers import CPU, batch, planned

from nnunet_dg.training.catalog import METHODS
from nnunet_dg.training.trainer import MethodsTrainer

NEUTRAL = {
    "mixup": {"p": 0}, "randconv": {"p": 0}, "cutout": {"p": 0}, "rsc": {"p": 0}, "channel_dropout": {"p": 0},
}  # fmt: skip


def trained(trainer):
    """The weights after two steps on the same batches."""
    for seed in range(2):
        torch.manual_seed(seed)
        trainer.network.train()
        state = torch.get_rng_state()
        trainer.train_step(batch(trainer, seed))
        assert torch.equal(torch.get_rng_state(), state)  # no random numbers are drawn
    return trainer.network.state_dict()


@pytest.mark.parametrize("method", NEUTRAL)
def test_neutral_settings_train_nnunets_network_bit_for_bit(method, tmp_path, monkeypatch):
    set_nnunets_folders(monkeypatch, tmp_path)

    class Trainer(MethodsTrainer):
        methods = (METHODS[method](**NEUTRAL[method]),)

    networks = []
    for trainer in (nnUNetTrainer, Trainer):
        torch.manual_seed(0)
        networks.append(trained(initialized(trainer, planned(), CPU)))
    plain, ours = networks
    assert plain.keys() == ours.keys()
    assert all(torch.equal(plain[key], ours[key]) for key in plain)
