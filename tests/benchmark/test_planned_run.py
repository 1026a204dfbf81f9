"""Seed and length in the plans, and what they do to nnU-Net's data loaders."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers import SUPPORT
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as host

from nnunet_dg.errors import SettingsError
from nnunet_dg.threads import limit_threads
from nnunet_dg.training.planned_run import PlannedRun, numbers_from, ordered_workers


def section(**values):
    return PlannedRun.of_plans({"nnunet_dg": {"training": values}})


def test_the_section_is_read_and_may_be_missing():
    assert section(seed=3, epochs=10, steps=20) == PlannedRun(3, 10, 20)
    assert PlannedRun.of_plans({}) == PlannedRun(None, None, None)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sed": 1}, r"Unknown key in plans\[.*\]: 'sed'\. Did you mean 'seed'\? Accepted are seed, epochs, steps\."),
        ({"seed": -1}, r"seed must be a whole number in \[0, 4\.29497e\+09\], or null; got -1\."),
        ({"epochs": 0}, r"epochs must be a whole number in \[1, .*; got 0\."),
        ({"steps": 2.5}, r"steps must be a whole number in .*; got 2\.5\."),
    ],
)
def test_other_values_are_refused(values, message):
    with pytest.raises(SettingsError, match=message):
        section(**values)


def test_seeds_differ_between_epochs_devices_and_workers():
    seeds = [value for seed in (0, 1) for epoch in (0, 1) for gpu in (0, 1) for value in numbers_from(seed, epoch, gpu)]
    assert len(set(seeds)) == len(seeds) == 24
    assert numbers_from(5, 2, 1) == numbers_from(5, 2, 1)


class Numbers:
    """A data loader of random numbers, as nnU-Net's transforms draw them: with NumPy and with PyTorch."""

    def set_thread_id(self, thread_id):
        self.thread_id = thread_id

    def __next__(self):
        return {"drawn": [float(np.random.rand()), float(torch.rand(1)), self.thread_id]}


def batches(seed, number=6):
    with ordered_workers(seed, seed + 1):
        loader = host.NonDetMultiThreadedAugmenter(
            data_loader=Numbers(), transform=None, num_processes=2, num_cached=6, seeds=None, pin_memory=False,
            wait_time=0.002,
        )  # fmt: skip
    drawn = [next(loader)["drawn"] for _ in range(number)]
    loader._finish()
    return drawn


def test_worker_processes_give_the_same_batches_for_the_same_seed_only():
    first = batches(1)
    assert batches(1) == first
    assert batches(2) != first
    assert [worker for *_, worker in first] == [0, 1, 0, 1, 0, 1]
    assert len({value for row in first for value in row[:2]}) == 12  # no worker repeats the other's numbers


def test_worker_processes_do_not_wait_for_the_threads_of_the_training():
    """A forked process does not have the threads that PyTorch started before."""
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, SUPPORT / "threads_before_workers.py"], env=environment, capture_output=True, text=True,
        timeout=100, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == str([float(2**21)] * 3)


@pytest.mark.parametrize(
    ("chosen", "device", "expected"),
    [("1", "cpu", 1), ("2,1", "cpu", 2), ("", "cpu", 3), ("0", "cpu", 3), ("many", "cpu", 3), ("1", "cuda", 3)],
)
def test_a_training_on_a_cpu_has_the_threads_of_the_environment(chosen, device, expected, monkeypatch):
    """nnU-Net's command has started one per core."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        monkeypatch.setenv("OMP_NUM_THREADS", chosen)
        limit_threads(torch.device(device))
        assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(before)


def test_nnunets_loader_is_restored():
    before = host.NonDetMultiThreadedAugmenter
    with pytest.raises(RuntimeError), ordered_workers(0, 1):
        raise RuntimeError
    assert host.NonDetMultiThreadedAugmenter is before
