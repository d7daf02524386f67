"""What a function may do to its process, and how the job still does its own work afterwards.

A function is called in the job's own process. It may close or redirect the standard streams,
change the recursion limit or the warnings, leave timers ticking, fork and return twice, or leave
by ``os._exit``: the result is to be published all the same, once, and nothing else may land in its
file.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from types import TracebackType
from typing import IO, NoReturn

from dask_batch.job.descriptors import spare
from dask_batch.job.exit_codes import FAILED

__all__ = ["Contained", "dump_crashes"]

_STREAMS = range(3)


def dump_crashes() -> None:
    """Let a crash in compiled code leave its Python frames at the end of the log.

    They are written to a descriptor of their own, so that they never land in a file that has
    become number 2.
    """
    if not faulthandler.is_enabled():
        log = spare(2)
        if log is not None:
            faulthandler.enable(log, all_threads=True)


class Contained:
    """The time in which a function runs.

    Parameters
    ----------
    left
        Called with the exit code when the function leaves the process by ``os._exit``.
    """

    def __init__(self, left: Callable[[int], None]) -> None:
        self._left = left
        self._pid = os.getpid()
        self._exit = os._exit
        self._warnings = warnings.catch_warnings()

    def __enter__(self) -> None:
        self._spares = [spare(stream) for stream in _STREAMS]
        self._objects = (sys.stdin, sys.stdout, sys.stderr)
        self._recursion_limit = sys.getrecursionlimit()
        self._trace = sys.gettrace()
        self._warnings.__enter__()
        os._exit = self._intercepted

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os._exit = self._exit
        if os.getpid() != self._pid:
            self._end_child(error)
        sys.setrecursionlimit(self._recursion_limit)
        self._warnings.__exit__(kind, error, trace)
        signal.setitimer(signal.ITIMER_REAL, 0)
        sys.settrace(self._trace)
        self._restore_streams()

    def _intercepted(self, status: int) -> NoReturn:
        """Leave the process as a function asks for, and say so first, unless it is a fork of it.

        A job's exit code is 0 only if its result is there, so that others may start after it.
        """
        if os.getpid() == self._pid:
            self._left(status)
            status = status or FAILED
        self._exit(status)

    def _end_child(self, error: BaseException | None) -> NoReturn:
        """End a fork of this process that has returned from the function: it is not the job."""
        if error is not None:
            with contextlib.suppress(Exception):
                traceback.print_exception(error)
        _flush(sys.stdout, sys.stderr)
        code = error.code if isinstance(error, SystemExit) else bool(error)
        self._exit(code & 0xFF if isinstance(code, int) else int(code is not None))

    def _restore_streams(self) -> None:
        _flush(sys.stdout, sys.stderr)
        for stream, copy in zip(_STREAMS, self._spares, strict=True):
            _put_back(stream, copy)
        sys.stdin, sys.stdout, sys.stderr = self._objects
        for name, number in (("stdout", 1), ("stderr", 2)):
            if getattr(sys, name) is None or getattr(sys, name).closed:
                setattr(sys, name, _text_stream(number))
        _flush(sys.stdout, sys.stderr)


def _put_back(stream: int, copy: int | None) -> None:
    """Let a standard stream be again what it was; something harmless, where that is lost."""
    try:
        if copy is None:
            raise OSError
        os.dup2(copy, stream)
        os.close(copy)
    except OSError:
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        if null != stream:
            os.dup2(null, stream)
            os.close(null)


def _text_stream(descriptor: int) -> IO[str]:
    return open(
        *(descriptor, "w"), buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False
    )


def _flush(*streams: IO[str] | None) -> None:
    for stream in streams:
        # Closed, or replaced by anything that a function made.
        with contextlib.suppress(Exception):
            assert stream is not None
            stream.flush()
