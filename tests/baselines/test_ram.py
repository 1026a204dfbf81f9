"""RAM-DSIR is SgCG's trainer without the contrast: vectors of the specification, its terms and its papers."""

import pytest
import torch
from on_noise import batch, initialized, plans

from nnunet_dg.citations import papers_of
from nnunet_dg.tensors import symmetric_kl
from nnunet_dg.trainers.baselines import nnUNetTrainerRAM
from nnunet_dg.trainers.nnUNetTrainerSgCG import nnUNetTrainerSgCG


@pytest.fixture
def make(tmp_path, monkeypatch):
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, str(tmp_path / name))

    def make(trainer):
        content = plans(16).plans
        content["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["features_per_stage"] = [4, 8, 16]
        torch.manual_seed(0)
        trainer = initialized(trainer, content, torch.device("cpu"))
        trainer.current_epoch = 999
        return trainer

    return make


def test_hand_value_of_the_consistency():
    first = torch.tensor([[[1.0, 0.0], [0.0, 0.5]]])  # (sample, class, voxel)
    second = torch.tensor([[[0.0, 1.0], [0.0, 0.0]]])
    assert symmetric_kl(first, second).item() == pytest.approx(0.380668, abs=1e-6)
    assert symmetric_kl(first, second).item() / 2 == pytest.approx(0.190334, abs=1e-6)  # the reference's mean


def test_hand_value_of_the_loss(make):
    terms = {"segmentation": 0.8, "segmentation_mixed": 0.9, "consistency": 0.4, "restoration": 0.2}
    weights = make(nnUNetTrainerRAM).term_weights()
    assert weights.keys() == terms.keys()
    assert sum(weights[name] * value for name, value in terms.items()) == pytest.approx(1.92)


def test_a_step_has_the_terms_of_sgcg_without_its_contrast(make):
    results = []
    for trainer in (make(nnUNetTrainerRAM), make(nnUNetTrainerSgCG)):
        torch.manual_seed(1)
        results.append(trainer.train_step(batch(trainer)))
    ram, sgcg = results
    assert set(sgcg) - set(ram) == {"contrast"}
    assert all(ram[name] == sgcg[name] for name in ram if name != "loss")
    assert not make(nnUNetTrainerRAM).methods[0].changes_network  # so that it can be exported


def test_its_papers_include_ram_dsir():
    assert "ram_dsir" in papers_of(nnUNetTrainerRAM.methods)
