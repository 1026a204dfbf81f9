"""Runs a command and kills it when the process that started this script ends, for any reason.

Run as a script, with the command as arguments and a pipe as standard input. The pipe closes when the starting process
closes it or ends, even by SIGKILL. Then the command is killed with all processes of its group. Imports only the
standard library, to start fast.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress


def run(command: Sequence[str]) -> int:
    """Run the command until it ends or standard input is closed; returns its exit status."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)  # noqa: S603
    threading.Thread(target=_kill_at_end_of_input, args=(process,), daemon=True).start()
    return process.wait()


def _kill_at_end_of_input(process: subprocess.Popen[bytes]) -> None:
    with suppress(OSError, ValueError):
        while os.read(0, 1024):
            pass
    if hasattr(os, "killpg"):  # kills nnU-Net's workers too; Windows has no process groups
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()


if __name__ == "__main__":
    status = run(sys.argv[1:])
    sys.stdout.flush()
    os._exit(status if status >= 0 else 128 - status)  # the thread may be blocked in a read
