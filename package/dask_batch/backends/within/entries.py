"""From jobs to entries of the queue, and between its numbers and their ids."""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable, Iterator, Sequence

from dask_batch.backends.base import Job
from dask_batch.backends.local.queue import WorkQueue
from dask_batch.backends.local.records import Demand, Entry, RefusedError
from dask_batch.backends.within.room import ChangingRoom, Share

__all__ = ["ClientQueue", "Ids", "share_of"]

_GB = 2**30  # as Slurm counts
_NO_NUMBER = -1


def share_of(job: Job) -> Share:
    """Return what a job takes while it runs."""
    wanted = job.resources
    ranks = int(wanted.get("cores") or 1)
    return Share(
        cpus=ranks * int(wanted.get("threads_per_core") or 1),
        memory_bytes=math.ceil(float(wanted.get("memory_max") or 0) * _GB),
        priority=int(wanted.get("priority") or 0),
        gpus=ranks * int(wanted.get("gpus_per_core") or 0),
    )


class ClientQueue(WorkQueue):
    """The queue; what there is for its jobs is its room's to say, and may change."""

    def __init__(self, room: ChangingRoom) -> None:
        super().__init__(cpus=0, memory_bytes=0, room=room)
        self.room = room

    def _check_demand(self, entry: Entry) -> None:
        """Refuse nonsense; what is too large is refused by the launcher, who knows the place."""
        demand: Demand = entry.demand
        if demand.cpus < 1 or demand.memory_bytes < 0:
            raise RefusedError(f"{entry.name!r} asks for less than nothing", entry.name)


class Ids:
    """The ids of one queue's jobs: no other queue, now or later, gives the same.

    Parameters
    ----------
    backend
        The name of the backend, with which they begin.

    Attributes
    ----------
    prefix
        What all ids of this queue begin with.
    """

    def __init__(self, backend: str) -> None:
        self.prefix = f"{backend}-{secrets.token_hex(4)}-"

    def of(self, number: int) -> str:
        """Return the id of the job of that number."""
        return f"{self.prefix}{number}"

    def numbers(self, job_ids: Iterable[str]) -> Iterator[int]:
        """Yield the numbers of those ids that are this queue's."""
        for job_id in job_ids:
            number = self.number(job_id)
            if number != _NO_NUMBER:
                yield number

    def number(self, job_id: str) -> int:
        """Return the number of an id; one that no job has if it is another queue's."""
        number = job_id.removeprefix(self.prefix)
        mine = job_id.startswith(self.prefix) and number.isdecimal()
        return int(number) if mine else _NO_NUMBER

    def entries(self, jobs: Sequence[Job]) -> list[Entry]:
        """Return jobs as the queue takes them, parents before children."""
        positions = {job.name: position for position, job in enumerate(jobs)}
        return [self.entry(job, tuple(positions[parent] for parent in job.parents)) for job in jobs]

    def entry(self, job: Job, parents: tuple[int, ...] = ()) -> Entry:
        """Return one job as the queue takes it."""
        return Entry(
            name=job.name,
            demand=share_of(job),
            parents=parents,
            after=tuple(self.numbers(job.after)),
            payload=job,
            repeatable=job.repeatable,
            patient=job.patient,
            after_failure=tuple(map(self.number, job.after_failure)),
            after_end=tuple(self.numbers(job.after_end)),
        )
