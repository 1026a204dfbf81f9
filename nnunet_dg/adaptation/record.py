"""``adaptation.json``: what was adapted, with which settings, next to the predictions."""

from __future__ import annotations

from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pooch

from nnunet_dg.adaptation.settings import Adaptation
from nnunet_dg.errors import DataError
from nnunet_dg.files import read_json, write_json
from nnunet_dg.robustness.trained_model import TrainedModel

FILE = "adaptation.json"


class Record:
    """The record of one output folder. It is written after each case, so that a second call can resume.

    Args:
        folder: Output folder.
        setup: Everything that determines the predictions, as JSON values.
        resume: Whether an earlier record with the same setup is continued; default: a new one is begun.

    Attributes:
        chosen: Numbers that were chosen on the validation set, or None if that is still to be done.
        adapted: What adapts, see `AdaptingPredictor.adapted`.
        cases: Notes by case.
        seconds: Time that a case took, in seconds, by case; missing for cases of records that lack it.

    Raises:
        DataError: The earlier record has another setup, or is damaged.
    """

    def __init__(self, folder: Path, setup: dict[str, Any], resume: bool = False) -> None:
        self.path, self.setup = folder / FILE, setup
        self.chosen: dict[str, Any] | None = None
        self.adapted: dict[str, Any] = {}
        self.cases: dict[str, Any] = {}
        self.seconds: dict[str, float] = {}
        if resume and self.path.exists():
            earlier: dict[str, Any] = read_json(self.path, dict, "Predict into another folder.")
            if differ := sorted(name for name in setup if earlier.get(name) != setup[name]):
                raise DataError(
                    f"{self.path} is about predictions with other {', '.join(differ)}. Continue with the same options, "
                    f"choose another folder, or remove that file to predict all cases again."
                )
            self.chosen, self.cases = earlier.get("chosen"), dict(earlier.get("cases", {}))
            self.seconds = dict(earlier.get("seconds", {}))

    def choose(self, chosen: dict[str, Any]) -> None:
        """Record what was chosen on the validation set."""
        self.chosen = chosen
        self.write()

    def add(self, case: str, notes: dict[str, Any], seconds: float) -> None:
        """Record a predicted case."""
        self.cases[case], self.seconds[case] = notes, round(seconds, 3)
        self.write()

    def write(self) -> None:
        """Write the file."""
        found = {"chosen": self.chosen, "adapted": self.adapted, "cases": self.cases, "seconds": self.seconds}
        write_json(self.path, self.setup | found)


def setup_of(
    settings: Adaptation, models: dict[str, TrainedModel], validation: dict[str, Any] | None, **prediction: Any
) -> dict[str, Any]:
    """Everything that determines predictions.

    Args:
        settings: Method and its settings.
        models: Models by role.
        validation: Description of the validation set, or None.
        prediction: Other options by name.
    """
    return {
        "method": settings.key,
        "paper": settings.paper.url,
        "settings": asdict(settings),
        "models": {role: _described(model) for role, model in models.items()},
        "validation": validation,
        "prediction": prediction,
        "versions": {package: version(package) for package in ("nnunet-dg", "nnunetv2", "torch")},
    }


def _described(model: TrainedModel) -> dict[str, Any]:
    return {
        "folder": str(model.folder),
        "trainer": model.predictor.trainer_name,
        "folds": model.folds,
        "sha256": {
            f"{path.parent.name}/{path.name}": pooch.file_hash(str(path), "sha256") for path in model.checkpoints
        },
    }
