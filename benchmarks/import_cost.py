"""What the door adds to `import torch`: loading our entry point and activating it, in fresh processes.

    python benchmarks/import_cost.py

PyTorch scans the installed entry points whether or not this package is there; what is timed is what we add.
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
    environment = os.environ | {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}  # so that ours is still to be loaded
    command = [sys.executable, "-W", "ignore", "-c", CODE]
    runs = [
        float(subprocess.check_output(command, env=environment, cwd=tempfile.gettempdir())) for _ in range(processes)
    ]
    print(
        f"added to import torch: {statistics.median(runs):.2f} ms, the median of {processes}; most {max(runs):.2f} ms"
    )


if __name__ == "__main__":
    main()
