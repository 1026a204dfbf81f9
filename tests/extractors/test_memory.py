import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from nnunet_dg.extractors import build_extractor, create_extractor
from nnunet_dg.extractors.base import FrozenExtractor
from nnunet_dg.extractors.memory import LiveMemory, peak_numbers


class Wide(FrozenExtractor):
    out_channels = 1

    def features(self, x):
        wide = x.repeat(1, 20, 1, 1, 1)  # 20 numbers per voxel, in addition to x
        return wide.sum(1, keepdim=True)


def test_by_hand():
    voxels = 2 * 8**3
    # the scaled image, twenty copies, and temporarily the sum
    assert 22 * voxels <= peak_numbers(Wide(), (2, 1, 8, 8, 8)) <= 24 * voxels


def test_shared_storage_is_counted_once_and_freed_memory_is_subtracted():
    x = torch.empty(1000, requires_grad=True)
    memory = LiveMemory()
    memory.count({"given": [x, x.view(10, 100)]})
    assert memory.now == 4000
    with memory:
        y = x.exp().exp()  # both outputs are kept for the backward pass
        view = y.view(10, 100)
        assert memory.now == memory.peak == 12_000
        del y, view
        assert memory.now == 4000
        torch.empty(1000)
        assert (memory.now, memory.peak) == (4000, 12_000)


def test_is_linear_in_the_batch_size_and_does_not_change_the_extractor():
    mind = build_extractor("mind")
    assert peak_numbers(mind, (4, 1, 16, 16, 16)) == pytest.approx(4 * peak_numbers(mind, (1, 1, 16, 16, 16)), rel=0.01)
    anatomix = create_extractor("anatomix")
    peak_numbers(anatomix, (1, 1, 32, 32, 32))
    assert not anatomix.has_weights


def test_agrees_with_pytorchs_allocations():
    mind, x = build_extractor("mind"), torch.rand(1, 1, 32, 32, 32)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        mind(x)
    now = peak = 0
    for event in sorted(profiler.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    assert peak_numbers(mind, (1, 1, 32, 32, 32)) * 4 == pytest.approx(peak, rel=0.15)
