"""Settings of the methods of test-time adaptation."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar

from nnunet_dg.fields import choice, number
from nnunet_dg.method import Paper

EASTWOOD = Paper(
    "Spuriosity Didn't Kill the Classifier: Using Invariant Predictions to Harness Spurious Features",
    "Cian Eastwood, Shashank Singh, Andrei Liviu Nicolicioiu, Marin Vlastelica, Julius von Kügelgen, "
    "Bernhard Schölkopf",
    "Advances in Neural Information Processing Systems (NeurIPS)",
    2023,
    "https://arxiv.org/abs/2307.09933",
)


@dataclass(frozen=True)
class Adaptation:
    """Base of the settings. Values are checked when an object is created.

    Attributes:
        key: Name of the method on the command line.
        two_models: Whether the method needs a stable model as well.
        paper: Publication of the method.

    Raises:
        SettingsError: A value is not accepted. The message names the setting.
    """

    key: ClassVar[str]
    two_models: ClassVar[bool]
    paper: ClassVar[Paper]

    def __post_init__(self) -> None:
        for field in fields(self):
            if check := field.metadata.get("check"):
                object.__setattr__(self, field.name, check.checked(f"`{field.name}`", getattr(self, field.name)))

    @classmethod
    def names(cls) -> list[str]:
        """Names of the settings."""
        return [field.name for field in fields(cls)]


@dataclass(frozen=True)
class Tent(Adaptation):
    """TENT: entropy minimization. For each volume, it changes the scales and shifts of norm layers, by SGD.

    The paper adapts online with Adam; DropGen's authors start each volume from the trained weights and use SGD on
    random crops, as here. They tuned steps and rate on a validation set and do not state them.

    Attributes:
        steps: Number of steps per volume; 0: no change of weights.
        rate: Learning rate.
        statistics: Statistics of batch norm at prediction: ``"patch"``, those of each window (the paper's), or
            ``"source"``, the trained ones. While adapting, they are those of the crops. Other norms have no choice.
    """

    key: ClassVar[str] = "tent"
    two_models: ClassVar[bool] = False
    paper: ClassVar[Paper] = Paper(
        "Tent: Fully Test-Time Adaptation by Entropy Minimization",
        "Dequan Wang, Evan Shelhamer, Shaoteng Liu, Bruno Olshausen, Trevor Darrell",
        "International Conference on Learning Representations (ICLR)",
        2021,
        "https://arxiv.org/abs/2006.10726",
    )

    steps: int = number(10, 0, 100_000, whole=True)
    rate: float = number(1e-3, 0, 1e3)
    statistics: str = choice("patch", "source")


@dataclass(frozen=True)
class SFB(Adaptation):
    """Stable feature boosting: for each volume, it fine-tunes an unstable model to a stable one's pseudo-labels.

    As DropGen's authors use it. They tuned steps and rate on a validation set and do not state them.

    Attributes:
        rounds: Rounds of fine-tuning and correction. The theory is about one round.
        steps: Number of steps per round.
        rate: Learning rate of AdamW.
    """

    key: ClassVar[str] = "sfb"
    two_models: ClassVar[bool] = True
    paper: ClassVar[Paper] = EASTWOOD

    rounds: int = number(3, 1, 100, whole=True)
    steps: int = number(50, 0, 100_000, whole=True)
    rate: float = number(1e-4, 0, 1e3)


@dataclass(frozen=True)
class Alpha(Adaptation):
    """Alpha tuning: a mixture of the logits of a stable and an unstable model, with the share that validation picks."""

    key: ClassVar[str] = "alpha"
    two_models: ClassVar[bool] = True
    paper: ClassVar[Paper] = Paper(
        "Invariant and Transportable Representations for Anti-Causal Domain Shifts",
        "Yibo Jiang, Victor Veitch",
        "Advances in Neural Information Processing Systems (NeurIPS)",
        2022,
        "https://arxiv.org/abs/2207.01603",
    )


METHODS: dict[str, Any] = {method.key: method for method in (Tent, SFB, Alpha)}
