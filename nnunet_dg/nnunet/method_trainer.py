"""nnU-Net's trainer with a method in it, whose settings go from the class to the plans to every checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_dg.nnunet.settings import METHODS, complete, record, recorded, refuse_other_settings, resolve


class MethodTrainer(nnUNetTrainer):
    """A trainer that has one or more methods; each is a class attribute that holds its settings, named as in `METHODS`.

    ``plans["nnunet_dg"]`` comes before the attributes. All settings are written into the plans, from where
    ``plans.json``, checkpoints and inference have them. A training is not resumed with other settings, nor is another
    fold trained with them: all folds share one ``plans.json``.
    """

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008, nnU-Net's signature
    ):
        settings = {method: resolve(plans, method, getattr(self, method)) for method in self.methods()}
        super().__init__(plans, configuration, fold, dataset_json, device)
        for method, values in settings.items():
            earlier = recorded(self.output_folder_base, method, getattr(self, method))
            completed = complete(values, earlier)
            if earlier is not None and (others := self._other_trained_folds()):
                refuse_other_settings(completed, earlier, f"{', '.join(others)} in {self.output_folder_base} was")
            record(self.plans_manager.plans, method, completed)

    def _other_trained_folds(self) -> list[str]:
        checkpoints = Path(self.output_folder_base).glob("fold_*/checkpoint_*.pth")
        return sorted({path.parent.name for path in checkpoints} - {f"fold_{self.fold}"})

    @classmethod
    def methods(cls) -> list[str]:
        """The methods that this trainer has."""
        return [method for method in METHODS if hasattr(cls, method)]

    def settings(self, method: str) -> Any:
        """The settings of one of its methods."""
        return resolve(self.plans_manager.plans, method, getattr(self, method))

    def load_checkpoint(self, filename_or_checkpoint: dict | str) -> None:
        try:
            super().load_checkpoint(filename_or_checkpoint)
        finally:  # also where the network does not take the weights: other settings are the likely reason
            trained = self.my_init_kwargs["plans"]  # the checkpoint's, once nnU-Net has read it
            for method in self.methods():
                refuse_other_settings(self.settings(method), resolve(trained, method, getattr(self, method)))
