"""Measures the time that the plugin adds to `import torch`: loading and activating our entry point, in new processes.

    python benchmarks/import_cost.py

PyTorch scans the installed entry points with or without this package, so the scan is not included.
"""

import os
import statistics
import subprocess
import sys
import tempfile

CODE = """
import time, torch
from importlib.metadata import entry_points
(entry_point,) = entry_points(group="torch.backends", name="nnunet_dg")
start = time.perf_counter()
entry_point.load()()
print(1000 * (time.perf_counter() - start))
"""


def main(processes: int = 9) -> None:
    environment = os.environ | {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}  # so that ours has not been loaded yet
    command = [sys.executable, "-W", "ignore", "-c", CODE]
    runs = [
        float(subprocess.check_output(command, env=environment, cwd=tempfile.gettempdir())) for _ in range(processes)
    ]
    print(
        f"added to import torch: median {statistics.median(runs):.2f} ms, maximum {max(runs):.2f} ms, {processes} runs"
    )


if __name__ == "__main__":
    main()
