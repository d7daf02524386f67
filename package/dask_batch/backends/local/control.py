"""The local queue as a whole: what it has, and its end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dask_batch.backends.base import JobStatus
from dask_batch.backends.local.connection import Connection
from dask_batch.backends.local.known import status_of
from dask_batch.backends.local.protocol import Message
from dask_batch.errors import BackendUnavailableError

__all__ = ["LocalJob", "local_jobs", "stop_local_queue"]


@dataclass(frozen=True, slots=True)
class LocalJob:
    """A job of the local queue that has not ended."""

    name: str
    status: JobStatus


def local_jobs() -> list[LocalJob]:
    """Return the jobs of this user's queue on this machine that have not ended, oldest first."""
    connection = _existing()
    if connection is None:
        return []
    records: list[Sequence[Any]] = []
    try:
        first: int | None = 0
        while first is not None:
            answer = connection.request([{"type": "list", "from": first}])
            records += answer["jobs"]
            first = answer["next"]
    finally:
        connection.close()
    return [LocalJob(record[5], status_of(record)) for record in records]


def stop_local_queue(*, wait: bool = True, kill_jobs: bool = False) -> bool:
    """End this user's queue on this machine.

    Parameters
    ----------
    wait
        Return when it has ended.
    kill_jobs
        Cancel all its jobs, of all clients. Otherwise it ends when nothing runs any more and
        nothing can start; jobs that are held stay so under the next queue.

    Returns
    -------
    bool
        Whether there was a queue.
    """
    connection = _existing()
    if connection is None:
        return False
    try:
        connection.request([{"type": "stop", "kill": kill_jobs}])
        if wait:
            connection.await_end()
    finally:
        connection.close()
    return True


def _existing() -> Connection | None:
    """Connect to the queue if there is one."""
    try:
        return Connection(_ignore, start=False)
    except BackendUnavailableError:
        return None


def _ignore(_: Message) -> None:
    """Nothing is watched on a connection that only asks about the queue itself."""
