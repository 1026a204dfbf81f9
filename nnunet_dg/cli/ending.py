"""How a command ends: expected errors as one line, bugs with their traceback, and signals after cleaning up."""

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
_NO_PLACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}  # writing raises these without a name
_NAMED = {
    errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP,
    errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.EBUSY,
}  # fmt: skip


class Ended(BaseException):
    """A signal that asks the process to end; an exception, so that temporary files are removed on the way out."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def ends_cleanly() -> Iterator[None]:
    """SIGTERM and SIGHUP raise `Ended` where they would end the process without any cleaning up."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # names that a terminal's encoding lacks are printed as escapes
            stream.reconfigure(errors="backslashreplace")
    handled = []
    if threading.current_thread() is threading.main_thread():
        handled = [number for number in SIGNALS if signal.getsignal(number) is signal.SIG_DFL]  # nohup ignores SIGHUP
    owner = os.getpid()

    def end(number: int, _: Any) -> None:
        if os.getpid() == owner:
            raise Ended(number)
        signal.signal(number, signal.SIG_DFL)  # a worker that was forked from this process ends as workers do
        os.kill(os.getpid(), number)

    for number in handled:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in handled:
            signal.signal(number, signal.SIG_DFL)


def exit_status(error: BaseException) -> int:
    """Print what ended a command, and return its exit status.

    A `UserError`, a missing nnU-Net and an operating system's refusal (disk full, no permission, no such file) are one
    line and 1. Ctrl-C is 130, as in shells, and a signal 128 plus its number. All other exceptions are bugs, or a
    machine's limits: their traceback is followed by a line that asks to report them.
    """
    if isinstance(error, SystemExit):  # argparse's, which has printed why
        raise error
    if isinstance(error, KeyboardInterrupt | Ended):
        _say("")
        return 128 + (error.number if isinstance(error, Ended) else signal.SIGINT)
    if isinstance(error, BrokenPipeError) and _stdout_is_closed():
        return 128 + 13  # as if SIGPIPE had ended it
    line = _one_line(error)
    if line is None:
        traceback.print_exception(error)
        line = (
            f"nnunet-dg {version('nnunet-dg')} did not expect this error. Unless the machine ran out of memory, please "
            f"report it with the lines above."
        )
    _say(line)
    return 1


def _one_line(error: BaseException) -> str | None:
    """What is printed of an expected error; None for an unexpected one."""
    if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] == "nnunetv2":
        error = _without_nnunet(error.name or "")
    if isinstance(error, UserError):
        return f"nnunet-dg: {printable_lines(str(error))}"
    if isinstance(error, OSError) and error.errno in _NO_PLACE | (_NAMED if error.filename is not None else set()):
        place = "" if error.filename is None else f": {error.filename}"
        return f"nnunet-dg: {printable_lines(f'{error.strerror}{place}')}"
    return None


def _without_nnunet(name: str) -> HostError:
    if find_spec("nnunetv2") is None:
        return HostError("nnU-Net is not installed here, and this command needs it: pip install nnunetv2")
    return HostError(f"The nnU-Net that is installed here has no {name}. Update it: pip install -U nnunetv2")


def _stdout_is_closed() -> bool:
    """Whether the reader of stdout is gone. What is left to write is thrown away then."""
    try:
        print(flush=True)  # an end of line, for there is nothing else that asks the pipe
    except BrokenPipeError:
        with suppress(OSError, ValueError):  # else the interpreter complains once more at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def _say(line: str) -> None:
    with suppress(OSError, ValueError):  # the terminal may be gone
        print(line, file=sys.stderr, flush=True)
