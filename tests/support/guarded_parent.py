"""Run sleeping_worker.py under the demo's guard, and wait for it: python guarded_parent.py GUARD."""

import subprocess
import sys
from pathlib import Path

import heeded_signals  # noqa: F401

worker = Path(__file__).with_name("sleeping_worker.py")
command = [sys.executable, sys.argv[1], sys.executable, worker]
subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True).wait()
