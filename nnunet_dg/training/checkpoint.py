"""The training-only state of methods in a checkpoint.

nnU-Net saves and restores the state of its optimizer, so the training-only state is stored there, under a separate key.
``network_weights`` and everything else that inference reads are as nnU-Net writes them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from nnunet_dg.errors import DataError, VersionError

IN_OPTIMIZER_STATE = "nnunet_dg_auxiliary"
VERSION = 2
INSTEAD = "or start from its weights with -pretrained_weights"


@dataclass(frozen=True)
class TrainingState:
    """The training-only state of all methods of a trainer.

    Attributes:
        modules: State dict of each method's training module, by the method's key.
        conditions: Values that must be unchanged when the training resumes, by the method's key and by name.
        pretrained: Whether the training started from pretrained weights.
    """

    modules: dict[str, dict[str, Any]]
    conditions: dict[str, dict[str, Any]]
    pretrained: bool = False

    def written(self) -> dict[str, Any]:
        """The state as it is stored in a checkpoint."""
        return {"version": VERSION} | vars(self)

    @classmethod
    def read(cls, optimizer_state: Mapping[str, Any], trainer: str, methods: Sequence[str]) -> TrainingState:
        """Read the state from a checkpoint's optimizer state.

        Version 1, written by development versions of 0.1.0, has the modules of a single method, without its key. The
        next release is the last one that reads it.

        Args:
            optimizer_state: State dict of the optimizer.
            trainer: Name of the trainer, for messages.
            methods: Keys of the methods that have a training module.

        Raises:
            DataError: The checkpoint has no training-only state, or that of other methods.
            VersionError: Another version of this package wrote the checkpoint.
        """
        if IN_OPTIMIZER_STATE not in optimizer_state:
            raise DataError(
                f"This checkpoint was not written by {trainer}: it has no training-only state. Continue with the "
                f"trainer that wrote it, {INSTEAD}."
            )
        saved = dict(optimizer_state[IN_OPTIMIZER_STATE])
        version = saved.pop("version", 1)
        if version == 1:
            saved = _upgraded(saved, methods[0])
        elif version != VERSION:
            raise VersionError(
                f"This checkpoint's training-only state has version {version}; this version of nnunet-dg reads "
                f"versions 1 and {VERSION}. Continue with the version of nnunet-dg that wrote it, {INSTEAD}."
            )
        if set(saved["modules"]) != set(methods):
            raise DataError(
                f"This checkpoint has training-only state of {', '.join(sorted(saved['modules'])) or 'no method'}, and "
                f"{trainer} needs {', '.join(sorted(methods))}. Continue with the trainer that wrote it, {INSTEAD}."
            )
        return cls(**saved)

    def load(self, method: str, module: nn.Module) -> None:
        """Load the state of a method into its training module.

        Development versions of 0.1.0 did not save earlier samples: with their checkpoints, these stay empty.

        Args:
            method: Key of the method.
            module: Its training module, neither compiled nor distributed.
        """
        samples = {name: value for name, value in module.state_dict().items() if not isinstance(value, Tensor)}
        module.load_state_dict(samples | self.modules[method])

    def refuse_other_conditions(self, now: Mapping[str, Mapping[str, Any]]) -> None:
        """Raise an error if a condition has changed since the checkpoint was written.

        Args:
            now: Conditions of this training, by the method's key and by name.

        Raises:
            DataError: A condition has changed. The message names it.
            VersionError: The version that wrote the checkpoint did not record a condition.
        """
        for method, conditions in now.items():
            for name, value in conditions.items():
                _refuse_other(name, self.conditions.get(method, {}).get(name), value)


def _upgraded(saved: dict[str, Any], method: str) -> dict[str, Any]:
    modules = {f"{part}.{key}": value for part, state in saved["modules"].items() for key, value in state.items()}
    return {
        "modules": {method: modules},
        "conditions": {method: saved.get("conditions", {})},
        "pretrained": saved.get("pretrained", False),
    }


def _refuse_other(name: str, then: Any, now: Any) -> None:
    if then is None:
        raise VersionError(
            f"This checkpoint was written by an earlier version of nnunet-dg, which did not record its {name}; this "
            f"training has {now!r}. Continue with the version that wrote it, {INSTEAD}. nnUNetv2_predict and "
            f"nnunet-dg export accept it."
        )
    if then != now:
        raise DataError(
            f"This checkpoint was trained with {name} {then!r}; this training has {now!r}. Restore the earlier value, "
            f"{INSTEAD}."
        )
