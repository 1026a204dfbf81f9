"""Prints three seeded batches of two worker processes, after this process has computed with several threads."""

import torch
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as host

from nnunet_dg.training.planned_run import ordered_workers

LARGE = 2**21  # elements, which PyTorch adds with several threads


class Sums:
    """A data loader whose batches are computed with PyTorch, as nnU-Net's transforms are."""

    def set_thread_id(self, thread_id: int) -> None: ...

    def __next__(self) -> dict[str, float]:
        return {"sum": float(torch.ones(LARGE).sum())}


torch.set_num_threads(2)
torch.ones(LARGE).sum()
with ordered_workers(0, 1):
    loader = host.NonDetMultiThreadedAugmenter(
        data_loader=Sums(), transform=None, num_processes=2, num_cached=2, seeds=None, pin_memory=False, wait_time=0.002
    )
print([next(loader)["sum"] for _ in range(3)])
loader._finish()
