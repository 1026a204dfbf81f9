"""The contract of all methods of the catalog, tested on noise with nnU-Net's own trainer."""

import json
from dataclasses import fields

import numpy as np
import pytest
import torch
from helpers import set_nnunets_folders
from on_noise import DATASET, initialized
from pretended_gpu import GPU, pretended_gpu
from small_trainers import CPU, batch, planned, step
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map_only

from nnunet_dg.errors import SettingsError
from nnunet_dg.extractors.nnunet_folder import read_checkpoint
from nnunet_dg.method import SLOTS, Method, describe_settings
from nnunet_dg.training.catalog import METHODS
from nnunet_dg.training.checkpoint import IN_OPTIMIZER_STATE
from nnunet_dg.training.plans import as_json, resolve
from nnunet_dg.training.trainer import MethodsTrainer

WITHOUT_DOWNLOADS = {  # settings that need no published weights and few passes
    "dropgen": {"extractor": "mind"},
    "maxstyle": {"steps": 1},
    "tinymig": {"teacher": "random:anatomix"},
    "anatomix_finetune": {"initial": "random"},
    "teacher": {"teacher": "random:anatomix"},
}
ALWAYS = {  # settings of methods that would act on some batches, samples or passes only
    method: {"p": 1.0}
    for method in ("randconv", "cutout", "slaug", "mixup", "mixstyle", "crossnorm", "dsu", "trid", "efdm", "rsc",
                   "maxstyle", "dsbn")
}  # fmt: skip
ONLY_3D = ("anatomix_finetune",)
DETERMINISTIC = ("anatomix_finetune", "teacher")  # other networks, without randomness in a step
IN_2D = {  # teachers in 2-D are large ViTs
    "tinymig": {"statistics": "dsu", "ablate": ["lra", "co_training"]},
    "teacher": {"teacher": "random:vit_tiny_patch16_224"},
}
NNUNETS_WAITS = 1  # of the host for a GPU in a step
LABELS = {
    "labels": ({"background": 0, "a": 1, "b": 2}, None),
    "regions": ({"background": 0, "whole": [1, 2], "core": 2}, [1, 2]),
    "ignore": ({"background": 0, "a": 1, "b": 2, "ignore": 3}, None),
}


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Function that makes a trainer of one method, initialized and with its frozen weights."""
    set_nnunets_folders(monkeypatch, tmp_path)

    def make(method, dims=3, channels=1, samples=2, labels="labels", network=None, device=CPU, **settings):
        class Trainer(MethodsTrainer):
            methods = (METHODS[method](),) if network is None else (METHODS[method](), network)

        section = WITHOUT_DOWNLOADS.get(method, {}) | (IN_2D.get(method, {}) if dims == 2 else {}) | settings
        content = planned(dims, channels, samples) | {"nnunet_dg": {method: section}}
        names, order = LABELS[labels]
        dataset = DATASET | {"labels": names, "channel_names": {str(i): "MRI" for i in range(channels)}}
        dataset |= {"regions_class_order": order} if order else {}
        if METHODS[method].fewest_domains > 1:
            folder = tmp_path / "nnUNet_preprocessed" / content["dataset_name"]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "domains.json").write_text(json.dumps({"case_0": "a", "case_1": "b"}))
        torch.manual_seed(0)
        trainer = initialized(Trainer, content, device, "2d" if dims == 2 else "3d_fullres", dataset)
        trainer.prepare_training()
        trainer.current_epoch = trainer.num_epochs - 1  # all terms are computed
        return trainer

    return make


def weights(trainer):
    return {k: v.clone() for k, v in trainer.network.state_dict().items()}


every_method = pytest.mark.parametrize("method", METHODS)


@every_method
@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize(("dims", "channels", "samples"), [(3, 1, 2), (2, 1, 2), (3, 4, 2), (3, 1, 1)])
def test_trains_on_every_kind_of_data(make, method, labels, dims, channels, samples):
    if dims == 2 and method in ONLY_3D:
        with pytest.raises(NotImplementedError, match=r"3-D only, but this configuration is 2-D\. Train a 3-D"):
            make(method, dims, channels, samples, labels)
        return
    trainer = make(method, dims, channels, samples, labels)
    before = weights(trainer)
    for seed in range(2):
        result = step(trainer, batch(trainer, seed), seed)
        assert np.isfinite([float(value) for value in result.values()]).all(), result
    after = weights(trainer)
    assert all(torch.isfinite(value).all() for value in after.values())
    assert any(not torch.equal(after[key], before[key]) for key in after)


@every_method
def test_a_constant_image_gives_finite_gradients(make, method):
    trainer = make(method, **ALWAYS.get(method, {}))
    result = step(trainer, batch(trainer, constant=True))
    assert np.isfinite([float(value) for value in result.values()]).all(), result
    gradients = [p.grad for p in [*trainer.network.parameters(), *trainer.auxiliary.parameters()] if p.grad is not None]
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


@every_method
def test_half_precision_gives_finite_gradients(make, method):
    trainer = make(method, **ALWAYS.get(method, {}))
    with torch.autocast("cpu", torch.bfloat16):
        result = step(trainer, batch(trainer))
    assert np.isfinite([float(value) for value in result.values()]).all(), result
    assert all(torch.isfinite(value).all() for value in weights(trainer).values())


@every_method
def test_terms_of_a_step_in_half_precision_are_those_of_single_precision(make, method):
    """In float16, as on a GPU, whose range is small: squares overflow, and small weights vanish."""
    expected, result = {}, {}
    for half, terms in ((False, expected), (True, result)):
        trainer = make(method, **ALWAYS.get(method, {}))
        if not trainer.auxiliary:
            pytest.skip(f"{method} has no terms of its own")
        with torch.autocast("cpu", torch.float16, enabled=half):
            terms |= step(trainer, batch(trainer))
        assert all(torch.isfinite(value).all() for value in weights(trainer).values())
    for name, value in expected.items():
        assert float(result[name]) == pytest.approx(float(value), rel=0.05, abs=0.02), name


@every_method
def test_steps_are_equal_for_equal_seeds_and_differ_for_other_seeds(make, method):
    if method in DETERMINISTIC:
        pytest.skip(f"a step of {method} has no random numbers")
    results = []
    for seed in (1, 1, 2, 3, 4, 5):  # several, since a method may act with probability 0.5
        trainer = make(method)
        step(trainer, batch(trainer), seed)
        results.append(weights(trainer))
    first, repeated, *others = results
    assert all(torch.equal(first[key], repeated[key]) for key in first)
    if METHODS[method].replaces_augmentation():
        return  # it acts in the data loader, so that a step has no random numbers
    assert any(not torch.equal(first[key], other[key]) for key in first for other in others)


@every_method
def test_inference_is_deterministic(make, method):
    trainer = make(method)
    step(trainer, batch(trainer))
    trainer.network.eval()
    data = batch(trainer, seed=5)["data"]
    with torch.no_grad():
        first, second = (trainer.network(data)[0] for _ in range(2))
    assert torch.equal(first, second)


@every_method
def test_the_network_is_the_planned_one_unless_changes_network_is_set(make, method):
    trainer = make(method)
    step(trainer, batch(trainer))
    keys = {key: value.shape for key, value in trainer.network.state_dict().items()}

    class Plain(MethodsTrainer):
        methods = ()

    plain = initialized(Plain, planned() | {"plans_name": "others"}, CPU)
    same = keys == {key: value.shape for key, value in plain.network.state_dict().items()}
    assert same != METHODS[method].changes_network


@every_method
def test_at_inference_an_unchanged_network_computes_the_same_as_the_planned_one(make, method):
    if METHODS[method].changes_network:
        pytest.skip(f"{method} changes the network")
    trainer = make(method)
    step(trainer, batch(trainer))

    class Plain(MethodsTrainer):
        methods = ()

    plain = initialized(Plain, planned() | {"plans_name": "others"}, CPU).network.eval()
    plain.load_state_dict(trainer.network.state_dict())
    data = batch(trainer, seed=5)["data"]
    with torch.no_grad():
        assert torch.equal(trainer.network.eval()(data)[0], plain(data)[0])


def waits_of_a_step(trainer, gpu, earlier=0):
    """How often the host waits for the pretended GPU in a step after some earlier ones, by place."""
    content = tree_map_only(torch.Tensor, torch.Tensor.pin_memory, batch(trainer))  # as nnU-Net's loaders give it
    for _ in range(earlier):
        step(trainer, content)
    gpu.waits.clear()
    loss = step(trainer, content)["loss"]
    return dict(gpu.waits), float(loss)


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setenv("nnUNet_compile", "f")
    with pretended_gpu() as gpu:
        yield gpu


no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="benchmarks/gpu.py counts the waits for a real GPU")


@no_gpu
@every_method
@pytest.mark.filterwarnings("ignore::UserWarning")  # PyTorch does not find the GPU
def test_a_step_waits_for_a_gpu_no_more_often_than_nnunets(make, gpu, method):
    earlier = int(method == "saml")  # from the second step on, it uses earlier samples
    waits, loss = waits_of_a_step(make(method, device=GPU, **ALWAYS.get(method, {})), gpu, earlier)
    assert sum(waits.values()) <= NNUNETS_WAITS, waits
    assert np.isfinite(loss)


@no_gpu
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("method", "kind"),
    [("cutout", {"labels": "regions"}), ("slaug", {"labels": "regions"}), ("sgcg", {"labels": "ignore", "dims": 2}),
     ("mixstyle", {"samples": 1}), ("mixup", {"samples": 1}), ("sgcg", {"samples": 1})],
)  # fmt: skip
def test_no_kind_of_data_makes_a_step_wait_for_a_gpu(make, gpu, method, kind):
    waits, _ = waits_of_a_step(make(method, device=GPU, **kind, **ALWAYS.get(method, {})), gpu)
    with_ignored = 2 if kind.get("labels") == "ignore" else 0  # SgCG calls nnU-Net's loss twice, which then waits
    assert sum(waits.values()) <= NNUNETS_WAITS + with_ignored, waits


@no_gpu
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_step_of_nnunet_waits_for_a_gpu_once_and_has_the_loss_of_the_cpu(make, gpu):
    """nnU-Net copies the value of the loss to the CPU."""

    class Plain(MethodsTrainer):
        methods = ()

    def trainer(device):
        torch.manual_seed(0)
        return initialized(Plain, planned() | {"plans_name": "others"}, device)

    waits, loss = waits_of_a_step(trainer(GPU), gpu)
    assert sum(waits.values()) == NNUNETS_WAITS, waits
    on_cpu = trainer(CPU)
    assert step(on_cpu, batch(on_cpu))["loss"] == pytest.approx(loss, rel=1e-5)


@every_method
def test_a_resumed_training_equals_an_uninterrupted_one(make, method, tmp_path):
    """The training modules are equal as well."""
    check_resuming(make, method, tmp_path)


@pytest.mark.parametrize(
    "method",
    ["saml", "feddg", "sgcg", "c2sdg", "mixup", "mixstyle", "crossnorm", "efdm", "maxstyle", "tinymig", "tinymig-efdm"],
)
def test_a_resumed_training_has_the_samples_of_earlier_steps(make, method, tmp_path):
    method, _, statistics = method.partition("-")
    more = {"statistics": statistics or "mixstyle"} if method == "tinymig" else ALWAYS.get(method, {})
    check_resuming(make, method, tmp_path, samples=1, **more)


@pytest.mark.parametrize("method", ["saml", "sgcg", "mixup", "mixstyle", "tinymig"])
def test_a_checkpoint_without_samples_of_earlier_steps_is_resumed(make, method, tmp_path):
    """Development versions of 0.1.0 did not save them."""
    trainer, file = make(method, samples=1), tmp_path / "checkpoint.pth"
    step(trainer, batch(trainer, 0), 0)
    trainer.save_checkpoint(str(file))
    checkpoint = torch.load(file, weights_only=False)
    modules = checkpoint["optimizer_state"][IN_OPTIMIZER_STATE]["modules"]
    tensors = {key: value for key, value in modules[method].items() if isinstance(value, torch.Tensor)}
    assert len(tensors) < len(modules[method])
    modules[method] = tensors
    torch.save(checkpoint, file)
    resumed = make(method, samples=1)
    resumed.load_checkpoint(str(file))
    resumed.prepare_training()
    state = resumed.auxiliary[method].state_dict()
    assert all(torch.equal(state[key], value) for key, value in tensors.items())
    result = step(resumed, batch(resumed, 1), 1)
    assert np.isfinite([float(value) for value in result.values()]).all(), result


def check_resuming(make, method, tmp_path, **settings):
    uninterrupted = make(method, **settings)
    step(uninterrupted, batch(uninterrupted, 0), 0)
    uninterrupted.save_checkpoint(str(tmp_path / "checkpoint.pth"))
    read_checkpoint(tmp_path / "checkpoint.pth")  # export and stress read it with weights_only
    resumed = make(method, **settings)
    resumed.load_checkpoint(str(tmp_path / "checkpoint.pth"))
    resumed.prepare_training()
    for trainer in (uninterrupted, resumed):
        trainer.current_epoch = trainer.num_epochs - 1
        content = batch(trainer, 1)
        step(trainer, content | {"keys": content["keys"][::-1] if len(content["keys"]) > 1 else [np.str_("case_1")]}, 1)
    for module, other in ((uninterrupted.network, resumed.network), (uninterrupted.auxiliary, resumed.auxiliary)):
        for key, value in module.state_dict().items():
            pairs = zip(tree_leaves(other.state_dict()[key]), tree_leaves(value), strict=True)
            for own, expected in pairs:
                if isinstance(expected, torch.Tensor):
                    torch.testing.assert_close(own, expected, rtol=1e-6, atol=1e-7, msg=key)
                else:
                    assert own == expected, key


@every_method
def test_a_checkpoint_of_another_method_is_refused(make, method, tmp_path):
    trainer = make(method)
    if not trainer.auxiliary:
        pytest.skip(f"{method} has no training module")
    state = trainer.optimizer.state_dict()
    state[IN_OPTIMIZER_STATE]["modules"] = {"another": {}}
    with pytest.raises(ValueError, match=f"training-only state of another, and Trainer needs {method}"):
        trainer.optimizer.load_state_dict(state)


@every_method
def test_settings_survive_json_and_errors_name_the_setting(method):
    defaults = METHODS[method](**WITHOUT_DOWNLOADS.get(method, {}))
    assert resolve({"nnunet_dg": {method: as_json(defaults)}}, defaults) == defaults
    with pytest.raises(SettingsError, match=rf'plans\["nnunet_dg"\]\["{method}"\].*\'no_such_setting\''):
        resolve({"nnunet_dg": {method: {"no_such_setting": 1}}}, defaults)
    for field in fields(METHODS[method]):
        with pytest.raises(SettingsError, match=field.name):
            resolve({"nnunet_dg": {method: {field.name: object()}}}, defaults)


@every_method
def test_every_method_has_a_key_a_slot_a_paper_and_described_settings(method):
    cls = METHODS[method]
    assert cls.key == method
    assert cls.slot in SLOTS
    paper = cls.paper
    assert paper.url.startswith("https://")
    assert all(len(text) > 3 for text in (paper.title, paper.authors, paper.venue))
    assert paper.title in paper.bibtex("key")
    assert [setting.name for setting in describe_settings(cls)] == [field.name for field in fields(cls)]
    assert all(len(setting.description) > 20 and setting.accepted for setting in describe_settings(cls))


def test_methods_are_combined_in_the_order_in_which_they_are_listed(make):
    """The network of the first method is the outermost, and the terms of all methods are in the loss."""
    trainer = make("sgcg", network=METHODS["dropgen"](extractor="mind"))
    result = step(trainer, batch(trainer))
    assert type(trainer.network).__name__ == "DropGenNetwork"
    assert {"segmentation", "segmentation_mixed", "contrast"} <= set(result)


def test_a_custom_method_does_not_have_to_be_in_the_catalog(make, tmp_path):
    from dataclasses import dataclass
    from typing import ClassVar

    from nnunet_dg.method import Paper, TrainingModule, number

    class Noise(TrainingModule):
        def __init__(self, strength, student):
            super().__init__()
            student.change(0, lambda feature: feature * (1 + strength * torch.randn_like(feature)), always=True)

    @dataclass(frozen=True)
    class FeatureNoise(Method):
        """Multiplies features by noise.

        Attributes:
            strength: Deviation of the noise.
        """

        key: ClassVar[str] = "noise"
        slot: ClassVar[str] = "feature statistics"
        paper: ClassVar[Paper] = Paper("Noise", "Nobody", "Nowhere", 2026, "https://example.org")
        strength: float = number(0.1, 0, 1)

        def training_module(self, student):
            return Noise(self.strength, student)

    class Trainer(MethodsTrainer):
        methods = (FeatureNoise(),)

    trainer = initialized(Trainer, planned() | {"nnunet_dg": {"noise": {"strength": 0.5}}}, CPU)
    assert trainer.settings("noise").strength == 0.5
    data = batch(trainer)["data"]
    first, second = (trainer.network.train()(data)[0] for _ in range(2))
    assert not torch.equal(first, second)
    assert set(step(trainer, batch(trainer))) == {"loss", "segmentation"}
    with pytest.raises(SettingsError, match=r"strength must be a number in \[0, 1\]; got 2"):
        initialized(Trainer, planned() | {"nnunet_dg": {"noise": {"strength": 2}}}, CPU)


def test_nnunets_own_step_runs_if_no_method_has_a_training_module(make, monkeypatch):
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    calls = []
    own = nnUNetTrainer.train_step
    monkeypatch.setattr(nnUNetTrainer, "train_step", lambda self, content: (calls.append(1), own(self, content))[1])
    trainer = make("dropgen")
    step(trainer, batch(trainer))
    assert calls == [1]
    assert isinstance(trainer.auxiliary, nn.ModuleDict)
