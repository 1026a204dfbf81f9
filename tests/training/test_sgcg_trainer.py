"""nnUNetTrainerSgCG in this process, on noise: the value of each term, statistics, checkpoints and masks."""

import json

import pytest
import torch
from helpers import set_nnunets_folders
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from on_noise import CASES, batch, initialized, plans

from nnunet_dg.errors import DataError, SettingsError, VersionError
from nnunet_dg.hooks import Tap
from nnunet_dg.method import Batch
from nnunet_dg.sgcg import ClassContrast, random_amplitude_mixup, restoration_loss
from nnunet_dg.tensors import symmetric_kl
from nnunet_dg.trainers.nnUNetTrainerSgCG import nnUNetTrainerSgCG
from nnunet_dg.training.train_step import loss_terms, on_device

MODULES = {"contrast", "restoration"}
TERMS = {"segmentation", "segmentation_mixed", "consistency", "restoration", "contrast"}


@pytest.fixture
def make(tmp_path, monkeypatch):
    set_nnunets_folders(monkeypatch, tmp_path)
    folder = tmp_path / "nnUNet_preprocessed" / "Dataset999_Benchmark"
    folder.mkdir(parents=True)

    def make(domains=("a", "b"), epoch=999, mask=False, **settings):
        (folder / "domains.json").write_text(json.dumps(dict(zip(CASES, domains, strict=True))))
        content = plans(16).plans
        content["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["features_per_stage"] = [4, 8, 16]
        content["configurations"]["3d_fullres"]["use_mask_for_norm"] = [mask]
        content["nnunet_dg"] = {"sgcg": settings}
        torch.manual_seed(0)
        trainer = initialized(nnUNetTrainerSgCG, content, torch.device("cpu"))
        trainer.current_epoch = epoch  # in the last epoch, all terms are computed
        return trainer

    return make


def test_every_term_has_the_value_of_its_definition(make):
    trainer = make(voxels_per_class=100_000, start_epoch=998)
    step, seen = batch(trainer), []
    data, target, domains = step["data"], step["target"], torch.tensor([0, 1])
    trainer.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    terms = loss_terms(trainer, on_device(trainer, step))
    image, mixed = seen
    assert torch.equal(image, data)
    for i in range(2):  # the partner is the only sample of the other domain; there are ten possible ratios
        candidates = [
            random_amplitude_mixup(data[i : i + 1], data[1 - i : 2 - i], torch.tensor([n / 10]), 0.1)[0]
            for n in range(1, 11)
        ]
        assert any(torch.allclose(mixed[i], candidate, atol=1e-5) for candidate in candidates)

    penultimate = Tap(trainer.network.decoder.seg_layers[-1], "input")
    bottleneck = Tap(trainer.network.encoder.stages[-1], "output")
    output, features = trainer.network(image), [penultimate.take()]
    bottleneck.take()
    mixed_output = trainer.network(mixed)
    features.append(penultimate.take())
    restored = trainer.auxiliary["sgcg"].restoration(bottleneck.take(), domains)
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


def test_the_loss_is_the_weighted_sum_with_restoration_weighted_per_domain(make):
    trainer = make(contrast=0.3, consistency=0.7, restoration=0.2)
    result = trainer.train_step(batch(trainer))
    weights = {
        "segmentation": 1, "segmentation_mixed": 1, "consistency": 0.7, "restoration": 2 * 0.2, "contrast": 0.3,
    }  # fmt: skip
    assert result["loss"] == pytest.approx(sum(w * result[name] for name, w in weights.items()), rel=1e-5)
    assert result["contrast"] > 0


@pytest.mark.parametrize("balanced", [True, False])
def test_the_weight_of_restoration_counts_only_domains_with_training_cases(make, tmp_path, balanced):
    trainer = make(restoration=0.2, balanced_batches=balanced)
    splits = [{"train": [CASES[0]], "val": [CASES[1]]}]
    (tmp_path / "nnUNet_preprocessed" / "Dataset999_Benchmark" / "splits_final.json").write_text(json.dumps(splits))
    assert trainer.term_weights()["restoration"] == pytest.approx(2 * 0.2)
    trainer.get_tr_and_val_datasets()
    assert trainer.term_weights()["restoration"] == pytest.approx(0.2)


def test_a_warning_is_logged_if_the_contrastive_loss_is_never_used(make, capsys):
    make(start_epoch=998).auxiliary["sgcg"].prepare()  # of 1000 epochs
    assert "WARNING" not in capsys.readouterr().out
    make(start_epoch=999).auxiliary["sgcg"].prepare()
    assert "the training has 1000 epochs, so the contrastive loss is never used" in capsys.readouterr().out


def counts(trainer):
    return trainer.auxiliary["sgcg"].contrast.statistics.count.tolist()


@pytest.mark.parametrize("mixup", [True, False])
def test_statistics_are_collected_for_one_epoch_before_the_contrastive_loss_is_used(make, mixup):
    """Statistics are not updated before this epoch, and they are reset at its start."""
    trainer = make(start_epoch=3, amplitude_mixup=mixup, voxels_per_class=100)
    trainer.auxiliary["sgcg"].contrast.statistics.count += 7
    seen = []
    for epoch in (2, 3, 4):
        trainer.current_epoch = epoch
        trainer.on_train_epoch_start()
        result = trainer.train_step(batch(trainer))
        seen.append((counts(trainer), float(result["contrast"]), trainer.term_weights()["contrast"]))
    assert seen[0] == ([7, 7, 7], 0, 0)
    assert seen[1] == ([100, 100, 100], 0, 0)
    assert seen[2][0] == pytest.approx([100 * (2 - 1 / 250)] * 3)
    assert seen[2][1] > 0
    assert seen[2][2] == 0.1


def test_a_term_of_weight_zero_is_not_computed_and_is_logged_as_zero(make):
    trainer = make(contrast=0, consistency=0)
    data = batch(trainer)
    assert "consistency" not in loss_terms(trainer, on_device(trainer, data))
    result = trainer.train_step(data)
    assert result["consistency"] == 0
    trainer.on_train_epoch_end([result, trainer.train_step(data)])
    assert trainer.logger.local_logger.my_fantastic_logging["loss_consistency"] == [0]


def test_statistics_are_collected_after_a_fifth_of_the_training_or_at_once_with_pretrained_weights(make, tmp_path):
    trainer = make()
    assert trainer.auxiliary["sgcg"].statistics_epoch == 200  # of nnU-Net's 1000 epochs
    trainer.num_epochs = 4
    assert trainer.auxiliary["sgcg"].statistics_epoch == 0
    checkpoint = tmp_path / "pretrained.pth"
    trainer.save_checkpoint(str(checkpoint))

    pretrained = make(epoch=0)
    load_pretrained_weights(pretrained.network, str(checkpoint))
    assert pretrained.auxiliary["sgcg"].statistics_epoch == 0
    fixed = make(epoch=0, start_epoch=5)
    load_pretrained_weights(fixed.network, str(checkpoint))
    assert fixed.auxiliary["sgcg"].statistics_epoch == 5


@pytest.mark.parametrize("start", [0, 200])
def test_a_checkpoint_records_whether_the_training_started_from_pretrained_weights(make, tmp_path, start):
    trainer = make(epoch=0)
    if start == 0:
        trainer.save_checkpoint(str(tmp_path / "pretrained.pth"))
        load_pretrained_weights(trainer.network, str(tmp_path / "pretrained.pth"))
    trainer.current_epoch = start
    trainer.train_step(batch(trainer))
    trainer.save_checkpoint(str(tmp_path / "checkpoint_latest.pth"))
    resumed = make(epoch=0)
    resumed.load_checkpoint(str(tmp_path / "checkpoint_latest.pth"))
    assert (resumed.auxiliary["sgcg"].statistics_epoch, resumed.current_epoch) == (start, start + 1)
    for name, value in trainer.auxiliary.state_dict().items():
        torch.testing.assert_close(resumed.auxiliary.state_dict()[name], value, rtol=0, atol=0)
    assert sum(counts(resumed)) > 0


@pytest.mark.parametrize("masked", [True, False])
def test_voxels_outside_a_mask_and_padding_are_excluded_from_all_classes(make, masked):
    """Without a mask, voxels that are zero in all channels are padding."""
    trainer = make(mask=masked, voxels_per_class=100_000, amplitude_mixup=False)
    step = batch(trainer)
    step["data"][:, :, :4] = 0
    step["target"][0][:, :, :4] = 0
    step["target"][0][:, :, 4:] = torch.arange(3).repeat(4096)[: 2 * 12 * 256].reshape(2, 1, 12, 16, 16)
    trainer.train_step(step)
    assert counts(trainer) == [2 * 12 * 256 // 3] * 3


def test_the_background_of_unmasked_images_is_a_class(make):
    trainer = make(voxels_per_class=100_000, amplitude_mixup=False)
    step = batch(trainer)
    step["target"][0][:] = 0
    trainer.train_step(step)
    assert counts(trainer) == [2 * 16**3, 0, 0]


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
def test_disabled_terms_and_their_modules_do_not_exist(make, settings, terms, modules):
    trainer = make(**settings)
    result = trainer.train_step(batch(trainer))
    assert set(result) == {"loss", *terms}
    assert {name for name, _ in trainer.auxiliary["sgcg"].named_children()} - {"partners"} == modules
    assert all(torch.isfinite(torch.tensor(float(value))) for value in result.values())


def test_channels_of_a_cascades_previous_stage_are_not_mixed(make):
    trainer = make()
    data = torch.randn(2, 3, 16, 16, 16)
    mixed = trainer.auxiliary["sgcg"].mix(Batch(data, data, ("", ""), 1), torch.tensor([0, 1])).data
    assert torch.equal(mixed[:, 1:], data[:, 1:])
    assert not torch.equal(mixed[:, :1], data[:, :1])


def test_the_mixed_twin_of_a_masked_image_is_zero_outside_the_mask(make):
    trainer = make(mask=True)
    data = 3 + torch.randn(2, 1, 16, 16, 16)
    data[:, :, :5] = 0
    mixed = trainer.auxiliary["sgcg"].mix(Batch(data, data, ("", ""), 1), torch.tensor([0, 1])).data
    assert (mixed[:, :, :5] == 0).all()
    assert (mixed[:, :, 5:] != data[:, :, 5:]).float().mean() > 0.4


def test_gradients_of_network_and_auxiliary_modules_are_clipped_separately(make):
    trainer = make()
    weights = trainer.term_weights()
    trainer.term_weights = lambda: dict.fromkeys(weights, 100000.0)
    trainer.train_step(batch(trainer))
    for module in (trainer.network, trainer.auxiliary):
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        assert torch.stack([g.norm() for g in gradients]).norm() == pytest.approx(12, rel=1e-3)


def tensors(trainer):
    """The state of network and training module, without samples of earlier steps."""
    state = {**trainer.network.state_dict(), **trainer.auxiliary.state_dict()}
    return {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}


def test_with_a_gradient_scaler_steps_are_equal_and_non_finite_ones_are_skipped(make):
    results = []
    for scaler in (None, torch.amp.GradScaler("cpu", init_scale=1024.0)):
        trainer = make()
        trainer.grad_scaler = scaler
        torch.manual_seed(1)
        trainer.train_step(batch(trainer))
        results.append(tensors(trainer))
    for key, value in results[0].items():
        torch.testing.assert_close(results[1][key], value, rtol=1e-3, atol=1e-5, msg=lambda m, key=key: f"{key}: {m}")
    broken = batch(trainer)
    broken["data"][0, 0, 0, 0, 0] = float("inf")
    trainer.train_step(broken)
    assert scaler.get_scale() == 512
    for key, value in tensors(trainer).items():
        assert torch.isfinite(value).all(), key
        if "statistics" not in key:
            assert torch.equal(value, results[1][key]), key


def test_a_training_resumes_only_with_the_same_domains_and_version(make):
    state = make().optimizer.state_dict()
    make().optimizer.load_state_dict(state)
    with pytest.raises(ValueError, match=r"trained with domains \['a', 'b'\]; this training has \['a', 'c'\]"):
        make(domains=("a", "c")).optimizer.load_state_dict(state)
    saved = state["nnunet_dg_auxiliary"]
    del saved["conditions"]["sgcg"]["form of SgCG"], saved["pretrained"]
    with pytest.raises(DataError, match=r"earlier version of nnunet-dg, .* restoration weighed per domain"):
        make().optimizer.load_state_dict(state)
    del state["nnunet_dg_auxiliary"]
    with pytest.raises(DataError, match="not written by nnUNetTrainerSgCG"):
        make().optimizer.load_state_dict(state)


def test_the_version_of_a_checkpoint_is_named_before_other_settings(make, tmp_path):
    trainer, path = make(temperature=0.1), tmp_path / "checkpoint.pth"
    trainer.save_checkpoint(str(path))
    with pytest.raises(SettingsError, match=r"temperature was 0\.1 and is 0\.2"):
        make(temperature=0.2).load_checkpoint(str(path))
    saved = torch.load(path, weights_only=False)
    del saved["optimizer_state"]["nnunet_dg_auxiliary"]["conditions"]["sgcg"]["form of SgCG"]
    torch.save(saved, path)
    with pytest.raises(VersionError, match=r"earlier version of nnunet-dg, .* restoration weighed per domain"):
        make(temperature=0.2).load_checkpoint(str(path))
