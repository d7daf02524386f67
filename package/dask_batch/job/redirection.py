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
    """Let what is written to the standard streams go to a task's log files for a while."""
    _flush()
    before = [spare(stream) for stream in (1, 2)]
    for stream, suffix in ((1, "out"), (2, "err")):
        log = os.open(folder / f"{index}.{suffix}", _APPEND, 0o600)
        os.dup2(log, stream)
        os.close(log)
    try:
        yield
    finally:
        _flush()
        for stream, copy in zip((1, 2), before, strict=True):
            if copy is not None:
                with contextlib.suppress(OSError):  # a function has closed what is not its own
                    os.dup2(copy, stream)
                    os.close(copy)


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
