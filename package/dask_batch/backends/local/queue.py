"""The local queue's scheduling, without any I/O: events in, jobs to start out.

Policy
------
A job is *held* until it is released, then *waits* for its parents, then for CPUs and memory.
Among the jobs that could start, the higher priority goes first, then the one handed over first.
One that does not fit lets smaller ones pass, but only :data:`PASS_LIMIT` times: after that
nothing starts until it fits. Jobs of a group (one executor) that is at its cap do not count as
passed over.

When a job does not succeed, everything that depends on it ends as *dependency failed*, at once.

State
-----
Jobs are numbered from 0 in the order of hand-over. The ones that are ready wait in one heap per
*shape* (CPUs, memory, group), so that looking for the next job costs as many steps as there are
different shapes, however many jobs wait.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from dask_batch.backends.base import JobState
from dask_batch.backends.local.records import Entry, Outcome, QueuedJob, RefusedError

__all__ = ["PASS_LIMIT", "WorkQueue"]

PASS_LIMIT = 16


@dataclass(slots=True)
class _Group:
    """The jobs of one executor: at most ``cap`` of them run at a time."""

    cap: int
    jobs: int = 0
    running: int = 0


_Shape = tuple[int, int, str | None]


class WorkQueue:
    """Jobs, their dependencies, and what is free of the machine.

    Parameters
    ----------
    cpus, memory_bytes
        The machine.
    keep_ended
        How many ended jobs are remembered.

    Attributes
    ----------
    changed : set of int
        Numbers of jobs whose state has changed; the caller empties it.
    """

    def __init__(self, *, cpus: int, memory_bytes: int, keep_ended: int = 100_000) -> None:
        self.cpus, self.memory_bytes = cpus, memory_bytes
        self.free_cpus, self.free_memory_bytes = cpus, memory_bytes
        self.changed: set[int] = set()
        self._jobs: dict[int, QueuedJob] = {}
        self._names: dict[str, int] = {}
        self._ended: OrderedDict[int, None] = OrderedDict()
        self._keep_ended = keep_ended
        self._next_number = 0
        self._ready: dict[_Shape, list[tuple[int, int]]] = {}
        self._groups: dict[str, _Group] = {}
        self._running: dict[int, None] = {}

    # ---- looking ---------------------------------------------------------------------------

    def get(self, number: int) -> QueuedJob | None:
        """Return a job; None if it never was or is forgotten."""
        return self._jobs.get(number)

    def find(self, name: str) -> int | None:
        """Return the number of the job of that name."""
        return self._names.get(name)

    def __iter__(self) -> Iterator[QueuedJob]:
        return iter(self._jobs.values())

    @property
    def unfinished(self) -> int:
        """How many jobs have not ended."""
        return len(self._jobs) - len(self._ended)

    @property
    def running(self) -> Sequence[int]:
        """The numbers of the jobs that run."""
        return tuple(self._running)

    @property
    def can_progress(self) -> bool:
        """Whether a job runs or may start without a further event from a client."""
        return bool(self._running) or any(self._head(shape) for shape in list(self._ready))

    # ---- events ----------------------------------------------------------------------------

    def hand_over(self, entries: Sequence[Entry], *, cap: int | None = None) -> range:
        """Take a graph of jobs, whole or not at all; those without parents in it are held.

        Parameters
        ----------
        entries
            Parents before children.
        cap
            How many jobs of their group may run at a time, from now on.

        Raises
        ------
        RefusedError
            Nothing was taken.
        """
        self._check(entries)
        first = self._next_number
        for entry in entries:
            self._add(entry, first, cap)
        for number in range(first, self._next_number):
            self._fail_if_impossible(number)
        return range(first, self._next_number)

    def release(self, numbers: Iterable[int]) -> None:
        """Let held jobs go. Others are left as they are."""
        for number in numbers:
            job = self._jobs.get(number)
            if job is not None and job.state is JobState.HELD:
                self._set_state(job, JobState.WAITING)
                self._make_ready_if_met(job)

    def cancel(self, number: int, reason: str = "") -> bool:
        """End a job that has not started; True if it runs, and must be killed by the caller."""
        job = self._jobs.get(number)
        if job is None or job.state.ended:
            return False
        if job.state is JobState.RUNNING:
            return True
        self._finish(job, Outcome(JobState.CANCELLED, reason=reason))
        return False

    def end(self, number: int, outcome: Outcome) -> None:
        """Note how a running job ended."""
        job = self._jobs[number]
        if job.state is not JobState.RUNNING:
            raise ValueError(f"job {number} is not running but {job.state.value}")
        del self._running[number]
        self.free_cpus += job.demand.cpus
        self.free_memory_bytes += job.demand.memory_bytes
        if job.demand.group in self._groups:
            self._groups[job.demand.group].running -= 1
        self._finish(job, outcome)

    def start_due(self) -> list[QueuedJob]:
        """Mark the jobs that can start now as running and return them."""
        due = []
        while self.free_cpus > 0 and (job := self._next_due()) is not None:
            self._start(job)
            due.append(job)
        return due

    # ---- hand-over -------------------------------------------------------------------------

    def _check(self, entries: Sequence[Entry]) -> None:
        """Refuse what could never be right."""
        names: set[str] = set()
        for position, entry in enumerate(entries):
            number = self._names.get(entry.name)
            known = None if number is None else self._jobs[number]
            if entry.name in names or (known is not None and not known.state.ended):
                raise RefusedError(f"a job named {entry.name!r} is there already", entry.name)
            if any(not 0 <= parent < position for parent in entry.parents):
                raise RefusedError(f"a parent of {entry.name!r} does not precede it", entry.name)
            if entry.demand.cpus < 1 or entry.demand.memory_bytes < 0:
                raise RefusedError(f"{entry.name!r} asks for less than nothing", entry.name)
            if entry.demand.cpus > self.cpus or entry.demand.memory_bytes > self.memory_bytes:
                raise RefusedError(f"{entry.name!r} is larger than this machine", entry.name)
            names.add(entry.name)

    def _add(self, entry: Entry, first: int, cap: int | None) -> None:
        """Take one job of a hand-over that begins at number ``first``."""
        number = self._next_number
        self._next_number += 1
        state = JobState.WAITING if entry.parents else JobState.HELD
        job = QueuedJob(number, entry.name, entry.demand, entry.payload, state)
        self._jobs[number] = job
        self._names[entry.name] = number
        self.changed.add(number)
        parents = {first + position for position in entry.parents} | set(entry.after)
        for parent in parents:
            known = self._jobs.get(parent)
            if known is not None and known.state is not JobState.COMPLETED:
                job.unmet += 1
                if not known.state.ended:
                    known.children.append(number)
        if entry.demand.group is not None and cap is not None:
            group = self._groups.setdefault(entry.demand.group, _Group(cap))
            group.cap = cap
        if entry.demand.group in self._groups:
            self._groups[entry.demand.group].jobs += 1
        self._impossible_after(job, entry.after)

    def _impossible_after(self, job: QueuedJob, after: Iterable[int]) -> None:
        """Remember on the job that one it must follow has already failed."""
        for number in after:
            known = self._jobs.get(number)
            if known is not None and known.state.ended and known.state is not JobState.COMPLETED:
                job.outcome = _dependency_failed(known)

    def _fail_if_impossible(self, number: int) -> None:
        """End a job, just taken, that must follow one that has already failed."""
        job = self._jobs[number]
        if job.outcome is not None and not job.state.ended:
            self._finish(job, job.outcome)

    # ---- starting --------------------------------------------------------------------------

    def _make_ready_if_met(self, job: QueuedJob) -> None:
        """Queue a job for resources once nothing else keeps it."""
        if job.state is JobState.WAITING and job.unmet == 0:
            demand = job.demand
            shape = (demand.cpus, demand.memory_bytes, demand.group)
            heapq.heappush(self._ready.setdefault(shape, []), (-demand.priority, job.number))

    def _head(self, shape: _Shape) -> tuple[int, int] | None:
        """Return the first ready job of a shape; those that were cancelled are dropped."""
        heap = self._ready[shape]
        while heap:
            job = self._jobs.get(heap[0][1])
            if job is not None and job.state is JobState.WAITING:
                return heap[0]
            heapq.heappop(heap)
        del self._ready[shape]
        return None

    def _next_due(self) -> QueuedJob | None:
        """Choose the job to start now; see the policy above."""
        heads = [(head, shape) for shape in list(self._ready) if (head := self._head(shape))]
        heads.sort(key=lambda item: item[0])
        blocked: QueuedJob | None = None
        for (_, number), shape in heads:
            if self._capped(shape[2]):
                continue
            job = self._jobs[number]
            if shape[0] <= self.free_cpus and shape[1] <= self.free_memory_bytes:
                if blocked is not None:
                    blocked.passed_over += 1
                heapq.heappop(self._ready[shape])
                return job
            if blocked is None:
                if job.passed_over >= PASS_LIMIT:
                    return None
                blocked = job
        return None

    def _capped(self, name: str | None) -> bool:
        """Whether a group runs as many jobs as it may."""
        group = self._groups.get(name) if name is not None else None
        return group is not None and group.running >= group.cap

    def _start(self, job: QueuedJob) -> None:
        """Take a job's share of the machine."""
        self.free_cpus -= job.demand.cpus
        self.free_memory_bytes -= job.demand.memory_bytes
        if job.demand.group in self._groups:
            self._groups[job.demand.group].running += 1
        self._running[job.number] = None
        self._set_state(job, JobState.RUNNING)

    # ---- ending ----------------------------------------------------------------------------

    def _set_state(self, job: QueuedJob, state: JobState) -> None:
        job.state = state
        self.changed.add(job.number)

    def _finish(self, job: QueuedJob, outcome: Outcome) -> None:
        """End a job, and with it what can no longer run."""
        pending = [(job, outcome)]
        while pending:
            ending, how = pending.pop()
            if ending.state.ended:
                continue
            ending.outcome = how
            self._set_state(ending, how.state)
            self._forget_payload(ending)
            for number in ending.children:
                child = self._jobs.get(number)
                if child is None:  # it was cancelled, long ago
                    continue
                if how.state is not JobState.COMPLETED:
                    pending.append((child, _dependency_failed(ending)))
                else:
                    child.unmet -= 1
                    self._make_ready_if_met(child)
            ending.children = []

    def _forget_payload(self, job: QueuedJob) -> None:
        """Keep of an ended job only what may be asked for, and not for ever."""
        job.payload = None
        group = self._groups.get(job.demand.group) if job.demand.group is not None else None
        if group is not None:
            group.jobs -= 1
            if group.jobs == 0:
                del self._groups[str(job.demand.group)]
        self._ended[job.number] = None
        while len(self._ended) > self._keep_ended:
            oldest, _ = self._ended.popitem(last=False)
            forgotten = self._jobs.pop(oldest)
            if self._names.get(forgotten.name) == oldest:
                del self._names[forgotten.name]


def _dependency_failed(parent: QueuedJob) -> Outcome:
    """Say which job a dependent could not follow."""
    reason = f"it depends on {parent.name}, which ended as {parent.state.value}"
    return Outcome(JobState.DEPENDENCY_FAILED, reason=reason)
