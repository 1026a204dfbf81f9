"""Runs a command on one of several GPUs: ``python -m nnunet_dg.benchmark.one_gpu FOLDER DEVICES COMMAND...``.

DEVICES are numbers of GPUs, with commas between them. The command runs on the first one that no other command in FOLDER
uses, and waits for one if there is none. A GPU counts as used until the command and all processes that it has started
have ended, also if the benchmark itself was killed.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

SECONDS_BETWEEN_TRIES = 1.0


def devices_of_jobs(number_of_jobs: int) -> list[str]:
    """The GPU of each job that runs at the same time: one after the other of those that CUDA_VISIBLE_DEVICES names.

    If the variable is not set, these are all GPUs of this machine. More jobs than GPUs share them. Without a GPU, the
    list is empty.
    """
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = visible.split(",") if visible else [str(number) for number in range(torch.cuda.device_count())]
    return [devices[number % len(devices)] for number in range(number_of_jobs)] if devices else []


def take(folder: Path, devices: Sequence[str]) -> str | None:
    """Take a GPU that is not in use for this process and its descendants. None: all are in use."""
    import fcntl  # not on Windows

    for number, device in enumerate(devices):
        lock = os.open(folder / f"{number}.lock", os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
        else:
            os.set_inheritable(lock, True)  # the lock ends when the last process with this file has ended
            return device
    return None


def main(argv: Sequence[str]) -> None:
    """Become the command, as soon as a GPU is free."""
    folder, devices, command = Path(argv[0]), argv[1].split(","), list(argv[2:])
    folder.mkdir(parents=True, exist_ok=True)
    while (device := take(folder, devices)) is None:
        time.sleep(SECONDS_BETWEEN_TRIES)
    print(f"GPU {device}", flush=True)
    os.execvpe(command[0], command, os.environ | {"CUDA_VISIBLE_DEVICES": device})  # noqa: S606, a job of the plan


if __name__ == "__main__":
    main(sys.argv[1:])
