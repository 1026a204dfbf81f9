"""Several methods in one trainer, and mistakes in what a trainer lists or a method returns."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from helpers import set_nnunets_folders
from on_noise import initialized
from small_trainers import CPU, batch, planned, step

from nnunet_dg.baselines.gin import GIN
from nnunet_dg.baselines.mixstyle import MixStyle
from nnunet_dg.baselines.rsc import RSC
from nnunet_dg.dropgen import DropGen, DropGenSettings
from nnunet_dg.errors import SettingsError
from nnunet_dg.method import AroundPlanned, Method, Paper, TrainingModule
from nnunet_dg.sgcg import SgCG
from nnunet_dg.training import plans as plans_module
from nnunet_dg.training.plans import resolve, unused
from nnunet_dg.training.trainer import MethodsTrainer

PAPER = Paper("A title", "Ann Ace", "A venue", 2026, "https://example.org")


@pytest.fixture(autouse=True)
def _folders(tmp_path, monkeypatch):
    set_nnunets_folders(monkeypatch, tmp_path)


def trained_by(*listed, **section):
    class Trainer(MethodsTrainer):
        methods = listed

    torch.manual_seed(0)
    trainer = initialized(Trainer, planned() | ({"nnunet_dg": section} if section else {}), CPU)
    trainer.prepare_training()
    trainer.current_epoch = trainer.num_epochs - 1
    return trainer


class Scaled(AroundPlanned):
    """Scales its input, then doubles or squares it."""

    def __init__(self, network, name):
        super().__init__()
        self.network, self.name = network, name

    def forward(self, x):
        return self.network(2 * x if self.name == "double" else x.square())


@dataclass(frozen=True)
class Double(Method):
    """Doubles the input."""

    key: ClassVar[str] = "double"
    paper: ClassVar[Paper] = PAPER

    def build_network(self, build, inputs):
        return Scaled(build(inputs.channels), self.key)


@dataclass(frozen=True)
class Square(Double):
    """Squares the input."""

    key: ClassVar[str] = "square"


def term_method(name, losses, weights):
    """A method with some loss terms."""

    class Module(TrainingModule):
        def losses(self, step):
            return {term: value * step.output[0].square().mean() for term, value in losses.items()}

        def weights(self, epoch):
            return weights

    @dataclass(frozen=True)
    class Terms(Method):
        """Loss terms."""

        key: ClassVar[str] = name
        paper: ClassVar[Paper] = PAPER

        def training_module(self, student):
            return Module()

    return Terms()


def test_the_first_methods_network_is_the_outermost():
    trainer = trained_by(Double(), Square())
    network = trainer.network
    assert (network.name, network.network.name) == ("double", "square")
    x = torch.rand(1, 1, 16, 16, 16)
    inner = network.network.network
    torch.testing.assert_close(network(x)[0], inner((2 * x).square())[0])
    trainer.set_deep_supervision_enabled(False)
    assert isinstance(network(x), torch.Tensor)


def test_the_loss_has_the_terms_of_all_methods():
    trainer = trained_by(term_method("one", {"a": 1}, {"a": 0.5}), term_method("two", {"b": 2}, {"b": 3.0}))
    result = step(trainer, batch(trainer))
    assert set(result) == {"loss", "segmentation", "a", "b"}
    assert result["b"] == pytest.approx(2 * result["a"], rel=1e-5)
    assert result["loss"] == pytest.approx(result["segmentation"] + 0.5 * result["a"] + 3 * result["b"], rel=1e-5)


def test_images_features_and_gradients_are_changed_by_three_methods_at_once():
    trainer = trained_by(GIN(), MixStyle(p=1.0), RSC(p=1.0))
    assert set(trainer.auxiliary) == {"gin", "mixstyle", "rsc"}
    assert set(step(trainer, batch(trainer))) == {"loss", "segmentation"}


@pytest.mark.parametrize(
    "listed", [(RSC(), SgCG()), (SgCG(), term_method("x", {"consistency": 1}, {"consistency": 1}))]
)
def test_methods_with_a_term_of_the_same_name_are_refused_before_training(listed):
    with pytest.raises(SettingsError, match=r"both have the loss term '(segmentation|consistency)'. List only one"):
        trained_by(*listed)


@pytest.mark.parametrize(
    ("losses", "weights", "message"),
    [
        ({"a": 1}, {}, "The loss term 'a' has no weight"),
        ({}, {"a": 1.0}, "did not return the term 'a'"),
        ({"loss": 1}, {"loss": 1.0}, "must not be called 'loss'"),
    ],
)
def test_terms_and_weights_that_do_not_agree_are_refused(losses, weights, message):
    with pytest.raises(SettingsError, match=message):
        step(trainer := trained_by(term_method("x", losses, weights)), batch(trainer))


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"methods": (MixStyle(stages=(0,)), MixStyle(stages=(1,)))}, "two methods have the key 'mixstyle'"),
        ({"methods": (MixStyle,)}, r"must list objects such as DropGen\(\); got <class"),
        ({"dropgen": DropGenSettings(p=0.1)}, r"attribute 'dropgen' is not read. Write `methods = \(DropGen\("),
        ({"methods": (type("Undecorated", (Method,), {"key": "u", "paper": PAPER})(),)}, "decorate Undecorated with"),
        ({"methods": (dataclass(frozen=True)(type("NoPaper", (Method,), {"key": "n"}))(),)}, "attribute 'paper'"),
    ],
)
def test_a_list_of_methods_that_cannot_work_is_refused_when_the_trainer_is_defined(attributes, message):
    with pytest.raises(TypeError, match=f"Mistaken: .*{message}"):
        type("Mistaken", (MethodsTrainer,), attributes)


def test_a_stage_that_the_planned_network_does_not_have_is_refused():
    with pytest.raises(
        SettingsError, match=r'plans\["nnunet_dg"\]\["mixstyle"\]: stage 9 does not exist: .* the encoder stages 0 to 2'
    ):
        trained_by(MixStyle(stages=(0, 9)))


def test_settings_of_other_packages_methods_do_not_stop_a_trainer(monkeypatch):
    monkeypatch.setattr(plans_module, "trainers_by_method", lambda: {Double: ["nnUNetTrainerDouble"]})
    given = {"nnunet_dg": {"double": {}, "dropgen": {"p": 0.25}}}
    assert resolve(given, DropGen()).p == 0.25
    assert unused(given, ["dropgen"]) == ["double"]
    with pytest.raises(SettingsError, match=r"Unknown section .*'dubble'. Did you mean 'double'"):
        resolve({"nnunet_dg": {"dubble": {}}}, DropGen())


def test_a_scaled_loss_is_the_gradient_scalers():
    trainer = trained_by(RSC())
    loss = torch.tensor(2.0)
    assert trainer.student.scaled(loss) is loss
    trainer.grad_scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    assert float(trainer.student.scaled(loss)) == 16


def test_the_gradient_of_a_challenge_is_that_of_the_scaled_loss(monkeypatch):
    trainer, asked = trained_by(RSC(p=1.0)), []
    scaled = trainer.student.scaled
    monkeypatch.setattr(trainer.student, "scaled", lambda loss: (asked.append(loss), scaled(loss))[1])
    step(trainer, batch(trainer))
    assert len(asked) == 1
