"""What is free for the jobs of a queue in the client's process, and who goes next.

The policy is that of the local queue (:mod:`dask_batch.backends.local.room`). What there is
differs: a launcher tells it, it may change at any moment, and may have no bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from dask_batch.backends.local import room
from dask_batch.backends.local.records import Demand
from dask_batch.backends.within.launcher import Room

__all__ = ["ChangingRoom", "Share", "bounded"]

_NO_BOUND: Final = 2**60


@dataclass(frozen=True, slots=True)
class Share(Demand):
    """What a job takes while it runs, its GPUs included."""

    gpus: int = 0


def bounded(there: Room, *, max_workers: int | None, max_cores: int | None) -> Room:
    """Return what is left of a room where a user has set caps."""
    return Room(
        cpus=_least(there.cpus, max_cores),
        gpus=there.gpus,
        jobs=_least(there.jobs, max_workers),
        memory_bytes=there.memory_bytes,
    )


def _least(one: int | None, other: int | None) -> int | None:
    given = [bound for bound in (one, other) if bound is not None]
    return min(given, default=None)


class ChangingRoom(room.Room):
    """CPUs, memory, GPUs and places, whose numbers may change while jobs run.

    Attributes
    ----------
    free_gpus, free_jobs
        Below zero where there is less now than what runs was given.
    """

    def __init__(self) -> None:
        super().__init__(0, 0)
        self.free_gpus = 0
        self.free_jobs = 0
        self._there = Room(0, 0, 0, 0)

    def resize(self, there: Room) -> None:
        """Take note of what there is now."""
        before, self._there = self._there, there
        self.free_cpus += _difference(there.cpus, before.cpus)
        self.free_gpus += _difference(there.gpus, before.gpus)
        self.free_jobs += _difference(there.jobs, before.jobs)
        self.free_memory_bytes += _difference(there.memory_bytes, before.memory_bytes)

    def take(self, demand: Demand, devices: Sequence[str] | None = None) -> tuple[str, ...]:
        """Take a job's share: it runs. Which devices it holds is its launcher's to say."""
        self._count(demand, -1)
        return ()

    def give_back(self, demand: Demand, devices: Sequence[str] = ()) -> None:
        """Give a job's share back: it runs no more."""
        self._count(demand, 1)

    def _count(self, demand: Demand, sign: int) -> None:
        self._add(demand, sign)
        self.free_jobs += sign
        if isinstance(demand, Share):
            self.free_gpus += sign * demand.gpus

    def _fits(self, demand: Demand) -> bool:
        """Whether there is room for a job at this moment."""
        gpus = demand.gpus if isinstance(demand, Share) else 0
        return (
            self.free_jobs >= 1
            and demand.cpus <= self.free_cpus
            and demand.memory_bytes <= self.free_memory_bytes
            and gpus <= self.free_gpus
        )


def _difference(now: int | None, before: int | None) -> int:
    return (_NO_BOUND if now is None else now) - (_NO_BOUND if before is None else before)
