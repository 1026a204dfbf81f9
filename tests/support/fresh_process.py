"""Code in a process that has nothing imported yet, in which tests/support is on the path."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path


def python(code, path=None, **environment):
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("nnUNet", "TORCH_DEVICE", "PYTHONPATH"))}
    environment |= {"PYTHONPATH": os.pathsep.join(map(str, (*([path] if path else []), Path(__file__).parent)))}
    command = [sys.executable, "-W", "ignore::FutureWarning", "-c", code]
    elsewhere = tempfile.gettempdir()  # the current folder comes first on sys.path
    done = subprocess.run(command, env=kept | environment, cwd=elsewhere, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr
