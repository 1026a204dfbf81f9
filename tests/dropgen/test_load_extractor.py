"""The source of the extractor's weights at the start of a training."""

import pytest
import torch
from on_noise import plans
from plain_anatomix import random_weights

from nnunet_dg.dropgen.network import load_extractor
from nnunet_dg.extractors import build_extractor
from nnunet_dg.extractors import weights as weight_files
from nnunet_dg.trainers.nnUNetTrainerDropGen import nnUNetTrainerDropGen


@pytest.fixture
def file(tmp_path, monkeypatch):
    """A file with weights that differ from those in the cache."""
    monkeypatch.setenv("NNUNET_DG_HOME", str(tmp_path / "home"))
    torch.save(random_weights(seed=1), tmp_path / "cached.pth")
    weight_files.install(weight_files.PUBLISHED["anatomix"], tmp_path / "cached.pth", unpublished=True)
    torch.save(random_weights(seed=2), tmp_path / "own.pth")
    return tmp_path / "own.pth"


def network(**settings):
    manager = plans(16)
    manager.plans["nnunet_dg"] = {"dropgen": settings}
    return nnUNetTrainerDropGen.build_network_architecture(manager, manager.get_configuration("3d_fullres"), 1, 3)


def assert_has_weights_of(network, expected):
    expected = expected.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in network.extractor.state_dict().items())


def test_a_file_in_the_settings_has_priority_over_the_cache(file):
    lines = []
    dropgen = network(weights=str(file))
    load_extractor(dropgen, lines.append)
    assert_has_weights_of(dropgen, build_extractor("anatomix", weights=file))
    assert lines == [f"Extractor anatomix: weights from {file} (as set)"]


def test_without_a_file_in_the_settings_the_cached_file_is_used_and_its_state_is_logged(file):
    lines = []
    dropgen = network()
    load_extractor(dropgen, lines.append)
    assert_has_weights_of(dropgen, build_extractor("anatomix"))
    assert "installed as unpublished" in lines[0]


def test_weights_of_a_checkpoint_are_kept_and_the_log_names_the_file_that_is_not_read(file):
    lines = []
    dropgen = network(weights=str(file))
    checkpoint = build_extractor("anatomix")
    dropgen.extractor.load_state_dict(checkpoint.state_dict())
    load_extractor(dropgen, lines.append)
    assert_has_weights_of(dropgen, checkpoint)
    assert lines == [f"Extractor anatomix: weights from the checkpoint; {file} is not read"]


def test_another_variant_needs_its_own_file(tmp_path):
    torch.save(random_weights("anatomix-dev"), tmp_path / "dev.pth")
    dropgen = network(extractor="anatomix-dev", weights=str(tmp_path / "dev.pth"))
    load_extractor(dropgen, print)
    assert_has_weights_of(dropgen, build_extractor("anatomix-dev", weights=tmp_path / "dev.pth"))
    with pytest.raises(weight_files.WeightsError, match="anatomix-dev"):
        load_extractor(network(extractor="anatomix-dev"), print)
