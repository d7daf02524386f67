"""One rank of a task: what all of them compute, and what the first of them does beside.

The first rank reads the definition and the inputs once, and broadcasts them; it gathers what each
rank returned, in their order, and publishes the list. The ranks' own communication is on a
communicator of theirs, so that the function has ``MPI.COMM_WORLD`` to itself.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dask_batch.cache.checkpoints import checkpoint_path
from dask_batch.cache.definitions import Definition, read_definition
from dask_batch.cache.store import Cache
from dask_batch.code import pickling
from dask_batch.errors import ResourceError
from dask_batch.job.body import Body
from dask_batch.job.containment import Contained
from dask_batch.job.devices import rank_on_node, share
from dask_batch.job.endings import EndedError, described, left_by_itself, summary
from dask_batch.job.exit_codes import FAILED, NO_MODULE
from dask_batch.job.fitness import check_files, check_libraries, enter_surroundings
from dask_batch.job.inputs import Inputs
from dask_batch.job.kept import NOTHING, Kept
from dask_batch.job.publishing import Publication, unstorable
from dask_batch.job.ranks.apart import keep_apart, tidy
from dask_batch.job.ranks.exchange import Exchange
from dask_batch.job.ranks.messages import (
    UnreadableError,
    broadcast_bytes,
    broadcast_object,
    gather_objects,
)
from dask_batch.job.say import say

if TYPE_CHECKING:
    from mpi4py import MPI

__all__ = ["Rank", "check_size", "main", "started_mpi"]


def main(definition: str, index: int, folder: str) -> int:
    """Run one rank, and return its exit code; the leader reads in the folder how it went."""
    exchange = Exchange(Path(folder))
    order = exchange.order()
    rank: int | None = None
    try:
        mpi = started_mpi(exchange.path)
        rank = mpi.COMM_WORLD.rank
        exchange.begin_rank(rank)
        check_size(mpi, order)
        Rank(mpi.COMM_WORLD.Dup(), exchange, order, (Path(definition), index)).run()
    except EndedError as ended:
        return _failed(exchange, rank, ended, order["count"])
    except BaseException as error:
        failed = EndedError("died", f"a rank failed: {summary(error)}", **described(error))
        return _failed(exchange, rank, failed, order["count"])
    mpi.Finalize()
    tidy(exchange.path)
    return 0


def started_mpi(task: Path) -> Any:
    """Initialise MPI and return mpi4py's module.

    Parameters
    ----------
    task
        The directory through which the leader talks to its ranks.
    """
    keep_apart(task)
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise EndedError(
            "environment", f"a rank cannot use MPI: {summary(error)}", exit_code=NO_MODULE
        ) from error
    return MPI


def check_size(mpi: Any, order: Mapping[str, Any]) -> None:
    """See that all ranks have found each other: else each would compute as if it were alone."""
    size = mpi.COMM_WORLD.size
    if size != order["count"]:
        library = mpi.Get_library_version().strip("\0").splitlines()[0].partition(",")[0]
        raise EndedError(
            "environment",
            f"`{order['how']}` started {order['count']} ranks, and {library} knows of {size}: they "
            f"have not found each other. {order['advice']}",
        )


def _failed(exchange: Exchange, rank: int | None, ended: EndedError, count: int) -> int:
    """Tell the leader how this rank failed, and end the others."""
    exchange.fail_rank(rank, ended)
    who = "a rank" if rank is None else f"rank {rank} of {count}"
    say(f"{who}: {ended.log_text}")
    if rank is not None:
        from mpi4py import MPI

        MPI.COMM_WORLD.Abort(FAILED)
    return ended.exit_code or FAILED


def _still_initialised() -> None:
    """See that the ranks can still talk to each other after the function has returned."""
    from mpi4py import MPI

    if MPI.Is_finalized():
        raise EndedError(
            "died",
            "the function has called MPI.Finalize(), and its values could not be gathered: leave "
            "the call out, MPI is finalised after the function",
        )


def _shared_memory() -> int:
    from mpi4py import MPI

    return int(MPI.COMM_TYPE_SHARED)


class Rank:
    """What one rank does with all the others."""

    def __init__(
        self,
        comm: MPI.Intracomm,
        exchange: Exchange,
        order: Mapping[str, Any],
        task: tuple[Path, int],
    ) -> None:
        self.comm = comm
        self._exchange = exchange
        self._order = order
        self._cache = Cache(task[0].parent.parent, create=False)
        self._definition = self._told(task)
        self._header = self._definition.header
        self._key: str = self._header["key"]

    def run(self) -> None:
        """Compute, gather, and publish."""
        value = self.value()
        self.publish(value, self.pickled(value))

    def value(self, kept: Kept = NOTHING) -> Any:
        """Return what the function returns at this rank, with what is kept there."""
        common, header = self._definition.common, self._header
        surroundings = common["surroundings"][header["surroundings"]]
        self._versions = check_libraries(common, header, surroundings)
        enter_surroundings(surroundings, cpus=header["ranks"]["cpus"])
        if not kept.settled:
            self._take_devices(header["ranks"]["gpus"])
        checkpoints = checkpoint_path(self._cache, self._key)
        with Contained(self._left):
            value = Body(self._definition, self._inputs(), checkpoints, kept).value()
        _still_initialised()
        return value

    def publish(self, value: Any, pickled: pickling.Pickled | None) -> None:
        """Gather what all ranks have computed; the first of them publishes it."""
        try:
            values = gather_objects(self.comm, value, pickled)
        except UnreadableError as error:
            reason = error.__cause__ or error
            raise EndedError(
                "unstorable", f"{error}: {summary(reason)}", **described(reason)
            ) from error
        if self.comm.rank == 0:
            check_files(self._header)
            self._publication(self._versions).publish(values)
        self.comm.Barrier()  # nobody leaves, and is missed, before that is done

    def _take_devices(self, each: int) -> None:
        """See this rank's own GPUs only, where all of the node's ranks see all of the job's."""
        if not each:
            return
        number = rank_on_node()
        if number is None:
            node = self.comm.Split_type(_shared_memory())
            number = node.rank
            node.Free()
        try:
            os.environ.update(share(os.environ, number, each))
        except ResourceError as error:
            raise EndedError("environment", str(error)) from error

    def _told(self, task: tuple[Path, int]) -> Definition:
        """Read the task at one rank, and let all have it."""
        parts: list[Any] | None = None
        if self.comm.rank == 0:
            read = read_definition(*task)
            said = json.dumps([read.common, read.header]).encode()
            parts = [said, read.data, *read.buffers]
        heads, data, *buffers = broadcast_bytes(self.comm, parts)
        common, header = json.loads(bytes(heads))
        return Definition(common, header, bytes(data), tuple(buffers))

    def _inputs(self) -> _SharedInputs:
        grace_s = float(self._definition.common["input_grace_s"])
        inputs = Inputs(self._cache, self._header["input_claims"], grace_s)
        return _SharedInputs(self.comm, inputs)

    def pickled(self, value: Any) -> pickling.Pickled | None:
        """Return what a rank sends of its value; the first one sends nothing."""
        if self.comm.rank == 0:
            return None
        try:
            return pickling.dumps(value, where="the result")
        except BaseException as error:  # a __reduce__ may raise anything
            raise unstorable(value, error) from error

    def _publication(self, versions: Mapping[str, str | None]) -> Publication:
        return Publication(
            cache=self._cache,
            key=self._key,
            attributes=self._header["attributes"],
            run=self._definition.common["run"],
            generation=self._order["generation"],
            job_id=self._order["job_id"],
            started=self._order["started"],
            versions=versions,
        )

    def _left(self, code: int) -> None:
        """Tell that the function ends the process by itself, and leaves the others waiting."""
        ended = left_by_itself(code)
        self._exchange.fail_rank(self.comm.rank, ended)
        say(f"rank {self.comm.rank}: {ended.message}")


class _SharedInputs(Inputs):
    """Inputs that one rank reads and all have.

    All ranks ask for the same ones in the same order, as they unpickle the same task.
    """

    def __init__(self, comm: MPI.Comm, inputs: Inputs) -> None:
        self._comm = comm
        self._read = inputs
        self._referenced = {}

    def load(self, key: str) -> Any:
        value = self._read.load(key) if self._comm.rank == 0 else None
        return broadcast_object(self._comm, value)
