"""``python -m dask_batch.job.ranks.staying FOLDER ORDER``: one MPI rank that stays.

It waits for orders from the given number on. Waiting costs little: nobody spins in a broadcast.

After each call the ranks agree on whether all have come back. One that has failed waits a moment
for the others, as they may be on their way, and ends them all if they are not: they would wait for
it in a communication of the function's own for ever.
"""

from __future__ import annotations

import itertools
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dask_batch.cache.sections import MARKER
from dask_batch.errors import CacheError
from dask_batch.job.containment import dump_crashes
from dask_batch.job.endings import EndedError, described, summary
from dask_batch.job.exit_codes import FAILED
from dask_batch.job.kept import NOTHING, Kept, named
from dask_batch.job.leavings import Standing
from dask_batch.job.ranks.apart import tidy
from dask_batch.job.ranks.exchange import Exchange
from dask_batch.job.ranks.pace import Pace
from dask_batch.job.ranks.rank import Rank, check_size, started_mpi
from dask_batch.job.redirection import crashes_told, logged
from dask_batch.job.say import say
from dask_batch.job.surroundings import JOB_VARIABLE
from dask_batch.job.tether import tether
from dask_batch.job.threshold import leave

if TYPE_CHECKING:
    from mpi4py import MPI

__all__ = ["main"]

_AGREE_S: Final = 3.0
_SHORTEST_S, _LONGEST_S = 0.005, 0.05
_SELDOM_S: Final = 1.0
"""So often ranks that have been idle for long look for an order."""
_PROBES: Final = 5
"""A library may need several looks to take in what has come."""


class _StrandedError(Exception):
    """The other ranks do not come back; carries how this one has ended."""

    def __init__(self, ended: EndedError) -> None:
        super().__init__(str(ended))
        self.ended = ended


class _Staying:
    """What one rank keeps, and how it does its share of each order."""

    def __init__(self, mpi: Any) -> None:
        self._mpi = mpi
        self._comm: MPI.Intracomm = mpi.COMM_WORLD.Dup()
        self._kept: Kept = NOTHING
        self._unclean = False
        """Whether a task has left something that would reach the next one."""
        self._standing = Standing()

    def begin(self, exchange: Exchange, order: dict[str, Any]) -> bool:
        """Call the ``init_function``; return whether all ranks could."""
        begun = self._together(exchange, lambda: self._initialised(exchange, order))
        self._standing = Standing()
        return begun

    def _initialised(self, exchange: Exchange, order: dict[str, Any]) -> None:
        if order["task"] is not None:
            rank = self._rank(exchange, order)
            self._kept = Kept(named(rank.value()), settled=True)

    def run(self, exchange: Exchange, order: dict[str, Any]) -> None:
        """Run a task, with its own log files; the first rank publishes."""
        os.environ[JOB_VARIABLE] = order["job_id"]
        with logged(Path(order["logs"]), order["task"][1]), crashes_told():
            self._run(exchange, order)
            self._unclean = self._left_over()
        self._standing.restore()

    def _left_over(self) -> bool:
        """Whether at any rank a message has come that the task has not received.

        Nothing would keep the next task from taking it for one of its own.
        """
        each = bytearray(self._comm.size)
        # On every way between two ranks this comes behind what the task has sent.
        self._comm.Alltoall([each, self._mpi.BYTE], [bytearray(each), self._mpi.BYTE])
        worlds = (self._mpi.COMM_WORLD, self._mpi.COMM_SELF)
        pending = any(world.Iprobe() for _ in range(_PROBES) for world in worlds)
        if pending:
            say(f"rank {self._comm.rank}: the task has left messages that it has not received")
        return bool(self._comm.allreduce(pending, self._mpi.LOR))

    def _run(self, exchange: Exchange, order: dict[str, Any]) -> None:
        found: list[Any] = []

        def call() -> None:
            rank = self._rank(exchange, order)
            value = rank.value(self._kept)
            found.extend((rank, value, rank.pickled(value)))

        if self._together(exchange, call):
            rank, value, pickled = found
            self._together(exchange, lambda: rank.publish(value, pickled))

    def _rank(self, exchange: Exchange, order: dict[str, Any]) -> Rank:
        definition, index = order["task"]
        return Rank(self._comm, exchange, order, (Path(definition), index))

    def _together(self, exchange: Exchange, act: Any) -> bool:
        """Do something at all ranks; return whether it went well at each."""
        ended: EndedError | None = None
        try:
            act()
        except EndedError as error:
            ended = error
        except Exception as error:
            ended = EndedError("died", f"a rank failed: {summary(error)}", **described(error))
        if ended is not None:
            exchange.fail_rank(self._comm.rank, ended)
            say(f"rank {self._comm.rank} of {self._comm.size}: {ended.log_text}")
        return self._agreed(ended)

    def _agreed(self, ended: EndedError | None) -> bool:
        """Tell all ranks how it went here, and return whether it went well at each.

        Raises
        ------
        _StrandedError
            It did not here, and the others do not come to hear it.
        """
        went = bytearray(self._comm.size)
        mine = bytearray([ended is not None])
        asked = self._comm.Iallgather([mine, self._mpi.BYTE], [went, self._mpi.BYTE])
        until = time.monotonic() + _AGREE_S
        wait_s = _SHORTEST_S
        while not asked.Test():
            if ended is not None and time.monotonic() >= until:
                raise _StrandedError(ended)
            time.sleep(wait_s)
            wait_s = min(2 * wait_s, _LONGEST_S)
        return not any(went)

    def next(self, folder: Path, number: int) -> tuple[Exchange, dict[str, Any]]:
        """Wait for an order: the first rank looks for it, and tells the others."""
        exchange = Exchange(folder / str(number))
        order = self._found(exchange) if self._comm.rank == 0 else None
        if order is not None:
            exchange.begin_rank(0)
        heard = self._comm.Ibarrier()
        while not heard.Test():
            time.sleep(_LONGEST_S if self._comm.rank else _SHORTEST_S)
        return exchange, self._comm.bcast(order)

    def _found(self, exchange: Exchange) -> dict[str, Any]:
        pace = Pace(_SHORTEST_S, _SELDOM_S)
        while True:
            try:
                return exchange.order()
            except FileNotFoundError:
                if not (exchange.path.parents[2] / MARKER).exists():
                    raise
            time.sleep(pace.wait_s())

    def done(self, exchange: Exchange) -> None:
        """Let the leader know that no rank is at an order any more."""
        if self._comm.rank == 0:
            exchange.finish(unclean=self._unclean)


def main(folder: str, first: int) -> int:
    """Be one rank until the leader needs it no more; return the exit code."""
    numbers = itertools.count(first)
    exchange = Exchange(Path(folder) / str(next(numbers)))
    order = exchange.order()
    rank: int | None = None
    try:
        mpi = started_mpi(Path(folder))
        rank = mpi.COMM_WORLD.rank
        exchange.begin_rank(rank)
        check_size(mpi, order)
        staying = _Staying(mpi)
        if not staying.begin(exchange, order):
            staying.done(exchange)
            return FAILED
        while True:
            staying.done(exchange)
            exchange, order = staying.next(Path(folder), next(numbers))
            if order.get("end"):
                break
            staying.run(exchange, order)
    except _StrandedError:
        return _abort(rank)
    except EndedError as ended:
        exchange.fail_rank(rank, ended)
        say(ended.log_text)
        return _abort(rank) or ended.exit_code
    except BaseException as error:
        failed = EndedError("died", f"a rank failed: {summary(error)}", **described(error))
        exchange.fail_rank(rank, failed)
        say(failed.log_text)
        return _abort(rank)
    mpi.Finalize()
    tidy(Path(folder))
    return 0


def _abort(rank: int | None) -> int:
    """End the other ranks."""
    if rank is not None:
        from mpi4py import MPI

        MPI.COMM_WORLD.Abort(FAILED)
    return FAILED


def _start(folder: str, first: int) -> int:
    tether()
    dump_crashes()
    try:
        return main(folder, first)
    except (CacheError, OSError) as error:
        say(f"a rank cannot begin on {os.uname().nodename}: {error}")
        return FAILED


if __name__ == "__main__":
    if len(sys.argv) != 3 or not sys.argv[2].isdecimal():
        sys.exit("usage: python -m dask_batch.job.ranks.staying FOLDER ORDER")
    leave(_start(sys.argv[1], int(sys.argv[2])))
