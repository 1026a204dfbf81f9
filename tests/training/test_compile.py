"""`torch.compile`: one method of every mechanism makes the same step as without it."""

import copy
import json
from functools import partial

import pytest
import torch
from helpers import set_nnunets_folders
from on_noise import CASES, batch, initialized, plans

from nnunet_dg.host import unwrap
from nnunet_dg.method import SLOTS
from nnunet_dg.training.catalog import METHODS
from nnunet_dg.training.trainer import MethodsTrainer

TEACHER = "random:vit_tiny_patch16_224"
METHOD_OF_SLOT = {  # with settings that need no published weights
    "images": METHODS["gin"](),
    "feature statistics": METHODS["mixstyle"](p=1.0),
    "gradients and masks": METHODS["rsc"](p=1.0),
    "labels": METHODS["mixup"](p=1.0),
    "auxiliary task": METHODS["sgcg"](),
    "distillation": METHODS["tinymig"](statistics="dsu", ablate=("lra", "co_training")),
    "network": METHODS["dropgen"](extractor="mind"),
}
OTHER_MECHANISMS = {  # with a backend that is quicker than the default one
    "feature statistics before the non-linearity": METHODS["mixstyle"](p=1.0, at="pre-activation"),
    "several passes": METHODS["maxstyle"](p=1.0, steps=1),
    "other parameters": METHODS["feddg"](),
    "factors in weights": METHODS["c2sdg"](),
    "a teacher next to the network": METHODS["tinymig"](teacher=TEACHER),
    "a teacher as the network": METHODS["teacher"](teacher=TEACHER),
    "a memory in the network": METHODS["dofe"](),
}
MECHANISMS = METHOD_OF_SLOT | OTHER_MECHANISMS


@pytest.fixture
def make(tmp_path, monkeypatch):
    torch._dynamo.reset()  # graphs of earlier tests would make sizes dynamic
    set_nnunets_folders(monkeypatch, tmp_path)

    def make(method, compiled, domains="aa"):
        folder = tmp_path / "nnUNet_preprocessed" / "Dataset999_Benchmark"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "domains.json").write_text(json.dumps(dict(zip(CASES, domains, strict=True))))

        class Trainer(MethodsTrainer):
            methods = (method,)

            def _do_i_compile(self):  # nnU-Net compiles on CUDA only
                return compiled

        content = copy.deepcopy(plans(16).plans)
        configuration = content["configurations"].pop("3d_fullres") | {"patch_size": [16, 16]}
        configuration["architecture"]["arch_kwargs"] |= {
            "features_per_stage": [4, 8, 16],
            "kernel_sizes": [[3, 3]] * 3,
            "strides": [[1, 1], [2, 2], [2, 2]],
            "n_conv_per_stage": [1, 1, 1],
            "n_conv_per_stage_decoder": [1, 1],
            "conv_op": "torch.nn.modules.conv.Conv2d",
            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm2d",
        }
        torch.manual_seed(0)
        trainer = initialized(Trainer, content | {"configurations": {"2d": configuration}}, torch.device("cpu"), "2d")
        trainer.prepare_training()
        trainer.current_epoch = trainer.num_epochs - 1  # all terms are computed
        return trainer

    yield make
    torch._dynamo.reset()


def steps(trainer):
    """The loss terms of the second of two steps, and the weights after it."""
    for seed in (1, 2):
        torch.manual_seed(seed)
        content = batch(trainer)
        trainer.network.train()
        trainer.auxiliary.train()
        losses = trainer.train_step(content)
    return losses, {key: value.clone() for key, value in unwrap(trainer.network).state_dict().items()}


def parts(trainer):
    """The parts of training modules that are compiled with the network."""
    return [part for module in trainer.auxiliary.values() for part in module.compiled()]


@pytest.mark.parametrize(
    ("method", "domains"),
    [
        (METHODS["sgcg"](), "aa"),
        (METHODS["sgcg"](), "ab"),
        (METHODS["tinymig"](teacher=TEACHER), "aa"),
        (METHODS["tinymig"](teacher=TEACHER, alignment="attnfd"), "aa"),
    ],
    ids=["sgcg", "sgcg of two domains", "tinymig", "tinymig by attention"],
)
def test_parts_are_single_graphs(make, method, domains, monkeypatch):
    """A part that reads values of tensors would be compiled in pieces, between which the host waits for the device."""
    trainer = make(method, compiled=False, domains=domains)
    given = {}
    for part in parts(trainer):
        monkeypatch.setattr(part, "forward", keeping(part, given))
    steps(trainer)
    monkeypatch.undo()
    assert len(given) == 2
    for part, arguments in given.items():
        torch._dynamo.reset()
        explanation = torch._dynamo.explain(part)(*arguments)
        assert explanation.graph_count == 1, (type(part).__name__, explanation.break_reasons)


def keeping(part, given):
    """The forward function of a part, which also keeps its arguments in ``given``."""
    forward = part.forward

    def keep(*arguments):
        given[part] = arguments
        return forward(*arguments)

    return keep


def test_there_is_a_method_for_every_slot_of_the_catalog():
    assert set(METHOD_OF_SLOT) == {method.slot for method in METHODS.values()} <= set(SLOTS)


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_a_compiled_step_equals_the_plain_one(make, mechanism, monkeypatch):
    """The second step would differ if the compiled graph had frozen state of the first."""
    if mechanism in OTHER_MECHANISMS:
        monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    plain, weights = steps(make(MECHANISMS[mechanism], compiled=False))
    with torch._inductor.config.patch(fallback_random=True):  # the random numbers of eager mode
        trainer = make(MECHANISMS[mechanism], compiled=True)
        losses, compiled_weights = steps(trainer)
    assert hasattr(trainer.network, "_orig_mod")
    assert all(part._compiled_call_impl for part in parts(trainer))
    assert losses.keys() == plain.keys()
    for name, value in plain.items():
        assert float(losses[name]) == pytest.approx(float(value), rel=1e-3, abs=1e-5), name
    for key, value in weights.items():
        torch.testing.assert_close(compiled_weights[key], value, rtol=1e-3, atol=1e-4, msg=lambda m, k=key: f"{k}: {m}")
