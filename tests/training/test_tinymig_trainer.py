"""nnUNetTrainerTinyMIG in this process, on noise: the value of each term, ablations, masks, logs and checkpoints."""

import pytest
import torch
from helpers import set_nnunets_folders
from on_noise import batch, initialized, plans
from small_trainers import planned

from nnunet_dg.dropgen import DropGen
from nnunet_dg.errors import SettingsError
from nnunet_dg.hooks import Tap
from nnunet_dg.outside import Outside
from nnunet_dg.tensors import statistics
from nnunet_dg.tinymig import TinyMIG, cross_distribution_consistency
from nnunet_dg.tinymig.method import ALIGNMENTS
from nnunet_dg.tinymig.multilevel import multilevel_distillation
from nnunet_dg.tinymig.teachers import fingerprint
from nnunet_dg.trainers.nnUNetTrainerTinyMIG import (
    nnUNetTrainerTinyMIG,
    nnUNetTrainerTinyMIG_Paper,
    nnUNetTrainerTinyMIG_Paper_100epochs,
)
from nnunet_dg.training.train_step import loss_terms, on_device
from nnunet_dg.training.trainer import MethodsTrainer

TERMS = {"segmentation_teacher", "segmentation_styled", "segmentation", "alignment", "consistency"}
BOTH = {"teaching", "alignment"}


@pytest.fixture
def make(tmp_path, monkeypatch):
    set_nnunets_folders(monkeypatch, tmp_path)

    def make(load=True, trainer=nnUNetTrainerTinyMIG, samples=2, masked=False, **settings):
        content = plans(16, samples).plans
        content["configurations"]["3d_fullres"]["use_mask_for_norm"] = [masked]
        content["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["features_per_stage"] = [4, 8, 16]
        content["nnunet_dg"] = {"tinymig": {"teacher": "random:anatomix"} | settings}
        torch.manual_seed(0)
        instance = initialized(trainer, content, torch.device("cpu"))
        if load:
            instance.prepare_training()
        return instance

    return make


def test_every_term_has_the_value_of_its_definition(make, monkeypatch):
    trainer = make()
    step = batch(trainer)
    data, target = step["data"], step["target"]
    new_statistics = [(torch.randn(2, width), torch.rand(2, width) + 0.5) for width in (4, 8)]
    references, outputs = [], []

    def universal_statistics(reference):
        references.append(reference)
        return new_statistics[len(references) - 1]

    monkeypatch.setattr("nnunet_dg.tinymig.training.universal_statistics", universal_statistics)
    stages = trainer.network.encoder.stages
    for stage in stages:
        stage.register_forward_hook(lambda _, __, output: outputs.append(output))
    terms = loss_terms(trainer, on_device(trainer, step))
    plain_pass, styled_pass = outputs[:3], outputs[3:]
    outputs.clear()

    reprogrammed, logits, _ = trainer.auxiliary["tinymig"].teaching(data)
    for reference, feature in zip(references, reprogrammed, strict=False):
        torch.testing.assert_close(reference, feature)
    for feature, (mean, std) in zip(styled_pass[:2], new_statistics, strict=True):  # of stages 0 and 1
        own_mean, own_std = statistics(feature)
        torch.testing.assert_close(own_mean, mean, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(own_std, std, atol=1e-4, rtol=1e-3)

    taps = [Tap(stage, "output") for stage in stages]
    output = trainer.network(data)
    features = [tap.take() for tap in taps]
    for feature, seen in zip(features, plain_pass, strict=True):
        torch.testing.assert_close(feature, seen)
    method = trainer.auxiliary["tinymig"]
    with method.changes[0], method.changes[1]:
        for style, pair in zip(method.styles, new_statistics, strict=True):
            style.begin(pair)
        styled = trainer.network(data)
    torch.testing.assert_close(trainer.network(data), output)
    expected = {
        "segmentation": trainer.loss(output, target),
        "segmentation_teacher": trainer.loss.loss(logits, target[0]),
        "segmentation_styled": trainer.loss(styled, target),
        "alignment": trainer.auxiliary["tinymig"].alignment(reprogrammed, features),
        "consistency": cross_distribution_consistency(output[0], styled[0]),
    }
    assert terms.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value, msg=lambda m, name=name: f"{name}: {m}")


def test_before_the_non_linearity_the_styled_features_have_the_teachers_statistics(make, monkeypatch):
    trainer = make(at="pre-activation")
    new = iter([(torch.randn(2, width), torch.rand(2, width) + 0.5) for width in (4, 8)])
    given, seen = [], []
    monkeypatch.setattr(
        "nnunet_dg.tinymig.training.universal_statistics", lambda _: (given.append(next(new)), given[-1])[1]
    )
    for stage in trainer.network.encoder.stages[:2]:
        stage[0].convs[-1].nonlin.register_forward_pre_hook(lambda _, inputs: seen.append(statistics(inputs[0])))
    loss_terms(trainer, on_device(trainer, batch(trainer)))
    for features, (mean, std) in zip(seen[2:], given, strict=True):  # the first two are of the plain pass
        torch.testing.assert_close(features[0], mean, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(features[1], std, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("settings", "shared"),
    [
        ({}, {0}),
        ({"styled_stages": [1]}, {0, 1}),
        ({"at": "pre-activation"}, set()),
        ({"at": "pre-activation", "styled_stages": [1]}, {0}),
        ({"statistics": "dsu", "ablate": ["lra", "co_training"]}, {0}),
    ],
)
def test_the_styled_pass_computes_only_the_stages_that_differ(make, settings, shared):
    trainer, computed = make(**settings), []
    for number, stage in enumerate(trainer.network.encoder.stages):
        stage[0].convs[0].conv.register_forward_hook(lambda *_, number=number: computed.append(number))
    loss_terms(trainer, on_device(trainer, batch(trainer)))
    assert computed == [0, 1, 2, *sorted({0, 1, 2} - shared)]
    computed.clear()
    trainer.network(batch(trainer)["data"])
    assert computed == [0, 1, 2]  # other passes compute all stages


def test_gradients_are_those_of_two_whole_passes(make):
    def gradients(share):
        trainer = make(statistics="crossnorm")
        if not share:
            trainer.auxiliary["tinymig"].replays.clear()
        trainer.network.requires_grad_(True)
        torch.manual_seed(1)
        terms = loss_terms(trainer, on_device(trainer, batch(trainer)))
        torch.stack(list(terms.values())).sum().backward()
        return [parameter.grad for parameter in trainer.network.parameters()]

    for once, twice in zip(gradients(True), gradients(False), strict=True):
        torch.testing.assert_close(once, twice, rtol=1e-4, atol=1e-6)


def test_a_network_that_draws_random_numbers_computes_both_passes_whole(make):
    class Trainer(MethodsTrainer):
        methods = (DropGen(extractor="mind"), TinyMIG())

    trainer, computed = make(trainer=Trainer), []
    trainer.network.network.encoder.stages[0][0].convs[0].conv.register_forward_hook(lambda *_: computed.append(0))
    loss_terms(trainer, on_device(trainer, batch(trainer)))
    assert len(computed) == 2


def test_the_loss_is_the_weighted_sum(make):
    trainer = make(loss_weights=[0.1, 0.2, 0.3, 0.4, 0.6])
    result = trainer.train_step(batch(trainer))
    names = ("segmentation_teacher", "segmentation_styled", "segmentation", "alignment", "consistency")
    expected = sum(w * result[name] for w, name in zip((0.1, 0.2, 0.3, 0.4, 0.6), names, strict=True))
    assert result["loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "terms", "modules"),
    [
        ({}, TERMS, BOTH),
        ({"ablate": ["ufdm"]}, TERMS - {"segmentation_styled", "consistency"}, BOTH),
        ({"ablate": ["cdc"]}, TERMS - {"consistency"}, BOTH),
        ({"ablate": ["lra"]}, TERMS - {"alignment"}, {"teaching"}),
        ({"ablate": ["co_training"]}, TERMS - {"segmentation_teacher"}, BOTH),
        ({"ablate": ["lra", "co_training"]}, TERMS - {"alignment", "segmentation_teacher"}, {"teaching"}),
        ({"ablate": ["ufdm", "lra", "co_training"]}, {"segmentation"}, set()),
        ({"ablate": ["amplitude", "phase", "channel_refiner"]}, TERMS, BOTH),
        ({"statistics": "mixstyle"}, TERMS, BOTH),
        ({"statistics": "crossnorm"}, TERMS, BOTH),
        ({"statistics": "crossnorm_channels"}, TERMS, BOTH),
        ({"alignment_scale": "paper"}, TERMS, BOTH),
        ({"statistics": "dsu"}, TERMS, BOTH),
        ({"divergence": "mse"}, TERMS, BOTH),
        ({"divergence": "js"}, TERMS, BOTH),
        ({"divergence": "kl_one_way"}, TERMS, BOTH),
        ({"alignment": "cwd"}, TERMS, BOTH),
        ({"alignment": "cwd", "ablate": ["co_training"]}, TERMS - {"segmentation_teacher"}, BOTH),
        ({"alignment": "at"}, TERMS, BOTH),
        ({"alignment": "attnfd", "aligned_stages": [2, 0]}, TERMS, BOTH),
        ({"alignment": "mlkd"}, TERMS, {"teaching"}),
        ({"styled_stages": [2], "aligned_stages": [1]}, TERMS, BOTH),
        ({"aligned_stages": [1], "ablate": ["co_training"]}, TERMS - {"segmentation_teacher"}, BOTH),
        ({"statistics": "trid"}, TERMS, {*BOTH, "method"}),
        ({"statistics": "efdm", "styled_stages": [1]}, TERMS, {*BOTH, "method"}),
        ({"statistics": "maxstyle", "at": "pre-activation"}, TERMS, {*BOTH, "method"}),
    ],
)
def test_ablated_parts_do_not_exist_and_all_others_learn(make, settings, terms, modules):
    trainer = make(**settings)
    result = trainer.train_step(batch(trainer))
    assert set(result) == {"loss", *terms}
    assert {name for name, _ in trainer.auxiliary["tinymig"].named_children()} == modules
    assert all(torch.isfinite(torch.tensor(float(value))) for value in result.values())
    trainable = [p for p in trainer.auxiliary.parameters() if p.requires_grad]
    assert not [n for n, p in trainer.auxiliary.named_parameters() if p.requires_grad and p.grad is None]
    assert bool(trainable) == bool(terms & {"alignment", "segmentation_teacher"})
    if "alignment" in modules and "alignment" not in settings:
        names = {name.split(".")[2] for name, _ in trainer.auxiliary["tinymig"].alignment.named_parameters()}
        assert names == (
            {"amplitude_filter", "phase_filter", "refiner"} if len(settings.get("ablate", ())) < 3 else set()
        )


@pytest.mark.parametrize("dims", [2, 3])
def test_the_gradients_of_all_alignments_on_the_student_are_of_one_order(tmp_path, monkeypatch, dims):
    set_nnunets_folders(monkeypatch, tmp_path)
    teacher = {3: "random:anatomix", 2: "random:vit_tiny_patch16_224"}[dims]
    norms = {}
    for kind in ALIGNMENTS:
        content = planned(dims) | {
            "nnunet_dg": {"tinymig": {"teacher": teacher, "alignment": kind, "ablate": ["ufdm"]}}
        }
        name = "2d" if dims == 2 else "3d_fullres"
        content["configurations"][name]["patch_size"] = [{2: 64, 3: 32}[dims]] * dims
        content["configurations"][name]["architecture"]["arch_kwargs"]["features_per_stage"] = [16, 32, 64]
        torch.manual_seed(0)
        trainer = initialized(nnUNetTrainerTinyMIG, content | {"plans_name": kind}, torch.device("cpu"), name)
        trainer.prepare_training()
        term = loss_terms(trainer, on_device(trainer, batch(trainer)))["alignment"]
        encoder = list(trainer.network.encoder.parameters())
        gradients = [g for g in torch.autograd.grad(term, encoder, allow_unused=True) if g is not None]
        norms[kind] = float(torch.stack([g.norm() for g in gradients]).norm())
    assert all(1 / 8 < norm / norms["lra"] < 8 for norm in norms.values()), norms


@pytest.mark.parametrize("kind", ["cwd", "at", "attnfd", "mlkd"])
def test_other_alignments_compare_the_teachers_own_maps_or_logits_and_do_not_train_it(make, kind):
    trainer = make(alignment=kind)
    method, content = trainer.auxiliary["tinymig"], batch(trainer)
    terms = loss_terms(trainer, on_device(trainer, content))
    taps = [Tap(stage, "output") for stage in trainer.network.encoder.stages]
    output = trainer.network(content["data"])
    features = [tap.take() for tap in taps]
    taught = method.teaching(content["data"])
    if kind == "mlkd":
        torch.manual_seed(0)
        valid = torch.ones_like(content["target"][0][:, 0], dtype=torch.bool)
        expected = multilevel_distillation(taught.logits, output[0], valid)
        assert float(terms["alignment"]) == pytest.approx(float(expected), rel=0.1)  # other voxels are drawn
    else:
        torch.testing.assert_close(terms["alignment"], method.alignment(taught.maps, features))
    terms["alignment"].backward()
    assert all(parameter.grad is None for parameter in method.teaching.parameters())
    assert all(p.grad is not None for p in trainer.network.encoder.parameters())


def test_mlkd_leaves_out_voxels_of_the_ignore_label(make):
    trainer = make(alignment="mlkd")
    content = batch(trainer)
    torch.manual_seed(0)
    everywhere = float(loss_terms(trainer, on_device(trainer, content))["alignment"])
    trainer.student.classes = lambda target: torch.full_like(target[0][:, 0], -1)
    assert float(loss_terms(trainer, on_device(trainer, content))["alignment"]) == 0 < everywhere


def test_stages_are_those_that_are_set(make):
    trainer = make(styled_stages=[2, 0], aligned_stages=[1], statistics="trid")
    method, seen = trainer.auxiliary["tinymig"], [[], [], []]
    for stage, outputs in zip(trainer.network.encoder.stages, seen, strict=True):
        stage.register_forward_hook(lambda _, __, output, outputs=outputs: outputs.append(statistics(output)[0]))
    compared = []
    method.alignment.register_forward_hook(lambda _, inputs, __: compared.append([x.shape[1] for x in inputs[1]]))
    loss_terms(trainer, on_device(trainer, batch(trainer)))
    assert compared == [[8]]
    assert method.method.settings.stages == (2, 0)
    new = seen[2][1]
    assert ((new >= 0) & (new <= 1)).any()
    assert not torch.equal(seen[0][0], seen[0][1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"aligned_stages": [3]}, "aligned_stages has 3, but there are maps of the teacher for stages 0 to 2 only"),
        ({"styled_stages": [5]}, "styled_stages has 5, but there are maps"),
        ({"styled_stages": [5], "statistics": "trid"}, "stage 5 does not exist"),
    ],
)
def test_a_stage_without_features_is_refused(make, settings, message):
    with pytest.raises(SettingsError, match=message):
        make(**settings)


def test_maxstyle_searches_styles_that_increase_the_loss_and_does_not_change_the_plain_pass(make):
    values = {}
    for steps in (0, 5):
        trainer = make(statistics="maxstyle")
        method = trainer.auxiliary["tinymig"].method
        object.__setattr__(method.settings, "steps", steps)
        torch.manual_seed(1)
        content = batch(trainer)
        values[steps] = loss_terms(trainer, on_device(trainer, content))
    assert values[5]["segmentation_styled"] > values[0]["segmentation_styled"]
    torch.testing.assert_close(values[5]["segmentation"], values[0]["segmentation"])
    assert all(parameter.grad is None for parameter in trainer.network.parameters())


@pytest.mark.parametrize("masked", [False, True])
def test_the_teacher_sees_the_minimum_outside_a_mask_and_in_padding(make, masked):
    trainer, shown = make(masked=masked), []
    teacher = trainer.auxiliary["tinymig"].teaching.teacher
    run = teacher.run
    teacher.run = lambda x: (shown.append(x), run(x))[1]
    step = batch(trainer)
    step["data"][:, :, :4] = 0  # the mean of a normalized image
    trainer.train_step(step)
    border, inside = shown[0][:, :, :7], shown[0][:, :, 10:]
    assert border.max() == 0  # without a mask, voxels that are zero in all channels are padding
    assert inside.amin() < 0.3 < 0.7 < inside.amax()


def test_zeros_of_an_image_that_is_not_centered_are_ordinary_intensities(make):
    trainer = make()
    trainer.student.outside = Outside.nowhere(1)
    seen = []
    trainer.auxiliary["tinymig"].teaching.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    step = batch(trainer)
    step["data"][:, :, :4] = 0
    trainer.train_step(step)
    assert torch.equal(seen[0], step["data"])


@pytest.mark.parametrize(
    ("statistics", "words"),
    [("dsu", "need two samples per device"), ("mixstyle", "earlier"), ("efdm", "earlier"), ("maxstyle", "earlier")],
)
@pytest.mark.parametrize("samples", [1, 2])
def test_a_note_is_logged_if_the_statistics_need_more_samples_per_device(make, capsys, statistics, words, samples):
    trainer = make(samples=samples, statistics=statistics, ablate=["lra", "co_training"])
    capsys.readouterr()
    trainer.auxiliary["tinymig"].prepare()
    assert (words in capsys.readouterr().out) == (samples == 1)


@pytest.mark.parametrize("statistics", ["mixstyle", "crossnorm", "dsu", "efdm", "maxstyle"])
def test_with_one_sample_per_step_the_statistics_come_from_earlier_samples(make, statistics):
    trainer = make(samples=1, statistics=statistics, ablate=["lra", "co_training"])
    values = [float(trainer.train_step(batch(trainer))["consistency"]) for _ in range(4)]
    assert values[0] == pytest.approx(0, abs=1e-5)
    assert (max(values[1:]) > 1e-5) == (statistics != "dsu")


def test_the_gain_of_the_enhancement_is_logged_in_every_epoch(make, capsys):
    trainer = make()
    trainer.train_step(batch(trainer))
    gain = trainer.auxiliary["tinymig"].alignment.take_gain()
    assert 0.05 < gain < 1  # filters start at sigmoid(1), weights of channels at about 0.5
    outputs = [trainer.train_step(batch(trainer))]
    capsys.readouterr()
    trainer.on_train_epoch_end(outputs)
    assert "std(enhanced) / std(given)" in capsys.readouterr().out


@pytest.mark.parametrize("statistics", ["mixstyle", "crossnorm", "dsu"])
def test_other_statistics_than_ufdm_do_not_use_the_teachers(make, monkeypatch, statistics):
    trainer = make(statistics=statistics)
    function = "nnunet_dg.tinymig.training.universal_statistics"
    monkeypatch.setattr(function, lambda reference: pytest.fail("the teacher's statistics were used"))
    step = batch(trainer)
    terms = loss_terms(trainer, on_device(trainer, step))
    assert terms["consistency"] > 0


def tensors(module):
    """The state without samples of earlier steps."""
    return {name: value for name, value in module.state_dict().items() if isinstance(value, torch.Tensor)}


def test_the_frozen_teacher_does_not_change_and_everything_else_learns(make):
    trainer = make()
    teacher = trainer.auxiliary["tinymig"].teaching.teacher
    before = fingerprint(teacher.frozen)
    start = {k: v.clone() for k, v in tensors(trainer.auxiliary).items()}
    optimized = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert not optimized & {id(p) for p in teacher.frozen.parameters()}
    trainer.on_train_epoch_start = None
    for _ in range(3):
        trainer.network.train()
        trainer.auxiliary.train()
        trainer.train_step(batch(trainer))
    assert fingerprint(teacher.frozen) == before
    assert not any(module.training for module in teacher.frozen.modules())
    after = tensors(trainer.auxiliary)
    unchanged = [k for k in after if torch.equal(after[k], start[k])]
    assert not [k for k in unchanged if not k.endswith(("fingerprint", "revision", "bias"))]
    for part in ("teacher.adapters", "reprogramming", "decoder"):
        assert any(k.startswith(f"tinymig.teaching.{part}") and k not in unchanged for k in after)


def test_channels_of_a_cascades_previous_stage_are_not_shown_to_the_teacher(make):
    trainer = make()
    seen = []
    trainer.auxiliary["tinymig"].teaching.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    step = batch(trainer)
    trainer.network.register_forward_pre_hook(
        lambda _, inputs: (inputs[0][:, :1],)
    )  # the network has one input channel
    data = step["data"]
    step["data"] = torch.cat([data, torch.ones_like(data)], 1)
    loss_terms(trainer, on_device(trainer, step))
    assert torch.equal(seen[0], data)


def test_a_training_cannot_start_without_the_teachers_weights(make):
    trainer = make(load=False)
    with pytest.raises(RuntimeError, match="The teacher has no weights yet"):
        trainer.train_step(batch(trainer))


def test_a_training_resumes_only_with_the_same_settings_and_teacher(make):
    state = make().optimizer.state_dict()
    resumed = make(load=False)
    resumed.optimizer.load_state_dict(state)
    resumed.prepare_training()
    state["nnunet_dg_auxiliary"]["modules"]["tinymig"]["teaching.teacher.fingerprint"] += 1
    other = make(load=False)
    other.optimizer.load_state_dict(state)
    with pytest.raises(ValueError, match="trained with other weights of teacher 'anatomix'"):
        other.prepare_training()


def test_the_papers_optimizer_is_adamw_with_a_polynomial_decay(make):
    trainer = make(trainer=nnUNetTrainerTinyMIG_Paper)
    groups = trainer.optimizer.param_groups
    assert len(groups) == 2
    assert type(trainer.optimizer) is torch.optim.AdamW
    assert all((group["betas"], group["weight_decay"]) == ((0.9, 0.999), 0.01) for group in groups)
    assert trainer.num_epochs == 200
    for epoch in (0, 100, 199):
        trainer.lr_scheduler.step(epoch)
        assert [group["lr"] for group in groups] == pytest.approx([1e-4 * (1 - epoch / 200) ** 0.9] * 2)
    assert make(trainer=nnUNetTrainerTinyMIG_Paper_100epochs).num_epochs == 100
