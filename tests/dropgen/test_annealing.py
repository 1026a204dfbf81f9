"""A range of p and its annealing in nnU-Net's trainer: plans, checkpoints, resuming and compilation."""

import json

import pytest
import torch
from helpers import set_nnunets_folders
from on_noise import initialized
from small_trainers import CPU, batch, planned, step

from nnunet_dg.dropgen import ChannelDropout, DropGen
from nnunet_dg.errors import SettingsError
from nnunet_dg.training.trainer import MethodsTrainer


class Trainer(MethodsTrainer):
    methods = (DropGen(extractor="mind"),)


@pytest.fixture
def make(tmp_path, monkeypatch):
    set_nnunets_folders(monkeypatch, tmp_path)

    def make(**settings):
        torch.manual_seed(0)
        trainer = initialized(Trainer, planned() | {"nnunet_dg": {"dropgen": settings}}, CPU)
        trainer.num_epochs = 10
        return trainer

    return make


def bounds(trainer):
    return trainer.network.dropout.bounds.tolist()


def at_epoch(trainer, epoch):
    trainer.current_epoch = epoch
    trainer.on_train_epoch_start()
    return bounds(trainer)


def test_a_range_is_recorded_as_a_list_and_read_again(make):
    trainer = make(p=[0.0, 0.75])
    recorded = json.loads(json.dumps(trainer.plans_manager.plans))["nnunet_dg"]["dropgen"]
    assert recorded["p"] == [0.0, 0.75]
    assert make(**recorded).settings("dropgen") == trainer.settings("dropgen")
    assert bounds(trainer) == [0.0, 0.75]
    assert not trainer.auxiliary  # nnU-Net's own training step


def test_the_epoch_decides_p_also_after_resuming(make, tmp_path):
    trainer = make(p=0.5, p_end=0.1)
    for epoch, expected in ((0, 0.5), (7, 0.5), (8, 0.3), (9, 0.1)):
        assert at_epoch(trainer, epoch) == pytest.approx([expected, expected])
    step(trainer, batch(trainer))
    trainer.current_epoch = 7  # saved at the end of this epoch, so that the next one is 8
    trainer.save_checkpoint(str(tmp_path / "checkpoint.pth"))
    resumed = make(p=0.5, p_end=0.1)
    resumed.load_checkpoint(str(tmp_path / "checkpoint.pth"))
    assert resumed.current_epoch == 8
    resumed.on_train_epoch_start()
    assert bounds(resumed) == pytest.approx([0.3, 0.3])


def test_resuming_with_another_last_rate_is_refused(make, tmp_path):
    trainer = make(p=[0.0, 0.5], p_end=0.1)
    trainer.save_checkpoint(str(tmp_path / "checkpoint.pth"))
    with pytest.raises(SettingsError, match=r"p was \(0\.0, 0\.5\) and is \(0\.0, 0\.6\), p_end was 0\.1 and is 0\.2"):
        make(p=[0.0, 0.6], p_end=0.2).load_checkpoint(str(tmp_path / "checkpoint.pth"))


@pytest.mark.parametrize("inputs", ["features", "image"])
def test_annealing_is_refused_where_there_is_no_dropout(make, inputs):
    with pytest.raises(SettingsError, match=f"p_end 0.1 has no effect with inputs '{inputs}'.*: set it to null"):
        make(p_end=0.1, inputs=inputs)


def test_our_training_step_with_annealing_equals_nnunets_own_without(make):
    constant, annealed = make(p=[0.4, 0.4]), make(p=0.4, p_end=0.4)
    for trainer in (constant, annealed):
        at_epoch(trainer, 9)
        step(trainer, batch(trainer), seed=3)
    for key, value in constant.network.state_dict().items():
        torch.testing.assert_close(annealed.network.state_dict()[key], value, rtol=1e-5, atol=1e-6)


def test_the_epochs_of_an_annealed_training_share_one_compiled_graph():
    graphs = []

    def counting(graph, _):
        graphs.append(graph)
        return graph.forward

    dropout = ChannelDropout((0.0, 0.5)).train()
    torch._dynamo.reset()
    compiled = torch.compile(dropout, backend=counting, fullgraph=True)
    for p in (0.1, 0.3, 0.6, 0.9):
        dropout.move(p, p)
        assert float((compiled(torch.ones(300, 20, 1)) == 0).float().mean()) == pytest.approx(p, abs=0.03)
    torch._dynamo.reset()
    assert len(graphs) == 1
