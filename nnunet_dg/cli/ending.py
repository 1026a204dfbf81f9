"""How a command ends: expected errors are one line, bugs keep their traceback, and signals allow cleaning up."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from importlib.util import find_spec
from io import TextIOWrapper
from typing import Any

from nnunet_dg.errors import HostError, UserError
from nnunet_dg.names import printable_lines

SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
_WRITING = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}  # writing raises these without a file name
_NAMED = {
    errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP,
    errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.EBUSY,
}  # fmt: skip


class Ended(BaseException):
    """A signal that ends the process, raised as an exception so that temporary files are removed."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def ends_cleanly() -> Iterator[None]:
    """Make SIGTERM and SIGHUP raise `Ended`, unless they are ignored or have another handler."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # print characters that the terminal's encoding lacks as escapes
            stream.reconfigure(errors="backslashreplace")
    handled = []
    if threading.current_thread() is threading.main_thread():
        handled = [number for number in SIGNALS if signal.getsignal(number) is signal.SIG_DFL]  # nohup ignores SIGHUP
    owner = os.getpid()

    def end(number: int, _: Any) -> None:
        if os.getpid() == owner:
            raise Ended(number)
        signal.signal(number, signal.SIG_DFL)  # a forked worker process ends in the default way
        os.kill(os.getpid(), number)

    for number in handled:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in handled:
            signal.signal(number, signal.SIG_DFL)


def exit_status(error: BaseException) -> int:
    """Print the error that ended a command, and return the exit status.

    A `UserError`, a missing nnU-Net and errors of the operating system (disk full, no permission, no such file) are
    printed as one line, with status 1. Ctrl-C gives 130, as in shells, and other signals 128 plus their number. All
    other exceptions are bugs or limits of the machine: their traceback is followed by a line that asks for a report.
    """
    if isinstance(error, SystemExit):  # raised by argparse, which has printed the reason
        raise error
    if isinstance(error, KeyboardInterrupt | Ended):
        _say("")
        return 128 + (error.number if isinstance(error, Ended) else signal.SIGINT)
    if isinstance(error, BrokenPipeError) and _stdout_is_closed():
        return 128 + 13  # the status of a program that SIGPIPE has ended
    line = _one_line(error)
    if line is None:
        traceback.print_exception(error)
        line = (
            f"nnunet-dg {version('nnunet-dg')}: unexpected error. Unless the machine ran out of memory, please report "
            f"it with the lines above."
        )
    _say(line)
    return 1


def _one_line(error: BaseException) -> str | None:
    """The line to print for an expected error; None for an unexpected one."""
    if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] == "nnunetv2":
        error = _without_nnunet(error.name or "")
    if isinstance(error, UserError):
        return f"nnunet-dg: {printable_lines(str(error))}"
    if isinstance(error, OSError) and error.errno in _WRITING | (_NAMED if error.filename is not None else set()):
        file = "" if error.filename is None else f": {error.filename}"
        return f"nnunet-dg: {printable_lines(f'{error.strerror}{file}')}"
    return None


def _without_nnunet(name: str) -> HostError:
    if find_spec("nnunetv2") is None:
        return HostError("This command needs nnU-Net, which is not installed: pip install nnunetv2")
    return HostError(f"The installed nnU-Net has no module {name}. Update it: pip install -U nnunetv2")


def _stdout_is_closed() -> bool:
    """Whether the reader of stdout is gone. If so, remaining output is discarded."""
    try:
        print(flush=True)  # only writing, here a line break, shows whether the pipe is open
    except BrokenPipeError:
        with suppress(OSError, ValueError):  # otherwise the interpreter prints another error at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def _say(line: str) -> None:
    with suppress(OSError, ValueError):  # the terminal may be gone
        print(line, file=sys.stderr, flush=True)
