"""nnunet-dg with a slow command: python slow_command.py writes FILE | python slow_command.py prints."""

import sys
import time
from pathlib import Path

import heeded_signals  # noqa: F401

import nnunet_dg.cli
from nnunet_dg.files import replacing


def writes(_):
    with replacing(Path(sys.argv[2])):
        print("there", flush=True)
        time.sleep(60)


def prints(_):
    for _ in range(100_000):
        print("line")
    return 0


nnunet_dg.cli._doctor = {"writes": writes, "prints": prints}[sys.argv[1]]
sys.exit(nnunet_dg.cli.main(["doctor"]))
