"""nnU-Net's training step with the loss terms of methods."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from nnunetv2.utilities.helpers import dummy_context
from torch import Tensor, nn

from nnunet_dg.errors import SettingsError
from nnunet_dg.host import unwrap
from nnunet_dg.method import SEGMENTATION, Batch, Step

if TYPE_CHECKING:
    from nnunet_dg.training.trainer import MethodsTrainer

T = TypeVar("T")
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
        check_terms(weights, terms)
        loss = torch.stack([weight * terms[name] for name, weight in weights.items() if weight]).sum()
    update(trainer, loss)
    values = torch.stack([loss, *terms.values()]).detach().float().cpu().numpy()
    return dict.fromkeys(weights, np.float32(0)) | dict(zip(["loss", *terms], values, strict=True))


def joined(terms: dict[str, T], more: dict[str, T], key: str) -> dict[str, T]:
    """Loss terms, or their weights, with those of another method.

    Raises:
        SettingsError: Another method has a term of the same name.
    """
    if twice := sorted(terms.keys() & more.keys()):
        raise SettingsError(
            f"Method {key!r} and another method of this trainer both have the loss term {twice[0]!r}. List only one of "
            f"them in `methods`."
        )
    return terms | more


def check_terms(weights: Mapping[str, float], terms: Mapping[str, Tensor]) -> None:
    """Check that the terms of a step are those that have weights.

    Raises:
        SettingsError: A term has no weight, so that it would never be trained, or a term with a weight is missing.
    """
    if unweighted := sorted(terms.keys() - weights.keys()):
        raise SettingsError(f"The loss term {unweighted[0]!r} has no weight. Add it to `TrainingModule.weights`.")
    if missing := [name for name, weight in weights.items() if weight and name not in terms]:
        raise SettingsError(f"`TrainingModule.losses` did not return the term {missing[0]!r}, which has a weight.")


def on_device(trainer: MethodsTrainer, batch: dict[str, Any]) -> Batch:
    """The batch of nnU-Net's data loader as a `Batch` on the trainer's device."""
    target = batch["target"]
    moved = [t.to(trainer.device, non_blocking=True) for t in (target if isinstance(target, list) else [target])]
    data = batch["data"].to(trainer.device, non_blocking=True)
    images = trainer.student.image_channels  # nnU-Net's keys are NumPy strings, which would end up in checkpoints
    return Batch(data, moved if isinstance(target, list) else moved[0], tuple(map(str, batch["keys"])), images)


def loss_terms(trainer: MethodsTrainer, batch: Batch) -> dict[str, Tensor]:
    """All terms by name; nnU-Net's own loss is the term `SEGMENTATION` unless a method replaces it."""
    modules: dict[str, nn.Module] = dict(trainer.auxiliary.items())
    for module in modules.values():
        batch = unwrap(module).augment(batch)  # type: ignore[operator]
    step = Step(trainer.student, batch, trainer.current_epoch)
    terms: dict[str, Tensor] = {}
    for key, module in modules.items():
        terms = joined(terms, module(step), key)
    if SEGMENTATION not in terms:
        terms[SEGMENTATION] = step.segmentation(step.output)
    return terms


def update(trainer: MethodsTrainer, loss: Tensor) -> None:
    """Backward pass, gradient clipping and the optimizer's step, as in nnU-Net.

    The gradients of the network and those of the methods' training modules are clipped separately, unless the trainer's
    `max_gradient_norm` is None.
    """
    scaler = trainer.grad_scaler
    (loss if scaler is None else scaler.scale(loss)).backward()
    if scaler is not None:
        scaler.unscale_(trainer.optimizer)
    if trainer.max_gradient_norm is not None:
        for module in (trainer.network, trainer.auxiliary):
            nn.utils.clip_grad_norm_(list(module.parameters()), trainer.max_gradient_norm)
    if scaler is None:
        trainer.optimizer.step()
    else:
        scaler.step(trainer.optimizer)
        scaler.update()
