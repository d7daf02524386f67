"""The process in which a worker's tasks run, one after the other.

It is forked by its keeper (:mod:`.worker`), which alone speaks with the client. Here the
``init_function`` is called first; then each task is an attempt as in a job of its own: same
claims, same records, same log files. What the functions leave in this process stays: loaded
libraries, objects that ``init_function`` made, the user's modules. (The globals that a function
reaches arrive with each task, as they were hashed.)
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from dask_batch.job.channel import Channel, Message
from dask_batch.job.endings import EndedError
from dask_batch.job.exit_codes import FAILED
from dask_batch.job.kept import NOTHING, Kept, named
from dask_batch.job.leavings import Standing
from dask_batch.job.opening import RefusedError, open_task
from dask_batch.job.redirection import crashes_told, logged
from dask_batch.job.run import Attempt, main
from dask_batch.job.say import say
from dask_batch.job.surroundings import JOB_VARIABLE

__all__ = ["serve"]


def serve(
    keeper: Channel, initial: Path | None, ranks: Mapping[str, Any] | None, folder: Path
) -> int:
    """Run what the keeper orders, until it orders no more; return the exit code.

    Parameters
    ----------
    keeper
        Where the orders come from.
    initial
        The definition of the ``init_function``, if there is one.
    ranks
        How many MPI ranks this worker has, and what each; None: it is one plain process.
    folder
        Where such ranks are told what to do.
    """
    # What the keeper runs as ``__main__`` is no business of the tasks'.
    sys.modules["__main__"] = types.ModuleType("__main__")
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # a warning is for a task that listens
    code = 0
    kept = NOTHING
    try:
        with crashes_told():
            kept = _begin(initial) if ranks is None else _muster(ranks, folder, initial)
        keeper.send({"told": "ready"})
        standing = Standing()
        while True:
            order = keeper.receive()
            code = _run(order, kept)
            standing.restore()
            if kept.crew is not None and kept.crew.lost:
                return code or FAILED  # by which the keeper knows that this worker has died
            keeper.send({"told": "ended", "job": order["job"], "exit_code": code})
    except RefusedError as refusal:
        say(str(refusal))
        return refusal.exit_code
    except (EOFError, OSError):
        # The keeper is gone; or a function has closed what is not its own. Then the exit code tells
        # of its task.
        return code
    except SystemExit as told:  # to end
        return int(told.code or 0)
    finally:
        if kept.crew is not None:
            kept.crew.close()


def _muster(ranks: Mapping[str, Any], folder: Path, initial: Path | None) -> Kept:
    """Start MPI ranks, which call the ``init_function`` each."""
    from dask_batch.job.ranks.crew import Crew

    _end_by_exception()
    crew = Crew(ranks, folder, initial)
    try:
        crew.begin()
    except EndedError as ended:
        say(ended.log_text)
        return Kept(failure=ended)
    return Kept(crew=crew)


def _end_by_exception() -> None:
    """Leave by way of ``finally`` when told to end, so that ranks are ended, too."""

    def leave(number: int, _: Any) -> NoReturn:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, leave)


def _begin(definition: Path | None) -> Kept:
    """Call the ``init_function``."""
    if definition is None:
        return NOTHING
    cache, task = open_task(definition, 0)
    try:
        value = _Beginning(cache, task).value()
        return Kept(named(value))
    except EndedError as ended:
        say(ended.log_text)
        return Kept(failure=ended)


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
    try:
        with logged(Path(order["logs"]), int(order["index"])), crashes_told():
            return _logged_run(order, kept)
    except OSError as error:  # nor can it be told in its own log
        say(f"{order['job']}: its log files cannot be written: {error}")
        return FAILED


def _logged_run(order: Message, kept: Kept) -> int:
    os.environ[JOB_VARIABLE] = order["job"]
    try:
        return main(order["definition"], int(order["index"]), kept)
    except SystemExit:  # it is told to end
        raise
    except BaseException:  # not the function's: that one ends in a record
        traceback.print_exc()
        return FAILED
