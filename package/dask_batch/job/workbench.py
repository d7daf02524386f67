"""The process in which a worker's tasks run, one after the other.

It is forked by its keeper (:mod:`.worker`), which alone speaks with the client. Here the
``init_function`` is called first; then each task is an attempt as in a job of its own: same
claims, same records, same log files. What the functions leave in this process stays: loaded
libraries, objects that ``init_function`` made, the user's modules. (The globals that a function
reaches arrive with each task, as they were hashed.)
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import sys
import traceback
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from dask_batch.job.channel import Channel, Message
from dask_batch.job.descriptors import spare
from dask_batch.job.endings import EndedError, described, summary
from dask_batch.job.exit_codes import FAILED
from dask_batch.job.kept import NOTHING, Kept
from dask_batch.job.opening import RefusedError, open_task
from dask_batch.job.run import Attempt, main
from dask_batch.job.say import say
from dask_batch.job.surroundings import JOB_VARIABLE

__all__ = ["serve"]

_APPEND: Final = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC


def serve(keeper: Channel, initial: Path | None) -> int:
    """Run what the keeper orders, until it orders no more; return the exit code.

    Parameters
    ----------
    keeper
        Where the orders come from.
    initial
        The definition of the ``init_function``, if there is one.
    """
    # What the keeper runs as ``__main__`` is no business of the tasks'.
    sys.modules["__main__"] = types.ModuleType("__main__")
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # a warning is for a task that listens
    code = 0
    try:
        with _crashes_told():
            kept = _begin(initial) if initial is not None else NOTHING
        keeper.send({"told": "ready"})
        while True:
            order = keeper.receive()
            code = _run(order, kept)
            keeper.send({"told": "ended", "job": order["job"], "exit_code": code})
    except RefusedError as refusal:
        say(str(refusal))
        return refusal.exit_code
    except (EOFError, OSError):
        # The keeper is gone; or a function has closed what is not its own. Then the exit code tells
        # of its task.
        return code


def _begin(definition: Path) -> Kept:
    """Call the ``init_function``."""
    cache, task = open_task(definition, 0)
    try:
        value = _Beginning(cache, task).value()
        return Kept({} if value is None else _named(value))
    except EndedError as ended:
        say(ended.log_text)
        return Kept(failure=ended)


def _named(value: Any) -> Mapping[str, Any]:
    """Return what an ``init_function`` returned, if it is what it must be."""
    if isinstance(value, Mapping) and all(isinstance(name, str) for name in value):
        return value
    error = TypeError(
        "init_function must return a dictionary from names of arguments to their values, or "
        f"nothing; it returned {type(value).__qualname__}"
    )
    raise EndedError("exception", summary(error), **described(error))


class _Beginning(Attempt):
    """The call of an ``init_function``: it has no result in the store, and no claim."""

    def value(self) -> Any:
        """Return what it returns.

        Raises
        ------
        EndedError
            It could not be called, or has raised.
        """
        self._prepare()
        return self._value()

    def _left(self, code: int) -> None:
        say(f"init_function ended its process by os._exit({code})")


def _run(order: Message, kept: Kept) -> int:
    """Run one task, with its own log files; return the exit code that its job would have."""
    with _logged(Path(order["logs"]), int(order["index"])), _crashes_told():
        os.environ[JOB_VARIABLE] = order["job"]
        try:
            return main(order["definition"], int(order["index"]), kept)
        except BaseException:  # not the function's: that one ends in a record
            traceback.print_exc()
            return FAILED


@contextlib.contextmanager
def _logged(folder: Path, index: int) -> Iterator[None]:
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
def _crashes_told() -> Iterator[None]:
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
