"""MPI ranks that stay, and take one task after another: the side of their leader.

They are started once. For each task the leader leaves an order in a directory of its own, and the
first rank tells there when all have done with it. An exception that all ranks have come back from
leaves them as they are; where some have not come back (they wait for the one that has failed) the
ranks have ended, and new ones are started for the next task. If they are killed, so is the worker.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from dask_batch.cache.definitions import Definition
from dask_batch.job.endings import EndedError
from dask_batch.job.publishing import Publication
from dask_batch.job.ranks.apart import tidy
from dask_batch.job.ranks.exchange import Exchange
from dask_batch.job.ranks.last_words import OWN_LOG
from dask_batch.job.ranks.launch import Launch, launch
from dask_batch.job.ranks.leader import Leader, advice_on, end_ranks, first_of, thread_variables
from dask_batch.job.ranks.library import Library, find_library
from dask_batch.job.ranks.pace import Pace
from dask_batch.job.say import say
from dask_batch.job.tether import tethered

__all__ = ["Crew"]

_LOOK_S, _SELDOM_S = 0.02, 1.0
"""So often the leader looks how far the ranks are: at first, and when a task has taken long."""
_TAKE_S: Final = 120.0
"""How long ranks may take to find an order, on a file system that is late."""
_ABORT_S: Final = 5.0
"""How long ranks may take to agree, or to end, after one has failed."""
_LEAVE_S: Final = 2.0
"""How long idle ranks may take to leave."""


class Crew:
    """The ranks of one worker.

    Parameters
    ----------
    asked
        How many, and what each has: as ``ranks`` in a task's definition.
    folder
        Where orders are left; made, and removed, here.
    initial
        The definition of the ``init_function``, if there is one.

    Attributes
    ----------
    lost
        Whether the ranks have died otherwise than by an exception.
    log
        The stderr of what has started the ranks.
    """

    def __init__(self, asked: Mapping[str, Any], folder: Path, initial: Path | None) -> None:
        self.lost = False
        self.log = ""
        self._asked = asked
        self._folder = folder
        self._initial = initial
        self._orders = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._exchange: Exchange | None = None
        self._begun: list[dict[str, Any]] = []
        """What the ranks have said when they began: in which step, for one thing."""
        self._library: Library
        self._how: Launch

    def begin(self) -> None:
        """Start the ranks, and have each call the ``init_function``.

        Raises
        ------
        EndedError
            They cannot be started, have not found each other, or one has raised.
        """
        self._begun = []
        self._library = find_library()
        self._how = launch(self._asked, self._library)
        task = (self._initial, 0) if self._initial is not None else None
        exchange = self.order({}, task)
        ours = [sys.executable, "-P", "-m", "dask_batch.job.ranks.staying"]
        with contextlib.suppress(OSError):  # it is closed
            self.log = os.readlink(OWN_LOG)  # a later task has a log of its own, srun keeps this
        try:
            self._process = subprocess.Popen(
                [*self._how.argv, *ours, str(self._folder), str(self._orders)],
                stdin=subprocess.DEVNULL,
                env={**os.environ, **thread_variables(self._asked), **self._how.variables},
                preexec_fn=tethered(signal.SIGTERM),
            )
        except OSError as error:
            program = self._how.argv[0]
            raise EndedError(
                "environment", f"the ranks cannot be started by {program}: {error.strerror}"
            ) from error
        self.watch(exchange)
        failures = exchange.failures()
        self._begun = exchange.begun()
        if failures or not self.alive:
            self.end()
            raise self._why_not(failures)

    def _why_not(self, failures: list[dict[str, Any]]) -> EndedError:
        if failures:
            return first_of(failures, self._asked["count"])
        advice = advice_on(self._how, self._library)
        return EndedError(
            "environment",
            f"the ranks, started by `{self._how.words}`, ended before they could take a task; the "
            f"worker's log has their words. {advice}",
        )

    @property
    def alive(self) -> bool:
        """Whether the ranks are there."""
        return self._process is not None and self._process.poll() is None

    def lead(self, publication: Publication, definition: Definition) -> None:
        """Have the ranks run a task; return when its result is in the store.

        Raises
        ------
        EndedError, NoRecordError
            As :meth:`.leader.Leader.run`.
        """
        if not self.alive:
            self.begin()
        _CrewLeader(publication, definition, self).run()

    # ---- for one task ----------------------------------------------------------------------

    def order(self, said: Mapping[str, Any], task: tuple[Path, int] | None) -> Exchange:
        """Leave an order for the ranks."""
        if self._exchange is not None:
            self._exchange.remove()
        self._orders += 1  # of one that could not be left nobody knows whether it was read
        order = {
            **said,
            "count": self._asked["count"],
            "advice": advice_on(self._how, self._library),
            "how": self._how.words,
            "mpiexec": self._how.argv[0] not in ("srun", "flux"),
            "task": [str(task[0]), task[1]] if task is not None else None,
        }
        try:
            self._exchange = Exchange.begin(self._folder / str(self._orders), order)
        except BaseException:
            self.end()  # they wait for this very order
            raise
        return self._exchange

    def watch(self, exchange: Exchange) -> None:
        """Return when the ranks have done with an order, or have ended."""
        pace = Pace(_LOOK_S, _SELDOM_S)
        deadline: float | None = None
        take_by = time.monotonic() + _TAKE_S if self._begun else None
        while self.alive and not exchange.done():
            now = time.monotonic()
            if deadline is None and exchange.failures():
                deadline = now + _ABORT_S
            if take_by is not None and now >= take_by:
                if not exchange.begun():
                    say(f"the ranks have not taken an order within {_TAKE_S:g} s; they are ended")
                    deadline = now
                take_by = None
            if deadline is not None and now >= deadline:
                self.end()
            self._wait(pace.wait_s())

    def _wait(self, wait_s: float) -> None:
        """Wait a moment; no longer than the ranks are there."""
        assert self._process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(wait_s)

    @property
    def exit_code(self) -> int | None:
        """How the ranks have ended; None while they are there."""
        return None if self._process is None else self._process.poll()

    @property
    def means(self) -> tuple[Launch, Library]:
        """How they were started, for which library."""
        return self._how, self._library

    @property
    def _done(self) -> bool:
        """Whether the ranks wait for an order."""
        return self._exchange is not None and self._exchange.done()

    def end(self) -> None:
        """End the ranks."""
        if self._process is not None:
            begun = self._begun or (self._exchange.begun() if self._exchange is not None else [])
            end_ranks(self._process, begun)
            tidy(self._folder)

    def close(self) -> None:
        """End the ranks, and remove what they were told."""
        until = time.monotonic() + _LEAVE_S / 2
        while self.alive and not self._done and time.monotonic() < until:
            time.sleep(_LOOK_S)
        if self.alive and self._done:
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                self.order({"end": True}, None)
                assert self._process is not None
                self._process.wait(_LEAVE_S)
        self.end()
        if self._exchange is not None:
            Exchange(self._folder).remove()


class _CrewLeader(Leader):
    """Leads ranks that are there already."""

    def __init__(self, publication: Publication, definition: Definition, crew: Crew) -> None:
        super().__init__(publication, definition)
        self._crew = crew
        self._log = crew.log

    def run(self) -> None:
        one, crew = self._publication, self._crew
        said = {
            "generation": one.generation,
            "job_id": one.job_id,
            "started": one.started,
            "logs": str(one.cache.path / "logs" / one.run),
        }
        exchange = crew.order(said, (self._definition.path, self._definition.index))
        crew.watch(exchange)
        try:
            self._judge(crew.exit_code, exchange, crew.means)
        except EndedError as ended:
            crew.lost = not crew.alive and ended.fields["outcome"] != "exception"
            raise
        except BaseException:
            crew.lost = not crew.alive
            raise
        finally:
            if exchange.unclean():
                say("the next task has new ranks: what this one has left would reach it")
                crew.end()

    def _has_begun(self, exchange: Exchange) -> bool:
        return True  # or there would have been no order
