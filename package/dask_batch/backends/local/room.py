"""What is free of the machine, and which of the jobs that could start goes next.

The higher priority goes first, then the job handed over first. One that does not fit lets smaller
ones pass, but only :data:`PASS_LIMIT` times: after that nothing starts until it fits. Jobs of a
group (one executor) that is at its cap do not count as passed over.

The jobs wait in one heap per *shape* (CPUs, memory, GPUs, group), so that looking for the next one
costs as many steps as there are different shapes, however many jobs wait.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

from dask_batch.backends.base import JobState
from dask_batch.backends.gpus import Devices
from dask_batch.backends.local.devices import Holdings
from dask_batch.backends.local.records import Cap, Demand, QueuedJob

__all__ = ["PASS_LIMIT", "Room"]

PASS_LIMIT = 16

_Shape = tuple[int, int, int, Devices, str | None]
_Place = tuple[int, int, int, QueuedJob]
"""Priority (negative), number and turn, which order places, and the job."""


@dataclass(slots=True)
class _Group:
    """The jobs of one executor, and how many of them may run at a time, on how many CPUs."""

    most_jobs: float = math.inf
    most_cpus: float = math.inf
    jobs: int = 0
    running: int = 0
    cpus: int = 0

    def bind(self, cap: Cap) -> None:
        """Take other caps from now on."""
        jobs, cpus = (cap, None) if cap is None or isinstance(cap, int) else cap
        self.most_jobs = math.inf if jobs is None else jobs
        self.most_cpus = math.inf if cpus is None else cpus

    def has_room(self, demand: Demand) -> bool:
        """Whether one more job may run."""
        return self.running < self.most_jobs and self.cpus + demand.cpus <= self.most_cpus


class Room:
    """The machine's CPUs, memory and GPUs, and the jobs that wait for them.

    Attributes
    ----------
    free_cpus, free_memory_bytes
        Below zero where jobs were taken over from a queue that knew a larger machine.
    """

    def __init__(self, cpus: int, memory_bytes: int) -> None:
        self.free_cpus, self.free_memory_bytes = cpus, memory_bytes
        self._holdings = Holdings()
        self._ready: dict[_Shape, list[_Place]] = {}
        self._groups: dict[str, _Group] = {}

    # ---- groups ----------------------------------------------------------------------------

    def enter(self, demand: Demand, cap: Cap) -> None:
        """Count a job that has not ended; ``cap`` binds its group from now on."""
        if demand.group is not None and cap is not None:
            self._groups.setdefault(demand.group, _Group()).bind(cap)
        if (group := self._group(demand)) is not None:
            group.jobs += 1

    def leave(self, demand: Demand) -> None:
        """Count a job no more: it has ended."""
        if (group := self._group(demand)) is not None:
            group.jobs -= 1
            if group.jobs == 0:
                del self._groups[str(demand.group)]

    def _group(self, demand: Demand) -> _Group | None:
        return None if demand.group is None else self._groups.get(demand.group)

    # ---- shares ----------------------------------------------------------------------------

    def take(self, demand: Demand, devices: Sequence[str] | None = None) -> tuple[str, ...]:
        """Take a job's share, it runs; return which devices it holds.

        Parameters
        ----------
        devices
            Those that it holds already, since it was started by an earlier queue.
        """
        chosen = self._holdings.choose(demand) if devices is None else tuple(devices)
        if chosen is None:
            raise ValueError("there are not enough devices")
        self._holdings.take(demand, chosen)
        self._add(demand, -1)
        return chosen

    def give_back(self, demand: Demand, devices: Sequence[str]) -> None:
        """Give a job's share back: it runs no more."""
        self._holdings.give_back(demand, devices)
        self._add(demand, 1)

    def _add(self, demand: Demand, sign: int) -> None:
        self.free_cpus += sign * demand.cpus
        self.free_memory_bytes += sign * demand.memory_bytes
        if (group := self._group(demand)) is not None:
            group.running -= sign
            group.cpus -= sign * demand.cpus

    # ---- who is next -----------------------------------------------------------------------

    def queue(self, job: QueuedJob) -> None:
        """Queue a job that nothing but resources keeps from starting."""
        job.turn += 1
        demand = job.demand
        shape = (*(demand.cpus, demand.memory_bytes), demand.gpus, demand.devices, demand.group)
        place = (-demand.priority, job.number, job.turn, job)
        heapq.heappush(self._ready.setdefault(shape, []), place)

    def anyone(self) -> bool:
        """Whether a job waits for resources alone."""
        return any(self._head(shape) for shape in list(self._ready))

    def _head(self, shape: _Shape) -> _Place | None:
        """Return the first place of a shape; void ones are dropped."""
        heap = self._ready[shape]
        while heap:
            _, _, turn, job = heap[0]
            if job.state is JobState.WAITING and job.turn == turn:
                return heap[0]
            heapq.heappop(heap)
        del self._ready[shape]
        return None

    def next_due(self) -> QueuedJob | None:
        """Choose the job to start now, and take it out; see the policy above."""
        if self.free_cpus <= 0:
            return None
        heads = [(head, shape) for shape in list(self._ready) if (head := self._head(shape))]
        heads.sort(key=lambda item: item[0][:3])
        blocked: QueuedJob | None = None
        capped: set[str | None] = set()
        for (*_, job), shape in heads:
            if job.demand.group in capped:
                continue  # those of one executor keep their order: a large one would never start
            if self._capped(job.demand):
                capped.add(job.demand.group)
                continue
            if self._fits(job.demand):
                if blocked is not None:
                    blocked.passed_over += 1
                heapq.heappop(self._ready[shape])
                return job
            if blocked is None:
                if job.passed_over >= PASS_LIMIT:
                    return None
                blocked = job
        return None

    def _fits(self, demand: Demand) -> bool:
        """Whether there is room for a job at this moment."""
        return (
            demand.cpus <= self.free_cpus
            and demand.memory_bytes <= self.free_memory_bytes
            and self._holdings.choose(demand) is not None
        )

    def _capped(self, demand: Demand) -> bool:
        """Whether a job's group runs as many jobs as it may."""
        group = self._group(demand)
        return group is not None and not group.has_room(demand)
