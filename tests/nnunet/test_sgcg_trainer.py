"""nnUNetTrainerSgCG in this process, on noise: each term is what it is called, and the step is nnU-Net's."""

import json

import pytest
import torch
from nnunet_dg.trainers.nnUNetTrainerSgCG import nnUNetTrainerSgCG
from on_noise import CASES, batch, initialized, plans

from nnunet_dg.divergence import symmetric_kl
from nnunet_dg.nnunet.taps import tap_encoder, tap_penultimate
from nnunet_dg.sgcg import ClassContrast, random_amplitude_mixup, restoration_loss

MODULES = {"contrast", "restoration"}
TERMS = {"segmentation", "segmentation_mixed", "consistency", "restoration", "contrast"}


@pytest.fixture
def make(tmp_path, monkeypatch):
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, str(tmp_path / name))
    folder = tmp_path / "nnUNet_preprocessed" / "Dataset999_Benchmark"
    folder.mkdir(parents=True)

    def make(domains=("a", "b"), epoch=999, **settings):
        (folder / "domains.json").write_text(json.dumps(dict(zip(CASES, domains, strict=True))))
        given = plans(16).plans
        given["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["features_per_stage"] = [4, 8, 16]
        given["nnunet_dg"] = {"sgcg": settings}
        torch.manual_seed(0)
        trainer = initialized(nnUNetTrainerSgCG, given, torch.device("cpu"))
        trainer.current_epoch = epoch  # the last: every term counts
        return trainer

    return make


def test_every_term_is_what_it_is_called(make):
    trainer = make(voxels_per_class=100_000, start_epoch=998)
    step, seen = batch(trainer), []
    data, target, domains = step["data"], step["target"], torch.tensor([0, 1])
    trainer.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    terms = trainer.loss_terms(data, target, step["keys"])
    image, mixed = seen
    assert torch.equal(image, data)
    for i in range(2):  # the only sample of the other domain is the partner, the ratio one of ten
        candidates = [
            random_amplitude_mixup(data[i : i + 1], data[1 - i : 2 - i], torch.tensor([n / 10]), 0.1)[0]
            for n in range(1, 11)
        ]
        assert any(torch.allclose(mixed[i], candidate, atol=1e-5) for candidate in candidates)

    penultimate, bottleneck = tap_penultimate(trainer.network), tap_encoder(trainer.network, -1)
    output, features = trainer.network(image), [penultimate.take()]
    bottleneck.take()
    mixed_output = trainer.network(mixed)
    features.append(penultimate.take())
    restored = trainer.auxiliary["restoration"](bottleneck.take(), domains)
    expected = {
        "segmentation": trainer.loss(output, target),
        "segmentation_mixed": trainer.loss(mixed_output, target),
        "consistency": symmetric_kl(output[0], mixed_output[0]),
        "restoration": restoration_loss(restored, data),
        "contrast": ClassContrast(3, 4, 0.1, 100_000)(features, target[0][:, 0]),
    }
    assert terms.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value, msg=lambda m, name=name: f"{name}: {m}")


def test_the_loss_is_the_weighted_sum_and_the_contrast_waits_for_statistics(make):
    trainer = make(contrast=0.3, consistency=0.7, restoration=0.2, start_epoch=2)
    for epoch, contrast in ((1, 0.0), (2, 0.3)):
        trainer.current_epoch = epoch
        result = trainer.train_step(batch(trainer))
        weights = {
            "segmentation": 1, "segmentation_mixed": 1, "consistency": 0.7, "restoration": 0.2, "contrast": contrast,
        }  # fmt: skip
        assert result["loss"] == pytest.approx(sum(w * result[name] for name, w in weights.items()), rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "terms", "modules"),
    [
        ({}, TERMS, MODULES),
        ({"amplitude_mixup": False}, {"segmentation", "contrast"}, {"contrast"}),
        ({"contrast": 0}, TERMS - {"contrast"}, {"restoration"}),
        ({"restoration": 0}, TERMS - {"restoration"}, {"contrast"}),
        ({"contrast": 0, "amplitude_mixup": False}, {"segmentation"}, set()),
    ],
)
def test_what_is_switched_off_is_not_there(make, settings, terms, modules):
    trainer = make(**settings)
    result = trainer.train_step(batch(trainer))
    assert set(result) == {"loss", *terms}
    assert set(trainer.auxiliary) == modules
    assert all(torch.isfinite(torch.tensor(float(value))) for value in result.values())


def test_channels_of_a_cascades_previous_stage_are_not_mixed(make):
    trainer = make()
    data = torch.randn(2, 3, 16, 16, 16)
    mixed = trainer.mix(data, torch.tensor([0, 1]), 0.1)
    assert torch.equal(mixed[:, 1:], data[:, 1:])
    assert not torch.equal(mixed[:, :1], data[:, :1])


def test_network_and_auxiliary_modules_are_clipped_each_by_itself(make):
    trainer = make()
    weights = trainer.term_weights()
    trainer.term_weights = lambda: dict.fromkeys(weights, 100000.0)
    trainer.train_step(batch(trainer))
    for module in (trainer.network, trainer.auxiliary):
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        assert torch.stack([g.norm() for g in gradients]).norm() == pytest.approx(12, rel=1e-3)


def test_with_a_gradient_scaler_the_step_is_the_same_and_a_broken_one_is_skipped(make):
    results = []
    for scaler in (None, torch.amp.GradScaler("cpu", init_scale=1024.0)):
        trainer = make()
        trainer.grad_scaler = scaler
        torch.manual_seed(1)
        trainer.train_step(batch(trainer))
        results.append({**trainer.network.state_dict(), **trainer.auxiliary.state_dict()})
    for key, value in results[0].items():
        torch.testing.assert_close(results[1][key], value, rtol=1e-3, atol=1e-5, msg=lambda m, key=key: f"{key}: {m}")
    broken = batch(trainer)
    broken["data"][0, 0, 0, 0, 0] = float("inf")
    trainer.train_step(broken)
    assert scaler.get_scale() == 512
    for key, value in {**trainer.network.state_dict(), **trainer.auxiliary.state_dict()}.items():
        assert torch.isfinite(value).all(), key
        if "statistics" not in key:
            assert torch.equal(value, results[1][key]), key


def test_a_training_goes_on_with_the_same_domains_alone(make):
    state = make().optimizer.state_dict()
    make().optimizer.load_state_dict(state)
    with pytest.raises(ValueError, match=r"trained with domains \['a', 'b'\], and now they are \['a', 'c'\]"):
        make(domains=("a", "c")).optimizer.load_state_dict(state)
    del state["nnunet_dg_auxiliary"]
    with pytest.raises(ValueError, match="not written by nnUNetTrainerSgCG"):
        make().optimizer.load_state_dict(state)
