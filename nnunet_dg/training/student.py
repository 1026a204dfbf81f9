"""The network that nnU-Net trains, as a `Student` for methods."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from nnunetv2.paths import nnUNet_raw
from nnunetv2.utilities.ddp_allgather import AllGatherGrad
from torch import Tensor, distributed, nn

from nnunet_dg.datasets.domains import Domains, read_domains
from nnunet_dg.errors import HostError, SettingsError
from nnunet_dg.hooks import activations
from nnunet_dg.host import undistributed, unwrap
from nnunet_dg.method import AroundPlanned, Student, full_resolution
from nnunet_dg.outside import Outside
from nnunet_dg.step import Scales
from nnunet_dg.tensors import to_device
from nnunet_dg.training.nonlinearity import last_nonlinearity
from nnunet_dg.training.voxel_classes import Classes

if TYPE_CHECKING:
    from nnunet_dg.training.trainer import MethodsTrainer


class UnknownNetworkError(HostError, NotImplementedError):
    """This package cannot read the features of the plans' network."""


def planned_network(network: nn.Module) -> Any:
    """The encoder-decoder that nnU-Net planned, without the wrappers of nnU-Net and of methods.

    Raises:
        UnknownNetworkError: It is not one of nnU-Net's U-Nets.
    """
    network = unwrap(network)
    while isinstance(network, AroundPlanned):
        network = network.network
    encoder, decoder = getattr(network, "encoder", None), getattr(network, "decoder", None)
    if not (hasattr(encoder, "stages") and hasattr(decoder, "seg_layers")):
        raise UnknownNetworkError(
            f"The plans' network is a {type(network).__name__}, whose features cannot be read. Accepted are nnU-Net's "
            f"PlainConvUNet and ResidualEncoderUNet: use plans with one of them."
        )
    return network


class HostStudent(Student):
    """A `Student` on top of nnU-Net's trainer. It is created after the trainer's network.

    Args:
        trainer: Trainer of the network.
    """

    def __init__(self, trainer: MethodsTrainer) -> None:
        super().__init__()
        self.trainer = trainer
        configuration, labels = trainer.configuration_manager, trainer.label_manager
        self.classes_of_labels = Classes(labels)
        self.num_classes = self.classes_of_labels.num
        self.regions, self.num_outputs = labels.has_regions, labels.num_segmentation_heads
        self.image_channels = len(configuration.normalization_schemes)
        self.patch_size = tuple(configuration.patch_size)
        self.outside = Outside.of(configuration)

    @property
    def network(self) -> nn.Module:  # type: ignore[override]
        return self.trainer.network

    @property
    def undistributed(self) -> nn.Module:
        return undistributed(self.network)

    def activations(self) -> list[nn.Module]:
        return activations(planned_network(self.network))

    @property
    def widths(self) -> list[int]:  # type: ignore[override]
        return list(planned_network(self.network).encoder.output_channels)

    @property
    def strides(self) -> list[Any]:  # type: ignore[override]
        return list(planned_network(self.network).encoder.strides)

    @property
    def penultimate_width(self) -> int:  # type: ignore[override]
        return int(self.module("penultimate").in_channels)

    @property
    def voxel_size(self) -> tuple[float, ...]:  # type: ignore[override]
        return tuple(self.trainer.configuration_manager.spacing)

    @property
    def num_epochs(self) -> int:  # type: ignore[override]
        return self.trainer.num_epochs

    @property
    def samples_per_device(self) -> int:  # type: ignore[override]
        devices = distributed.get_world_size() if self.trainer.is_ddp else 1
        return self.trainer.configuration_manager.batch_size // devices

    @property
    def pretrained(self) -> bool:
        return self.trainer.pretrained

    @property
    def training_domains(self) -> tuple[int, ...]:
        return self.trainer.training_domains or tuple(range(len(self.domain_names)))

    @property
    def domain_names(self) -> tuple[str, ...]:
        return self.known_domains.names

    @property
    def reads_domains(self) -> bool:
        """Whether a method has asked for the domains."""
        return "known_domains" in vars(self)

    @cached_property
    def known_domains(self) -> Domains:
        """The domains of the dataset's cases, read on first access."""
        trainer = self.trainer
        cases = trainer.dataset_class.get_identifiers(trainer.preprocessed_dataset_folder)
        raw = Path(nnUNet_raw, trainer.plans_manager.dataset_name) if nnUNet_raw else None
        return read_domains(raw, Path(trainer.preprocessed_dataset_folder_base), cases, self.log)

    def domains(self, keys: Sequence[str]) -> Tensor:
        return self.known_domains.of_batch(keys)

    def module(self, stage: int | str) -> Any:
        planned = planned_network(self.network)
        if isinstance(stage, str):
            return planned.decoder.seg_layers[-1]
        stages = planned.encoder.stages
        if not -len(stages) <= stage < len(stages):
            raise SettingsError(
                f"stage {stage} does not exist: the planned network has the encoder stages 0 to {len(stages) - 1}. "
                f"Choose another one in its settings."
            )
        return stages[stage]

    @property
    def passes_begin_equally(self) -> bool:
        return unwrap(self.network) is planned_network(self.network)

    def nonlinearity(self, stage: int) -> nn.Module:
        return last_nonlinearity(self.module(stage))

    def loss(self, output: Any, target: Scales) -> Tensor:
        return self.trainer.loss(output, target)

    def full_resolution_loss(self, logits: Tensor, target: Scales) -> Tensor:
        loss = self.trainer.loss.loss if self.trainer.enable_deep_supervision else self.trainer.loss
        return loss(logits, full_resolution(target))

    def classes(self, target: Scales) -> Tensor:
        return self.classes_of_labels.of_target(target)

    def agreed(self, value: Tensor) -> Tensor:
        if self.trainer.is_ddp:
            value = to_device(value, self.trainer.device)
            distributed.broadcast(value, 0)
        return value

    @property
    def bare(self) -> nn.Module:
        return unwrap(self.network)

    def averaged(self, value: Tensor) -> Tensor:
        if not self.trainer.is_ddp:
            return value.detach()
        value = value.detach().to(self.trainer.device, copy=True)
        distributed.all_reduce(value)
        return value / distributed.get_world_size()

    def gathered(self, values: Tensor) -> Tensor:
        if not self.trainer.is_ddp:
            return values
        values = values.to(self.trainer.device)
        sizes = AllGatherGrad.apply(torch.tensor([len(values)], device=values.device))[:, 0].tolist()
        padding = values.new_zeros(max(sizes) - len(values), *values.shape[1:])  # all devices send the same shape
        of_devices = AllGatherGrad.apply(torch.cat([values, padding]))
        return torch.cat([own[:size] for own, size in zip(of_devices, sizes, strict=True)])

    def scaled(self, loss: Tensor) -> Tensor:
        scaler = self.trainer.grad_scaler
        return loss if scaler is None else scaler.scale(loss)

    def log(self, *text: Any) -> None:
        self.trainer.print_to_log_file(*text)
