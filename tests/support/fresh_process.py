"""Runs code in a fresh Python process with tests/support on its path."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path


def python(code, path=None, **environment):
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("nnUNet", "TORCH_DEVICE", "PYTHONPATH"))}
    environment |= {"PYTHONPATH": os.pathsep.join(map(str, (*([path] if path else []), Path(__file__).parent)))}
    command = [sys.executable, "-W", "ignore::FutureWarning", "-c", code]
    folder = tempfile.gettempdir()  # not the repository, since the current folder is first on sys.path
    result = subprocess.run(command, env=kept | environment, cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout + result.stderr
