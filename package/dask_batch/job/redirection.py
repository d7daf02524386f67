"""The standard streams of a process that runs several tasks: each task has its own log files."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from dask_batch.job.descriptors import spare

__all__ = ["crashes_told", "logged"]

_APPEND: Final = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC


@contextlib.contextmanager
def logged(folder: Path, index: int) -> Iterator[None]:
    """Let what is written to the standard streams go to a task's log files for a while.

    Raises
    ------
    OSError
        They cannot be opened; the streams are what they were.
    """
    _flush()
    with contextlib.ExitStack() as opened:
        logs = [_open(folder / f"{index}.{suffix}", opened) for suffix in ("out", "err")]
        before = [spare(stream) for stream in (1, 2)]
        for stream, log in zip((1, 2), logs, strict=True):
            os.dup2(log, stream)
    try:
        yield
    finally:
        _flush()
        for stream, copy in zip((1, 2), before, strict=True):
            if copy is not None:
                with contextlib.suppress(OSError):  # a function has closed what is not its own
                    os.dup2(copy, stream)
                    os.close(copy)


def _open(path: Path, opened: contextlib.ExitStack) -> int:
    log = os.open(path, _APPEND, 0o600)
    opened.callback(os.close, log)
    return log


@contextlib.contextmanager
def crashes_told() -> Iterator[None]:
    """Let a crash in compiled code leave its Python frames in the log of the moment."""
    log = spare(2)
    if log is None:
        yield
        return
    faulthandler.enable(log, all_threads=True)
    try:
        yield
    finally:
        faulthandler.disable()
        with contextlib.suppress(OSError):  # closed by a function
            os.close(log)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or a full disk
            stream.flush()
