"""Processes that start with nnU-Net imported: a server imports it once and forks for every command.

Importing PyTorch, nnU-Net and this package takes several seconds, most of the time of a command on tiny data. A forked
process runs the command's own script as `__main__`, with its own environment, working directory, session and random
state. It has not run anything before but the imports.

    python warm_process.py    reads requests from stdin, a JSON line each, and answers with a JSON line: the exit status
"""

import gc
import json
import os
import random
import runpy
import signal
import subprocess
import sys
import sysconfig
import warnings
from pathlib import Path

IMPORTED = (
    "nnunetv2.run.run_training",
    "nnunetv2.inference.predict_from_raw_data",
    "nnunetv2.experiment_planning.plan_and_preprocess_entrypoints",
    "nnunet_dg.cli",
    "nnunet_dg.training.trainer",
    "nnunet_dg.training.catalog",
)
READ_BY_COMMANDS = ("TINY_", "NNUNET_DG_HOME", "nnUNet_n_proc_DA", "COLUMNS")  # read when they run, not when imported
MOST_SERVERS = 2


def runs_python(command: list[str]) -> bool:
    """Whether the command is Python code, a Python program, or a script that an installed package declares."""
    if command[0] == sys.executable:
        return command[1:3] == ["-W", "ignore"] or not command[1].startswith("-")
    script = Path(sysconfig.get_path("scripts"), command[0])
    return script.is_file() and script.read_bytes()[:2] == b"#!" and b"import" in script.read_bytes()


class WarmProcesses:
    """Servers for the last environments that were used. They start with their first command."""

    def __init__(self) -> None:
        self.servers: dict[frozenset[tuple[str, str]], Server] = {}

    def run(self, command: list[str], environment: dict[str, str], folder: Path, output: Path, timeout: float) -> int:
        """Run a command, write its output to a file and return its exit status."""
        key = frozenset((k, v) for k, v in environment.items() if not k.startswith(READ_BY_COMMANDS))
        server = self.servers.pop(key, None) or Server(dict(key))
        self.servers[key] = server  # the last one in the order of use
        while len(self.servers) > MOST_SERVERS:
            self.servers.pop(next(iter(self.servers))).close()
        return server.run(command, environment, folder, output, timeout)

    def close(self) -> None:
        """Stop the servers."""
        while self.servers:
            self.servers.popitem()[1].close()


class Server:
    """A process that has imported nnU-Net in an environment and forks for each command."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.server = subprocess.Popen(
            [sys.executable, __file__], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, command: list[str], environment: dict[str, str], folder: Path, output: Path, timeout: float) -> int:
        """Run a command in the environment, which may have more variables than that of the server."""
        request = {"command": command, "environment": environment, "folder": str(folder), "output": str(output)}
        self.server.stdin.write(json.dumps(request | {"timeout": timeout}) + "\n")
        self.server.stdin.flush()
        answer = self.server.stdout.readline()
        if not answer:
            raise RuntimeError(f"The server of {__file__} stopped with status {self.server.wait()}")
        return json.loads(answer)

    def close(self) -> None:
        """Stop the server."""
        self.server.stdin.close()
        self.server.wait()
        self.server.stdout.close()


def serve() -> dict | None:
    """Fork for each request. Returns None in the server, at the end of its input, and the request in a fork."""
    for line in sys.stdin:
        request = json.loads(line)
        sys.stdout.flush()
        child = os.fork()
        if not child:
            return request
        print(json.dumps(wait(child, request["timeout"])), flush=True)
    return None


def wait(child: int, timeout: float) -> int:
    """The exit status of a process, negative if a signal ended it. It is killed with its session after the timeout."""

    def stop(*_: object) -> None:
        os.killpg(child, signal.SIGKILL)

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, timeout)
    _, status = os.waitpid(child, 0)
    signal.setitimer(signal.ITIMER_REAL, 0)
    return os.waitstatus_to_exitcode(status)


def become(request: dict) -> None:
    """Run the command of a request in this process, as a shell would."""
    import numpy as np

    os.setsid()
    os.chdir(request["folder"])
    os.environ.update(request["environment"])
    nothing, output = os.open(os.devnull, os.O_RDONLY), os.open(request["output"], os.O_WRONLY | os.O_CREAT)
    for descriptor, target in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(descriptor, target)
    random.seed()
    np.random.seed()
    program, *arguments = request["command"]
    if program == sys.executable:
        if arguments[:2] == ["-W", "ignore"]:
            warnings.simplefilter("ignore")
            arguments = arguments[2:]
        program, *arguments = arguments
    if program == "-c":
        code, *arguments = arguments
        sys.argv, sys.path[0] = ["-c", *arguments], ""
        exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
        return
    program = program if os.sep in program else os.path.join(sysconfig.get_path("scripts"), program)
    sys.argv, sys.path[0] = [program, *arguments], os.path.dirname(program)
    runpy.run_path(program, run_name="__main__")


if __name__ == "__main__":
    for name in IMPORTED:
        __import__(name)
    gc.collect()
    gc.freeze()
    if request := serve():
        become(request)
