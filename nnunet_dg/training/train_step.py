"""nnU-Net's training step with the loss terms of methods."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from nnunetv2.utilities.helpers import dummy_context
from torch import Tensor, nn

from nnunet_dg.host import unwrap
from nnunet_dg.method import SEGMENTATION, Batch, Step, TrainingModule

if TYPE_CHECKING:
    from nnunet_dg.training.trainer import MethodsTrainer

MAX_GRADIENT_NORM = 12  # as in nnU-Net


def train_step(trainer: MethodsTrainer, batch: dict[str, Any]) -> dict[str, Any]:
    """nnU-Net's training step, with the weighted sum of the methods' terms in place of its loss.

    Args:
        trainer: Trainer, with the network, the optimizer and the methods' training modules.
        batch: Batch of nnU-Net's data loader, with ``data``, ``target`` and ``keys``.

    Returns:
        The values of the loss and of all terms, by name. A term that was omitted because its weight is 0 is 0.
    """
    trainer.optimizer.zero_grad(set_to_none=True)
    with torch.autocast("cuda") if trainer.device.type == "cuda" else dummy_context():
        weights = trainer.term_weights()
        terms = loss_terms(trainer, on_device(trainer, batch))
        loss = torch.stack([weight * terms[name] for name, weight in weights.items() if weight]).sum()
    update(trainer, loss)
    values = torch.stack([loss, *terms.values()]).detach().float().cpu().numpy()
    return dict.fromkeys(weights, np.float32(0)) | dict(zip(["loss", *terms], values, strict=True))


def on_device(trainer: MethodsTrainer, batch: dict[str, Any]) -> Batch:
    """The batch of nnU-Net's data loader as a `Batch` on the trainer's device."""
    target = batch["target"]
    moved = [t.to(trainer.device, non_blocking=True) for t in (target if isinstance(target, list) else [target])]
    data = batch["data"].to(trainer.device, non_blocking=True)
    images = trainer.student.image_channels
    return Batch(data, moved if isinstance(target, list) else moved[0], tuple(batch["keys"]), images)


def loss_terms(trainer: MethodsTrainer, batch: Batch) -> dict[str, Tensor]:
    """All terms by name; nnU-Net's own loss is the term `SEGMENTATION` unless a method replaces it."""
    modules: list[nn.Module] = list(trainer.auxiliary.values())
    for module in modules:
        plain = unwrap(module)
        if isinstance(plain, TrainingModule):
            batch = plain.augment(batch)
    step = Step(trainer.student, batch, trainer.current_epoch)
    terms: dict[str, Tensor] = {}
    for module in modules:
        terms |= module(step)
    if SEGMENTATION not in terms:
        terms[SEGMENTATION] = step.segmentation(step.output)
    return terms


def update(trainer: MethodsTrainer, loss: Tensor) -> None:
    """Backward pass, gradient clipping and the optimizer's step, as in nnU-Net.

    The gradients of the network and those of the methods' training modules are clipped separately.
    """
    scaler = trainer.grad_scaler
    (loss if scaler is None else scaler.scale(loss)).backward()
    if scaler is not None:
        scaler.unscale_(trainer.optimizer)
    for module in (trainer.network, trainer.auxiliary):
        nn.utils.clip_grad_norm_(list(module.parameters()), MAX_GRADIENT_NORM)
    if scaler is None:
        trainer.optimizer.step()
    else:
        scaler.step(trainer.optimizer)
        scaler.update()
