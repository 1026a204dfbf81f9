"""nnU-Net's trainer with a method in it, whose settings go from the class to the plans to every checkpoint."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_dg.datasets.normalization import fitted_to_ct
from nnunet_dg.errors import SettingsError
from nnunet_dg.outside import Outside
from nnunet_dg.training.fold_settings import is_trained, read_folds, withdraw_fold, writing_fold
from nnunet_dg.training.padding import keep_padding
from nnunet_dg.training.plans import (
    KEY,
    METHODS,
    as_json,
    complete,
    record,
    refuse_misplaced,
    refuse_other_settings,
    resolve,
    unused,
)


class MethodTrainer(nnUNetTrainer):
    """A trainer that has one or more methods; each is a class attribute that holds its settings, named as in `METHODS`.

    ``plans["nnunet_dg"]`` comes before the attributes. All settings are written into a copy of the plans, from where
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
        plans = deepcopy(plans)  # nnU-Net changes what it is given, and so do we; the caller may build another trainer
        refuse_misplaced(plans)
        settings = {method: resolve(plans, method, getattr(self, method)) for method in self.methods()}
        super().__init__(plans, configuration, fold, dataset_json, device)
        folds = read_folds(Path(self.output_folder_base))
        for method, values in settings.items():
            record(self.plans_manager.plans, method, self._agreed(method, values, folds))

    def _agreed(self, method: str, values: Any, folds: dict[str, dict[str, Any]]) -> Any:
        """The settings of a method, completed, and the same as those of the results folder's other folds."""
        own = f"fold_{self.fold}"
        others = self._other_folds(method, folds)
        earlier = list(others.values())
        if own in folds:  # its settings may change, and what it found out is still right where they did not
            try:
                earlier.insert(0, self._as_trained(own, method, folds[own]))
            except SettingsError:
                self.print_to_log_file(f"The settings of an earlier training in {own} are those of another version.")
        completed = complete(values, earlier[0] if earlier else None)
        self._refuse_others(completed, others)
        return completed

    def _other_folds(self, method: str, folds: dict[str, dict[str, Any]]) -> dict[str, Any]:
        others = {fold: sections for fold, sections in folds.items() if fold != f"fold_{self.fold}"}
        found = {fold: self._as_trained(fold, method, sections) for fold, sections in others.items()}
        return {fold: settings for fold, settings in found.items() if settings is not None}

    def _refuse_others(self, settings: Any, others: dict[str, Any]) -> None:
        for fold, theirs in others.items():
            trained = is_trained(Path(self.output_folder_base, fold))
            whose = f"{fold} in {self.output_folder_base} was {'trained' if trained else 'started'}"
            again = "" if trained else f", or start {fold} again with the new settings first"
            advice = f"{again}, or move that fold away: folds share one plans.json"
            refuse_other_settings(settings, theirs, whose, advice)

    def _refuse_other_folds(self) -> None:
        """As in the beginning: another fold may have been started since."""
        folds = read_folds(Path(self.output_folder_base))
        for method in self.methods():
            self._refuse_others(self.settings(method), self._other_folds(method, folds))

    def _as_trained(self, fold: str, method: str, sections: dict[str, Any]) -> Any:
        if method not in sections:
            return None
        try:
            return resolve({KEY: {method: sections[method]}}, method, getattr(self, method))
        except SettingsError as error:
            folder = Path(self.output_folder_base, fold)
            raise SettingsError(f"{folder}, of an earlier training: {error} Move that folder away.") from error

    @classmethod
    def methods(cls) -> list[str]:
        """The methods that this trainer has."""
        return [method for method in METHODS if hasattr(cls, method)]

    def settings(self, method: str) -> Any:
        """The settings of one of its methods."""
        return resolve(self.plans_manager.plans, method, getattr(self, method))

    def initialize(self) -> None:
        super().initialize()
        self.prepare()
        if not is_trained(Path(self.output_folder)):  # else this may be `--c` or `--val`, which settings may yet refuse
            self._write_settings()

    def prepare(self) -> None:
        """What a method needs beside the network, once that exists.

        It may refuse the settings: they are written afterwards, and a refused training leaves none.
        """

    def prepare_training(self) -> None:
        """What only a training needs, such as weights to start from. It may refuse the settings as well."""

    def on_train_start(self) -> None:
        if not self.was_initialized:
            self.initialize()
        try:
            self._refuse_other_folds()  # before nnU-Net writes the plans.json that they share
            self.prepare_training()
            self._warn()
            super().on_train_start()
        except BaseException:  # no step was made, so other folds need not agree with this one
            if not self.disable_checkpointing:
                withdraw_fold(Path(self.output_folder))
            raise
        self._write_settings()

    def _warn(self) -> None:
        for method in unused(self.plans_manager.plans, self.methods()):
            self.print_to_log_file(f'{type(self).__name__} does not use plans["{KEY}"]["{method}"].')
        if warning := fitted_to_ct(self.plans_manager.plans, self.configuration_manager, self.dataset_json):
            self.print_to_log_file(f"WARNING: {warning}")

    def _write_settings(self) -> None:
        """Before the first step, so that other folds can be held against them as soon as this one is started.

        Two folds that are started at once have read each other's settings too early: they are read again.
        """
        if self.local_rank == 0 and not self.disable_checkpointing:
            sections = {name: as_json(self.settings(name)) for name in self.methods()}
            with writing_fold(Path(self.output_folder), sections):
                self._refuse_other_folds()

    def get_dataloaders(self) -> Any:
        """nnU-Net's, whose training patches are exactly zero in the padding, as they are at inference."""
        if not all(Outside.of(self.configuration_manager).centered):
            return super().get_dataloaders()
        planned = self.get_training_transforms  # nnU-Net's is static, so it cannot see the normalization

        def transforms(*args: Any, **kwargs: Any) -> BasicTransform:
            return keep_padding(planned(*args, **kwargs))

        self.__dict__["get_training_transforms"] = transforms
        try:
            return super().get_dataloaders()
        finally:
            del self.__dict__["get_training_transforms"]

    def load_checkpoint(self, filename_or_checkpoint: dict | str) -> None:
        try:
            super().load_checkpoint(filename_or_checkpoint)
        finally:  # also where the network does not take the weights: other settings are the likely reason
            trained = self.my_init_kwargs["plans"]  # the checkpoint's, once nnU-Net has read it
            for method in self.methods():
                refuse_other_settings(self.settings(method), resolve(trained, method, getattr(self, method)))
