"""Whose weights a training starts with."""

import pytest
import torch
from nnunet_dg.trainers.nnUNetTrainerDropGen import nnUNetTrainerDropGen
from on_noise import plans
from plain_anatomix import random_weights

from nnunet_dg.dropgen.network import load_extractor
from nnunet_dg.extractors import build_extractor
from nnunet_dg.extractors import weights as room


@pytest.fixture
def file(tmp_path, monkeypatch):
    """Weights in the cache, and others in a file."""
    monkeypatch.setenv("NNUNET_DG_HOME", str(tmp_path / "home"))
    torch.save(random_weights(seed=1), tmp_path / "cached.pth")
    room.install(room.PUBLISHED["anatomix"], tmp_path / "cached.pth", unpublished=True)
    torch.save(random_weights(seed=2), tmp_path / "mine.pth")
    return tmp_path / "mine.pth"


def network(**settings):
    manager = plans(16)
    manager.plans["nnunet_dg"] = {"dropgen": settings}
    return nnUNetTrainerDropGen.build_network_architecture(manager, manager.get_configuration("3d_fullres"), 1, 3)


def assert_holds(made, expected):
    expected = expected.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in made.extractor.state_dict().items())


def test_the_file_in_the_settings_comes_before_the_cache(file):
    said = []
    made = network(weights=str(file))
    load_extractor(made, said.append)
    assert_holds(made, build_extractor("anatomix", weights=file))
    assert said == [f"Extractor anatomix: weights from {file} (as set)"]


def test_without_one_it_is_the_cached_file_and_its_state_is_named(file):
    said = []
    made = network()
    load_extractor(made, said.append)
    assert_holds(made, build_extractor("anatomix"))
    assert "installed as unpublished" in said[0]


def test_what_a_checkpoint_brought_stays_and_a_file_that_is_not_read_is_named(file):
    said = []
    made = network(weights=str(file))
    brought = build_extractor("anatomix")
    made.extractor.load_state_dict(brought.state_dict())
    load_extractor(made, said.append)
    assert_holds(made, brought)
    assert said == [f"Extractor anatomix: weights from the checkpoint; {file} is not read"]


def test_another_variant_needs_its_own_file(tmp_path):
    torch.save(random_weights("anatomix-dev"), tmp_path / "dev.pth")
    made = network(extractor="anatomix-dev", weights=str(tmp_path / "dev.pth"))
    load_extractor(made, print)
    assert_holds(made, build_extractor("anatomix-dev", weights=tmp_path / "dev.pth"))
    with pytest.raises(room.WeightsError, match="anatomix-dev"):
        load_extractor(network(extractor="anatomix-dev"), print)
