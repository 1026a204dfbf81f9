"""nnU-Net's trainer with methods. A subclass only lists its methods."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.paths import nnUNet_raw
from nnunetv2.utilities.collate_outputs import collate_outputs
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from nnunet_dg.datasets.domains import locate, read_file
from nnunet_dg.datasets.normalization import fitted_to_ct
from nnunet_dg.errors import DataError, DimensionError, SettingsError, VersionError
from nnunet_dg.host import is_compiled, unwrap
from nnunet_dg.method import SEGMENTATION, Inputs, Method, TrainingModule
from nnunet_dg.names import printable
from nnunet_dg.outside import Outside
from nnunet_dg.training.augmentation import own_training_transforms
from nnunet_dg.training.balanced_batches import CASES, balanced_data_loaders, cases_by_domain, is_balanced
from nnunet_dg.training.checkpoint import IN_OPTIMIZER_STATE, TrainingState
from nnunet_dg.training.fold_settings import Folds, is_trained, withdraw_fold, writing_fold
from nnunet_dg.training.loss_curves import add_term_curves, log_key
from nnunet_dg.training.planned_run import PlannedRunTrainer
from nnunet_dg.training.plans import (
    KEY,
    as_json,
    planned_for_other,
    record,
    refuse_misplaced,
    refuse_other_settings,
    resolve,
    unused,
)
from nnunet_dg.training.student import HostStudent
from nnunet_dg.training.train_step import MAX_GRADIENT_NORM, joined, train_step

TOTAL = "loss"  # nnU-Net's name of the whole loss in the results of a training step


class MethodsTrainer(PlannedRunTrainer):
    """Base trainer of nnU-Net for methods. A subclass lists them in `methods`.

    Methods change the network, augment the batch and add loss terms in the order of the list. Settings in
    ``plans["nnunet_dg"]`` take precedence over those of the listed methods. All settings are recorded in a copy of the
    plans, which nnU-Net writes to ``plans.json`` and checkpoints and reads at inference. Resuming a training, or
    training another fold, with other settings raises an error, since all folds share one ``plans.json``.

    Attributes:
        methods: Methods; those of a trainer object have the settings of its training.
        auxiliary: Training modules by the key of their method.
        pretrained: Whether the training started from pretrained weights (``-pretrained_weights``); known after
            `initialize`, and saved in checkpoints.
        training_domains: Numbers of the domains with a training case in this fold; None until the data are read.
        max_gradient_norm: Norm to which gradients are clipped; None: they are not clipped.
    """

    methods: tuple[Method, ...] = ()
    auxiliary: nn.ModuleDict
    pretrained = False
    training_domains: tuple[int, ...] | None = None
    max_gradient_norm: float | None = MAX_GRADIENT_NORM

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008, nnU-Net's signature
    ) -> None:
        plans = deepcopy(plans)  # nnU-Net and this class change them
        refuse_misplaced(plans)
        resolved = [resolve(plans, method, self.keys()) for method in type(self).methods]
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.enable_deep_supervision &= all(method.deep_supervision for method in resolved)
        self.folds = Folds(Path(self.output_folder_base), f"fold_{self.fold}", type(self).methods)
        known = [self._for_domains(method) for method in resolved]
        self.methods = tuple(self.folds.completed(method, self.print_to_log_file) for method in known)
        for method in self.methods:
            record(self.plans_manager.plans, method)

    def _for_domains(self, method: Method) -> Method:
        try:
            return method.for_domains(self._number_of_domains)
        except SettingsError as error:
            raise SettingsError(f'plans["{KEY}"]["{method.key}"]: {error}') from error

    def _number_of_domains(self) -> int:
        raw = Path(nnUNet_raw, self.plans_manager.dataset_name) if nnUNet_raw else None
        path = locate(raw, Path(self.preprocessed_dataset_folder_base))
        return len(set(read_file(path).values())) if path.is_file() else 1

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Check what a subclass lists, when it is defined.

        Raises:
            TypeError: The list of methods cannot work. The message says why.
        """
        super().__init_subclass__(**kwargs)
        check_methods(cls.__name__, cls.methods)
        for name, value in vars(cls).items():
            if isinstance(value, Method):
                raise TypeError(f"{cls.__name__}: the attribute {name!r} is not read. Write `methods = ({value!r},)`.")

    @classmethod
    def keys(cls) -> list[str]:
        """The keys of the methods, which are the names of their sections in the plans."""
        return [method.key for method in cls.methods]

    def settings(self, key: str) -> Any:
        """The method with this key and the settings of this training."""
        return next(method for method in self.methods if method.key == key)

    @classmethod
    def build_network_architecture(
        cls,
        plans_manager: Any,
        configuration_manager: Any,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """The planned network with the changes of all methods. The network of the first method is the outermost."""

        def planned(channels: int) -> nn.Module:
            return super(MethodsTrainer, cls).build_network_architecture(
                plans_manager, configuration_manager, channels, num_output_channels, enable_deep_supervision
            )

        outside = Outside.of(configuration_manager)
        patch_size = tuple(configuration_manager.patch_size)
        inputs = Inputs(num_input_channels, len(outside.masked), patch_size, outside, num_output_channels)
        build: Callable[[int], nn.Module] = planned
        for method in reversed(cls.methods):
            build = partial(_build_method, resolve(plans_manager.plans, method, cls.keys()), build, inputs)
        try:
            return build(num_input_channels)
        except NotImplementedError as error:
            raise NotImplementedError(f"{cls.__name__}: {error}") from None

    def initialize(self) -> None:
        super().initialize()
        self.build_training_modules()
        if not is_trained(Path(self.output_folder)):  # a resumed or validated fold has settings that are checked later
            self._write_settings()

    def _training_module(self, method: Method) -> TrainingModule | None:
        try:
            return method.training_module(self.student)
        except DimensionError as error:
            raise DimensionError(f"{type(self).__name__}: {error}") from error
        except SettingsError as error:
            raise SettingsError(f'plans["{KEY}"]["{method.key}"]: {error}') from error

    def build_training_modules(self) -> None:
        """Build the methods' training modules, after the network."""
        self.student = HostStudent(self)
        optional = {method.key: self._training_module(method) for method in self.methods}
        modules = {key: module.to(self.device) for key, module in optional.items() if module is not None}
        if is_compiled(self.network):
            for module in modules.values():
                for part in module.compiled():
                    part.compile()  # in place, so that names in state dicts stay the same
        self.auxiliary = nn.ModuleDict({key: self._distributed(module) for key, module in modules.items()})
        if not modules:
            return
        if parameters := list(self.auxiliary.parameters()):
            self.optimizer.add_param_group({"params": parameters})
        self.optimizer.register_state_dict_post_hook(self._add_training_state)
        self.optimizer.register_load_state_dict_pre_hook(self._load_training_state)
        for name in self.term_weights():
            self.logger.local_logger.my_fantastic_logging[log_key(name)] = []
        # nnU-Net loads -pretrained_weights into the network after this. So does load_checkpoint, but the optimizer's
        # state, which is loaded later, restores the value in the checkpoint
        unwrap(self.network).register_load_state_dict_post_hook(self._notice_weights())

    def _notice_weights(self) -> Callable[..., None]:
        def notice(*_: Any) -> None:  # a copy of the network shares this function, but would copy a bound method
            self.pretrained = True

        return notice

    def _distributed(self, module: nn.Module) -> nn.Module:
        if not self.is_ddp:
            return module
        if not any(parameter.requires_grad for parameter in module.parameters()):
            for value in module.state_dict().values():  # DDP refuses such a module, but it must be equal on all devices
                if isinstance(value, Tensor):  # not samples of earlier steps
                    distributed.broadcast(value, 0)
            return module
        return DistributedDataParallel(module, device_ids=[self.local_rank] if self.device.type == "cuda" else None)

    def _conditions(self) -> dict[str, dict[str, Any]]:
        return {key: unwrap(module).conditions() for key, module in self.auxiliary.items()}  # type: ignore[operator]

    def _add_training_state(self, _: Any, state: dict[str, Any]) -> None:
        modules = {key: unwrap(module).state_dict() for key, module in self.auxiliary.items()}
        state[IN_OPTIMIZER_STATE] = TrainingState(modules, self._conditions(), self.pretrained).written()

    def _load_training_state(self, _: Any, state: dict[str, Any]) -> None:
        saved = TrainingState.read(state, type(self).__name__, list(self.auxiliary))
        saved.refuse_other_conditions(self._conditions())
        for key, module in self.auxiliary.items():
            saved.load(key, unwrap(module))
        self.pretrained = saved.pretrained

    def on_train_start(self) -> None:
        if not self.was_initialized:
            self.initialize()
        try:
            self.folds.refuse_others(self.methods)  # before nnU-Net writes the plans.json that all folds share
            self.prepare_training()
            self._warn()
            super().on_train_start()
        except BaseException:  # no step was made, so other folds do not need the same settings
            if not self.disable_checkpointing:
                withdraw_fold(Path(self.output_folder))
            raise
        self._write_settings()

    def prepare_training(self) -> None:
        """Load frozen weights, which may raise errors about settings, and prepare the training modules."""
        for method in self.methods:
            method.prepare_network(unwrap(self.network), self.print_to_log_file)
            dims = len(self.configuration_manager.patch_size)
            if warning := planned_for_other(self.plans_manager.plans, method, dims):
                self.print_to_log_file(warning)
        for module in self.auxiliary.values():
            unwrap(module).prepare()  # type: ignore[operator]

    def _warn(self) -> None:
        for method in unused(self.plans_manager.plans, self.keys()):
            self.print_to_log_file(f'{type(self).__name__} does not use plans["{KEY}"]["{method}"].')
        if warning := fitted_to_ct(self.plans_manager.plans, self.configuration_manager, self.dataset_json):
            self.print_to_log_file(f"WARNING: {warning}")

    def _write_settings(self) -> None:
        """Write the settings of this fold before the first step, so that other folds are compared with them.

        If two folds start at the same time, neither sees the other's settings at first, so they are read again here.
        """
        if self.local_rank == 0 and not self.disable_checkpointing:
            sections = {method.key: as_json(method) for method in self.methods}
            with writing_fold(Path(self.output_folder), sections):
                self.folds.refuse_others(self.methods)

    def get_tr_and_val_datasets(self) -> Any:
        training, validation = super().get_tr_and_val_datasets()
        balances = any(method.balances_domains() for method in self.methods)
        if balances or ("student" in vars(self) and self.student.reads_domains):
            of_case = self.student.known_domains.of_case
            cases = cases_by_domain(list(training.identifiers), of_case)
            self.training_domains = tuple(of_case[of_domain[0]] for of_domain in cases)
            if balances and len(cases) > 1:
                setattr(training, CASES, cases)
        return training, validation

    def _refuse_too_few_domains(self) -> None:
        for method in self.methods:
            if method.fewest_domains == 1:
                continue
            training, _ = super().get_tr_and_val_datasets()
            of_case, names = self.student.known_domains.of_case, self.student.domain_names
            present = sorted({names[of_case[case]] for case in training.identifiers})
            if len(present) < method.fewest_domains:
                which = f": {', '.join(map(printable, present))}" if any(present) else ""
                raise DataError(
                    f"{type(self).__name__}: {type(method).__name__} needs training cases of at least "
                    f"{method.fewest_domains} domains; those of {self.folds.fold} have {len(present)}{which}. Assign "
                    f"cases to domains in domains.json in the raw dataset folder, choose splits with cases of more "
                    f"domains, or train with another method."
                )

    def get_dataloaders(self) -> Any:
        """nnU-Net's data loaders, with the methods' augmentation, and balanced over domains if a method requires it."""
        self._refuse_too_few_domains()
        with balanced_data_loaders(), own_training_transforms(self):
            training, validation = super().get_dataloaders()
        if is_balanced(training):
            self.print_to_log_file(f"Batches are balanced over {len(self.training_domains or ())} domains")
        return training, validation

    def term_weights(self) -> dict[str, float]:
        """The weight of each loss term in this epoch. nnU-Net's own loss has weight 1 unless a method sets it."""
        weights: dict[str, float] = {}
        for key, module in self.auxiliary.items():
            weights = joined(weights, unwrap(module).weights(self.current_epoch), key)  # type: ignore[operator]
        if TOTAL in weights:
            raise SettingsError(f"A loss term must not be called {TOTAL!r}, which is nnU-Net's name of the whole loss.")
        return weights if SEGMENTATION in weights else {SEGMENTATION: 1.0} | weights

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        self.auxiliary.train()
        for module in self.auxiliary.values():
            unwrap(module).start_epoch(self.current_epoch)  # type: ignore[operator]

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """A step with the methods' loss terms; nnU-Net's own step if it would do the same."""
        ours = self.auxiliary or self.max_gradient_norm != MAX_GRADIENT_NORM
        return train_step(self, batch) if ours else super().train_step(batch)

    def on_train_epoch_end(self, train_outputs: list[dict[str, Any]]) -> None:
        super().on_train_epoch_end(train_outputs)
        if not self.auxiliary:
            return
        outputs = collate_outputs(train_outputs)
        for name in self.term_weights():
            value = float(np.mean(self._of_all_devices(outputs[name])))
            self.logger.log(log_key(name), value, self.current_epoch)
            self.print_to_log_file(log_key(name), round(value, 4))
        for module in self.auxiliary.values():
            unwrap(module).end_epoch(self.current_epoch)  # type: ignore[operator]

    def _of_all_devices(self, values: list[float]) -> list[list[float]]:
        if not self.is_ddp:
            return [values]
        gathered: list[list[float]] = [[]] * distributed.get_world_size()
        distributed.all_gather_object(gathered, values)
        return gathered

    def on_epoch_end(self) -> None:
        super().on_epoch_end()
        if self.local_rank == 0 and self.auxiliary:
            curves = {name: self.logger.get_value(log_key(name), None) for name in self.term_weights()}
            add_term_curves(Path(self.output_folder, "progress.png"), curves)

    def load_checkpoint(self, *args: Any, **kwargs: Any) -> None:  # releases of nnU-Net name the argument differently
        try:
            super().load_checkpoint(*args, **kwargs)
        except VersionError:
            raise
        except Exception:
            self._refuse_other_settings()  # the likely reason why the weights do not fit
            raise
        self._refuse_other_settings()

    def _refuse_other_settings(self) -> None:
        plans = self.my_init_kwargs["plans"]  # those of the checkpoint, once nnU-Net has read it
        for method, defaults in zip(self.methods, type(self).methods, strict=True):
            refuse_other_settings(method, resolve(plans, defaults, self.keys()))


def check_methods(trainer: str, methods: tuple[Method, ...]) -> None:
    """Check the methods that a trainer lists.

    Args:
        trainer: Name of the trainer, for messages.
        methods: Its methods.

    Raises:
        TypeError: One is not a `Method` object, is not a dataclass, lacks ``key`` or ``paper``, two have one key, or
            two replace nnU-Net's augmentation.
    """
    for method in methods:
        if not isinstance(method, Method):
            raise TypeError(f"{trainer}: `methods` must list objects such as DropGen(); got {method!r}.")
        kind = type(method)
        if "__dataclass_fields__" not in vars(kind):
            raise TypeError(f"{trainer}: decorate {kind.__name__} with @dataclass(frozen=True).")
        if missing := [name for name in ("key", "paper") if not hasattr(kind, name)]:
            raise TypeError(f"{trainer}: {kind.__name__} needs the class attribute {missing[0]!r}.")
    keys = [method.key for method in methods]
    if twice := [key for key in keys if keys.count(key) > 1]:
        raise TypeError(f"{trainer}: two methods have the key {twice[0]!r}, and one section in the plans. List one.")
    replacing = [method.key for method in methods if method.replaces_augmentation()]
    if len(replacing) > 1:
        raise TypeError(
            f"{trainer}: {replacing[0]!r} and {replacing[1]!r} both replace nnU-Net's augmentation. List one."
        )


def _build_method(method: Method, build: Callable[[int], nn.Module], inputs: Inputs, channels: int) -> nn.Module:
    return method.build_network(build, replace(inputs, channels=channels))
