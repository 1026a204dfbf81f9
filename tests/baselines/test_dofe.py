"""DoFE: vectors of the specification, the memory in training and at inference, its term, and what it refuses."""

import json

import pytest
import torch
from helpers import set_nnunets_folders
from on_noise import CASES, batch, initialized
from small_trainers import CPU, planned, step

from nnunet_dg.baselines.dofe import DoFE, DomainMemory, enriched, remembered, softened
from nnunet_dg.errors import DataError, SettingsError
from nnunet_dg.hooks import Tap
from nnunet_dg.trainers.baselines import nnUNetTrainerDoFE
from nnunet_dg.training.train_step import loss_terms, on_device

THIRD = ("case_2",)


def test_hand_value_of_the_enriched_feature():
    feature = torch.tensor([[[0.5], [-1.0]]])
    shares = torch.tensor([[0.0, 0.6931472, 0.0]]).softmax(1)
    torch.testing.assert_close(shares, torch.tensor([[0.25, 0.5, 0.25]]))
    aggregated = shares @ torch.tensor([[1.0, 0], [0, 2], [3, 3]])
    torch.testing.assert_close(aggregated, torch.tensor([[1.0, 1.75]]))
    torch.testing.assert_close(enriched(feature, feature, aggregated)[0, :, 0], torch.tensor([0.962117, -2.33279]))


def test_hand_value_of_a_layer_with_a_given_code():
    memory = DomainMemory(2, 3, 2)
    memory.code = torch.nn.Linear(2, 3)
    with torch.no_grad():
        memory.code.weight.zero_(), memory.code.bias.copy_(torch.tensor([0, 0.6931472, 0]))
        memory.selector.weight.copy_(torch.eye(2)[..., None, None])
        memory.vectors.copy_(torch.tensor([[1.0, 0], [0, 2], [3, 3]]))
    feature = torch.tensor([0.5, -1.0]).reshape(1, 2, 1, 1)
    torch.testing.assert_close(memory(feature).flatten(), torch.tensor([0.962117, -2.33279]))
    memory.active.zero_()
    assert torch.equal(memory(feature), feature)


def test_hand_value_of_the_memory():
    memory = torch.tensor([[1.0, 0], [0, 2], [3, 3]])
    after = remembered(memory, torch.tensor([[1.0, 5.0], [3.0, 3.0]]), torch.tensor([0, 0]), 0.9)
    torch.testing.assert_close(after, torch.tensor([[1.1, 0.4], [0, 2], [3, 3]]))


def test_hand_value_of_the_code():
    shares = torch.tensor([[0.25, 0.5, 0.25]])
    target = softened(torch.tensor([1]), torch.ones(3).bool(), torch.ones(1))
    assert 0.1 * (shares - target).square().mean().item() == pytest.approx(0.0125)
    assert DoFE().code == 0.1


def test_targets_add_up_to_one():
    own = torch.tensor([0.8, 0.9, 1.0])
    targets = softened(torch.tensor([0, 2, 1]), torch.ones(4).bool(), own)
    torch.testing.assert_close(targets.sum(1), torch.ones(3))
    torch.testing.assert_close(targets[torch.arange(3), torch.tensor([0, 2, 1])], own)
    assert targets[0, 1:].unique().numel() == 1


@pytest.fixture
def make(tmp_path, monkeypatch):
    set_nnunets_folders(monkeypatch, tmp_path)

    def make(domains=("a", "b"), splits=None, number=None, **settings):
        content = planned()
        folder = tmp_path / "nnUNet_preprocessed" / content["dataset_name"]
        data = folder / content["configurations"]["3d_fullres"]["data_identifier"]
        data.mkdir(parents=True, exist_ok=True)
        if domains:
            cases = [*CASES, *THIRD][: len(domains)]
            (folder / "domains.json").write_text(json.dumps(dict(zip(cases, domains, strict=True))))
            for case in cases:
                (data / f"{case}.b2nd").touch()
        if splits:
            (folder / "splits_final.json").write_text(json.dumps(splits))
        torch.manual_seed(0)
        trainer = initialized(nnUNetTrainerDoFE, content | {"nnunet_dg": {"dofe": settings | {"domains": number}}}, CPU)
        trainer.current_epoch = trainer.num_epochs - 1
        return trainer

    return make


def test_a_step_updates_the_memory_by_the_mean_bottleneck_of_each_domain(make):
    trainer = make(keep=0.75)
    memory = trainer.network.memory
    memory.vectors.copy_(torch.rand(2, 16))
    before, tap = memory.vectors.clone(), Tap(memory, "input")
    step(trainer, batch(trainer))
    means = tap.take().mean((2, 3, 4))
    torch.testing.assert_close(memory.vectors, 0.75 * before + 0.25 * means)  # one sample of each domain
    for name, parameter in memory.named_parameters():
        assert (parameter.grad != 0).any(), name
    trainer.network.eval()
    seen = memory.vectors.clone()
    trainer.network(batch(trainer)["data"])
    assert torch.equal(memory.vectors, seen)


def test_the_memory_changes_the_prediction_and_only_collects_in_the_first_tenth_of_the_epochs(make):
    trainer = make()
    data = batch(trainer)["data"]
    step(trainer, batch(trainer))
    outputs = []
    for epoch in (99, 100):  # of 1000
        trainer.current_epoch = epoch
        trainer.on_train_epoch_start()
        trainer.network.eval()
        outputs.append(trainer.network(data)[0])
    collecting, acting = outputs
    assert not torch.allclose(collecting, acting)
    trainer.network.memory.vectors.zero_()
    assert torch.equal(trainer.network(data)[0], collecting)


def test_the_term_is_the_squared_error_of_the_shares(make):
    trainer = make()
    tap = Tap(trainer.network.memory.code, "output")
    content = batch(trainer)
    torch.manual_seed(3)
    terms = loss_terms(trainer, on_device(trainer, content))
    shares = tap.take().softmax(1)
    torch.manual_seed(3)
    target = softened(torch.tensor([0, 1]), torch.ones(2).bool(), 0.8 + 0.2 * torch.rand(2))
    torch.testing.assert_close(terms["code"], (shares - target).square().mean())


def test_a_domain_that_is_held_out_has_no_share_in_training_and_at_inference(make):
    splits = [{"train": [CASES[0], *THIRD], "val": [CASES[1]]}]
    trainer = make(("a", "b", "c"), splits)
    trainer.get_tr_and_val_datasets()
    trainer.on_train_epoch_start()
    content = batch(trainer) | {"keys": [CASES[0], *THIRD]}
    tap = Tap(trainer.network.memory.code, "output")
    torch.manual_seed(3)
    terms = loss_terms(trainer, on_device(trainer, content))
    shares = tap.take()[:, [0, 2]].softmax(1)
    torch.manual_seed(3)
    own = 0.8 + 0.2 * torch.rand(2)
    target = torch.stack([torch.stack([own[0], 1 - own[0]]), torch.stack([1 - own[1], own[1]])])
    torch.testing.assert_close(terms["code"], (shares - target).square().mean())
    predicting = make(("a", "b", "c"), splits)
    predicting.network.load_state_dict(trainer.network.state_dict())
    predicting.network.eval()
    expected = predicting.network(content["data"])[0]
    for domain, same in ((1, True), (2, False)):
        predicting.network.memory.vectors[domain] = 100
        assert torch.equal(predicting.network(content["data"])[0], expected) == same


def test_the_number_of_domains_is_recorded_for_inference(make):
    trainer = make()
    assert trainer.plans_manager.plans["nnunet_dg"]["dofe"]["domains"] == 2
    assert trainer.network.memory.vectors.shape == (2, 16)
    with pytest.raises(SettingsError, match=r'\["dofe"\]: domains must be the number of domains .* is 2; got 3'):
        make(number=3)


@pytest.mark.parametrize(
    ("domains", "splits", "found"),
    [
        (None, None, "have 1. Assign"),
        (("a", "a"), None, "have 1: a. Assign"),
        (("a", "b"), [{"train": [CASES[0]], "val": [CASES[1]]}], "have 1: a. Assign"),
    ],
)
def test_training_cases_of_a_single_domain_are_refused(make, domains, splits, found):
    trainer = make(domains, splits or [{"train": list(CASES), "val": []}])
    with pytest.raises(DataError, match=f"DoFE needs training cases of at least 2 domains; those of fold_0 {found}"):
        trainer.get_dataloaders()


def test_settings_are_refused_by_name():
    with pytest.raises(SettingsError, match=r"keep must be a number in \[0, 1\]; got 2"):
        DoFE(keep=2)
