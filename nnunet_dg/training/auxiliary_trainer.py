"""The ground under methods that need more than a network while they train: modules, features, named loss terms."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from batchgenerators.utilities.file_and_folder_operations import join
from nnunetv2.utilities.collate_outputs import collate_outputs
from nnunetv2.utilities.helpers import dummy_context
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from nnunet_dg.errors import DataError
from nnunet_dg.host import unwrap
from nnunet_dg.training.loss_curves import add_term_curves
from nnunet_dg.training.method_trainer import MethodTrainer

IN_OPTIMIZER_STATE = "nnunet_dg_auxiliary"  # where a checkpoint holds what only the training needs
LOG_PREFIX = "loss_"  # of the terms, in nnU-Net's logger
MAX_GRADIENT_NORM = 12  # nnU-Net's


class AuxiliaryTrainer(MethodTrainer):
    """Trains the network beside auxiliary modules, on the weighted sum of named loss terms.

    A subclass says `build_auxiliary`, `term_weights` and `loss_terms`. The auxiliary modules are optimised with
    nnU-Net's optimiser in a parameter group of their own, clipped as the network is, wrapped for DDP, and kept in the
    checkpoints beside ``network_weights``, in the optimiser's state, from where ``--c`` restores them. The network and
    what inference loads are untouched. Every term is in nnU-Net's training log and the progress picture.

    Attributes:
        pretrained: Whether the training started from given weights (``-pretrained_weights``); known after `initialize`,
            and kept in the checkpoints.
    """

    auxiliary: nn.ModuleDict
    pretrained = False

    def build_auxiliary(self) -> dict[str, nn.Module]:
        """The modules, once the network exists; the place to make a `Tap` as well."""
        raise NotImplementedError

    def term_weights(self) -> dict[str, float]:
        """The weight of every term in this epoch; the names are the same in all epochs. 0: not to be computed."""
        raise NotImplementedError

    def loss_terms(self, data: Tensor, target: Tensor | list[Tensor], keys: list[str]) -> dict[str, Tensor]:
        """The terms, scalars, from nnU-Net's batch: on the device, under autocast where nnU-Net uses it.

        Terms whose weight is 0 in this epoch may be left out. They are logged as 0, which is what they contribute.

        Args:
            data: ``(B, C, *spatial)``.
            target: ``(B, 1 or regions, *spatial)``, from full to lowest resolution under deep supervision.
            keys: the case of each sample.
        """
        raise NotImplementedError

    def conditions(self) -> dict[str, Any]:
        """What beside the settings must be the same when a training goes on, by name; kept in the checkpoints."""
        return {}

    @property
    def num_images(self) -> int:
        """How many channels of the batch are images; those after them are the previous stage of a cascade."""
        return len(self.configuration_manager.normalization_schemes)

    def at_full_resolution(self, scales: Tensor | list[Tensor]) -> Tensor:
        """The first of deep supervision's outputs or targets; without it, what is given."""
        return scales[0] if isinstance(scales, list) else scales

    def prepare(self) -> None:
        super().prepare()
        modules = {name: module.to(self.device) for name, module in self.build_auxiliary().items()}
        self.auxiliary = nn.ModuleDict({name: self._distributed(module) for name, module in modules.items()})
        self.auxiliary_parameters = list(self.auxiliary.parameters())
        if self.auxiliary_parameters:
            self.optimizer.add_param_group({"params": self.auxiliary_parameters})
        self.optimizer.register_state_dict_post_hook(self._add_auxiliary_state)
        self.optimizer.register_load_state_dict_pre_hook(self._load_auxiliary_state)
        for name in self.term_weights():
            self.logger.local_logger.my_fantastic_logging[log_key(name)] = []
        # nnU-Net loads -pretrained_weights into the network after this. So does load_checkpoint, but then the
        # optimizer's state brings the value that the checkpoint has
        unwrap(self.network).register_load_state_dict_post_hook(self._notice_weights())

    def _notice_weights(self) -> Callable[..., None]:
        def notice(*_: Any) -> None:  # a function, which a copy of the network shares; a method would be copied
            self.pretrained = True

        return notice

    def _distributed(self, module: nn.Module) -> nn.Module:
        if not self.is_ddp:
            return module
        if not any(parameter.requires_grad for parameter in module.parameters()):
            for value in module.state_dict().values():  # DDP has nothing to do with it, but it is the same everywhere
                distributed.broadcast(value, 0)
            return module
        return DistributedDataParallel(module, device_ids=[self.local_rank] if self.device.type == "cuda" else None)

    def _add_auxiliary_state(self, _: Any, state: dict[str, Any]) -> None:
        modules = {name: unwrap(module).state_dict() for name, module in self.auxiliary.items()}
        state[IN_OPTIMIZER_STATE] = {
            "modules": modules,
            "conditions": self.conditions(),
            "pretrained": self.pretrained,
        }

    def _load_auxiliary_state(self, _: Any, state: dict[str, Any]) -> None:
        if IN_OPTIMIZER_STATE not in state:
            raise DataError(
                f"This checkpoint was not written by {type(self).__name__}: what the training needs beside the network "
                f"is not in it. Continue with the trainer that wrote it, or start from it with -pretrained_weights."
            )
        saved = state[IN_OPTIMIZER_STATE]
        for name, now in self.conditions().items():
            refuse_other_condition(name, saved["conditions"].get(name), now)
        for name, module in self.auxiliary.items():
            unwrap(module).load_state_dict(saved["modules"][name])
        self.pretrained = saved.get("pretrained", False)

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        self.auxiliary.train()

    def train_step(self, batch: dict) -> dict:
        """nnU-Net's, with the terms in place of the loss."""
        data, target = batch["data"].to(self.device, non_blocking=True), batch["target"]
        if isinstance(target, list):
            target = [t.to(self.device, non_blocking=True) for t in target]
        else:
            target = target.to(self.device, non_blocking=True)
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda") if self.device.type == "cuda" else dummy_context():
            weights = self.term_weights()
            terms = self.loss_terms(data, target, list(batch["keys"]))
            loss = torch.stack([w * terms[name] for name, w in weights.items() if w]).sum()
        scaler = self.grad_scaler
        (loss if scaler is None else scaler.scale(loss)).backward()
        if scaler is not None:
            scaler.unscale_(self.optimizer)
        for parameters in (self.network.parameters(), self.auxiliary_parameters):
            nn.utils.clip_grad_norm_(parameters, MAX_GRADIENT_NORM)
        if scaler is None:
            self.optimizer.step()
        else:
            scaler.step(self.optimizer)
            scaler.update()
        values = torch.stack([loss, *terms.values()]).detach().float().cpu().numpy()
        return dict.fromkeys(weights, np.float32(0)) | dict(zip(["loss", *terms], values, strict=True))

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        super().on_train_epoch_end(train_outputs)
        outputs = collate_outputs(train_outputs)
        for name in self.term_weights():
            value = float(np.mean(self._of_all_processes(outputs[name])))
            self.logger.log(log_key(name), value, self.current_epoch)
            self.print_to_log_file(log_key(name), round(value, 4))

    def _of_all_processes(self, values: list[float]) -> list[list[float]]:
        if not self.is_ddp:
            return [values]
        gathered: list[list[float]] = [[]] * distributed.get_world_size()
        distributed.all_gather_object(gathered, values)
        return gathered

    def on_epoch_end(self) -> None:
        super().on_epoch_end()
        if self.local_rank == 0:
            curves = {name: self.logger.get_value(log_key(name), None) for name in self.term_weights()}
            add_term_curves(Path(join(self.output_folder, "progress.png")), curves)


def refuse_other_condition(name: str, then: Any, now: Any) -> None:
    """Stop where a condition of a training is not what its checkpoint says.

    Raises:
        DataError: By name of the condition.
    """
    if then is None:
        raise DataError(
            f"This checkpoint was written by an earlier version of nnunet-dg and does not say its {name}, which is now "
            f"{now!r}. Continue it with the version that wrote it, or start from its weights with -pretrained_weights; "
            f"nnUNetv2_predict and nnunet-dg export take it as it is."
        )
    if then != now:
        raise DataError(
            f"This checkpoint was trained with {name} {then}, and now they are {now}. Put them back, or start from its "
            f"weights with -pretrained_weights."
        )


def log_key(term: str) -> str:
    """The name under which nnU-Net's logger has a loss term."""
    return f"{LOG_PREFIX}{term}"
