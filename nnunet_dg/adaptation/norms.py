"""The parts of a trained network that may adapt. A frozen extractor, and what training froze, never do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from nnunet_dg.extractors import FrozenExtractor
from nnunet_dg.mechanisms.domain_norm import BranchNorm

NORMS = (_BatchNorm, _InstanceNorm, nn.GroupNorm, nn.LayerNorm, BranchNorm)
_RUNNING = ("running_mean", "running_var")


def trainable(network: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters by name that training changes: not those of a frozen extractor or a frozen part.

    >>> network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.InstanceNorm2d(2, affine=True).requires_grad_(False))
    >>> list(trainable(network))
    ['0.weight', '0.bias']
    """
    frozen = _frozen(network)
    return {name: p for name, p in network.named_parameters() if p.requires_grad and not name.startswith(frozen)}


def affine(network: nn.Module) -> dict[str, nn.Parameter]:
    """Scales and shifts by name of all norm layers, among the `trainable` parameters.

    >>> list(affine(nn.Sequential(nn.Conv2d(1, 2, 1), nn.InstanceNorm2d(2, affine=True))))
    ['1.weight', '1.bias']
    """
    norms = [name for name, module in network.named_modules() if isinstance(module, NORMS)]
    names = {f"{norm}.{kind}" if norm else kind for norm in norms for kind in ("weight", "bias")}
    return {name: parameter for name, parameter in trainable(network).items() if name in names}


def frozen_parts(network: nn.Module) -> list[str]:
    """Names of the frozen extractors in a network."""
    return [name for name, module in network.named_modules() if isinstance(module, FrozenExtractor)]


def batch_norms(network: nn.Module) -> list[_BatchNorm]:
    """The batch norms that have running statistics and whose scale is `trainable`."""
    parameters = {id(parameter) for parameter in trainable(network).values()}
    return [
        module
        for module in network.modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None and id(module.weight) in parameters
    ]


@contextmanager
def only(network: nn.Module, parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Only these parameters require a gradient. Afterwards, all are as before, without gradients."""
    before = {name: parameter.requires_grad for name, parameter in network.named_parameters()}
    try:
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(name in parameters)
        yield
    finally:
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(before[name])
            parameter.grad = None


@contextmanager
def own_statistics(norms: list[_BatchNorm]) -> Iterator[None]:
    """These batch norms normalize by the statistics of their input, in eval mode as well, and keep the running ones."""
    kept: list[dict[str, Tensor | None]] = [{name: getattr(norm, name) for name in _RUNNING} for norm in norms]
    try:
        for norm in norms:
            norm.running_mean = norm.running_var = None
        yield
    finally:
        for norm, buffers in zip(norms, kept, strict=True):
            norm.running_mean, norm.running_var = buffers["running_mean"], buffers["running_var"]


def _frozen(network: nn.Module) -> tuple[str, ...]:
    return tuple(f"{name}." if name else "" for name in frozen_parts(network))
