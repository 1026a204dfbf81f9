"""The samples of each domain: those of the batch, or the last one before it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_dg.method import Batch
from nnunet_dg.step import Scales
from nnunet_dg.tensors import to_device


def each_scale(target: Scales, function: Callable[[Tensor], Tensor]) -> Scales:
    """A function of every resolution of a target.

    >>> each_scale([torch.ones(1), torch.zeros(1)], lambda scale: scale + 1)
    [tensor([2.]), tensor([1.])]
    """
    return [function(scale) for scale in target] if isinstance(target, list) else function(target)


def part(target: Scales, samples: range) -> Scales:
    """Consecutive samples of an output or target at one or several resolutions.

    >>> part([torch.arange(3), torch.arange(3) * 10], range(1, 3))
    [tensor([1, 2]), tensor([10, 20])]
    """
    return each_scale(target, lambda scale: scale[samples.start : samples.stop])


def selected(batch: Batch, samples: Sequence[int]) -> Batch:
    """Some samples of a batch.

    >>> selected(Batch(torch.tensor([[1.0], [2.0]]), torch.zeros(2, 1), ("a", "b"), 1), [1]).keys
    ('b',)
    """
    index = to_device(torch.tensor(samples), batch.data.device)
    target = each_scale(batch.target, lambda scale: scale.index_select(0, index))
    return replace(batch, data=batch.data.index_select(0, index), target=target,
                   keys=tuple(batch.keys[i] for i in samples))  # fmt: skip


def joined(batches: Sequence[Batch]) -> Batch:
    """The samples of several batches, one after the other.

    >>> one = Batch(torch.tensor([[1.0]]), torch.zeros(1, 1), ("a",), 1)
    >>> joined([one, one]).keys
    ('a', 'a')
    """
    first = batches[0]
    if isinstance(first.target, list):
        target: Scales = [torch.cat(scales) for scales in zip(*(each.target for each in batches), strict=True)]
    else:
        target = torch.cat([each.target for each in batches])  # type: ignore[misc]
    return replace(first, data=torch.cat([each.data for each in batches]), target=target,
                   keys=tuple(key for each in batches for key in each.keys))  # fmt: skip


def as_state(batch: Batch) -> dict[str, Any]:
    """A batch as it is saved in a checkpoint.

    >>> as_state(Batch(torch.ones(1, 1), torch.zeros(1, 1), ("a",), 1))["keys"]
    ['a']
    """
    return vars(batch) | {"keys": list(batch.keys)}


def of_state(state: Mapping[str, Any]) -> Batch:
    """The batch that `as_state` got.

    >>> of_state(as_state(Batch(torch.ones(1, 1), torch.zeros(1, 1), ("a",), 1))).keys
    ('a',)
    """
    return Batch(**dict(state) | {"keys": tuple(state["keys"])})


class DomainSamples(nn.Module):
    """The samples of each domain, of the last batch that has any.

    A domain that the batch lacks is represented by the last sample before it. The last sample of each domain is saved
    in checkpoints, in DDP those of the first device.
    """

    def __init__(self) -> None:
        super().__init__()
        self._batch: dict[int, Batch] = {}
        self._last: dict[int, Batch] = {}

    def see(self, batch: Batch, domains: Sequence[int]) -> None:
        """Add a batch.

        Args:
            batch: Batch; its samples may be kept for later steps.
            domains: Domain of each sample.
        """
        of_domain = {d: [i for i, other in enumerate(domains) if other == d] for d in dict.fromkeys(domains)}
        self._batch = {domain: selected(batch, samples) for domain, samples in of_domain.items()}
        self._last |= {domain: selected(batch, samples[-1:]) for domain, samples in of_domain.items()}

    def known(self) -> set[int]:
        """The domains that have samples."""
        return set(self._last)

    def of(self, domain: int) -> Batch:
        """The samples of a known domain."""
        return self._batch.get(domain) or self._last[domain]

    def get_extra_state(self) -> dict[int, dict[str, Any]]:
        """The last sample of each domain, for checkpoints."""
        return {domain: as_state(sample) for domain, sample in self._last.items()}

    def set_extra_state(self, state: dict[int, dict[str, Any]]) -> None:
        """Restore the last sample of each domain."""
        self._batch, self._last = {}, {domain: of_state(sample) for domain, sample in state.items()}
