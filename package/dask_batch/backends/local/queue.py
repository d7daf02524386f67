"""The local queue's scheduling, without any I/O: events in, jobs to start out.

Policy
------
A job is *held* until it is released, then *waits* for its parents, then for CPUs and memory
(:mod:`.room`). When a job does not succeed, everything that depends on it ends as *dependency
failed*, at once. Except that the failure of a job that may be run again leaves those that wait
for it directly in the queue, *stuck*: until they are cancelled, or that job has succeeded.

Jobs are numbered from 0 in the order of hand-over. Everything that happens depends on the events
alone, so that a later queue that is given the same ones comes to the same state.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence

from dask_batch.backends.base import JobState
from dask_batch.backends.local.records import Entry, Outcome, QueuedJob, RefusedError
from dask_batch.backends.local.room import Room

__all__ = ["WorkQueue"]

_ALL_SUCCEEDED = Outcome(
    JobState.DEPENDENCY_FAILED, reason="it was for a failure, and everything has succeeded"
)
_FAILED_ITSELF = frozenset(
    {
        *(JobState.FAILED, JobState.TIMEOUT, JobState.OUT_OF_MEMORY),
        *(JobState.NODE_FAILURE, JobState.PREEMPTED, JobState.LOST),
    }
)
"""What may be followed by another run; a job that was cancelled is not run again."""


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
    ended : list of QueuedJob
        Jobs that have ended, in order; the caller empties it.
    """

    def __init__(self, *, cpus: int, memory_bytes: int, keep_ended: int = 100_000) -> None:
        self.cpus, self.memory_bytes = cpus, memory_bytes
        self.changed: set[int] = set()
        self.ended: list[QueuedJob] = []
        self._room = Room(cpus, memory_bytes)
        self._jobs: dict[int, QueuedJob] = {}
        self._names: dict[str, int] = {}
        self._ended: OrderedDict[int, None] = OrderedDict()
        self._keep_ended = keep_ended
        self._running: dict[int, None] = {}
        self.next_number = 0

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
    def free_cpus(self) -> int:
        """How many CPUs no job has taken."""
        return self._room.free_cpus

    @property
    def free_memory_bytes(self) -> int:
        """How much memory no job has taken."""
        return self._room.free_memory_bytes

    @property
    def can_progress(self) -> bool:
        """Whether a job runs or may start without a further event from a client."""
        return bool(self._running) or self._room.anyone()

    # ---- events ----------------------------------------------------------------------------

    def hand_over(self, entries: Sequence[Entry], *, cap: int | None = None) -> range:
        """Take a graph of jobs, whole or not at all; those that wait for nothing are held.

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
        self.check(entries)
        first = self.next_number
        for entry in entries:
            self._add(entry, first, cap)
        for number in range(first, self.next_number):
            self._settle(self._jobs[number])
        return range(first, self.next_number)

    def release(self, numbers: Iterable[int]) -> None:
        """Let held jobs go. Others are left as they are."""
        for number in numbers:
            job = self._jobs.get(number)
            if job is not None and job.state is JobState.HELD:
                self._set_state(job, JobState.WAITING)
                self._queue_if_ready(job)

    def cancel(self, number: int, reason: str = "") -> bool:
        """End a job that has not started; True if it runs, and must be killed by the caller."""
        job = self._jobs.get(number)
        if job is None or job.state.ended:
            return False
        if job.state is JobState.RUNNING:
            return True
        self._finish(job, Outcome(JobState.CANCELLED, reason=reason))
        return False

    def rerun(
        self,
        number: int,
        entry: Entry,
        *,
        cap: int | None = None,
    ) -> None:
        """Run an ended job once more; one that has not ended is left alone.

        Parameters
        ----------
        entry
            How, and with what, it runs this time. Of ``after`` only what has not ended counts:
            the rest is for the job to find out.

        Raises
        ------
        RefusedError
            It asks for more than there is, or its name is in use. Nothing was done.
        """
        job = self._jobs[number]
        if job.state.ended:
            self.check_rerun(number, entry)
            self._revive(job, entry, cap)

    def check_rerun(self, number: int, entry: Entry) -> None:
        """Refuse to run a job once more that asks for too much, or whose name is in use."""
        self._check_demand(entry)
        self._check_name(entry, number)

    def repoint(self, number: int, parents: Iterable[int]) -> None:
        """Have a queued job wait for these jobs, as far as they are known and not completed."""
        job = self._jobs.get(number)
        if job is None or job.state not in (JobState.WAITING, JobState.HELD):
            return
        known = [parent for n in parents if (parent := self._jobs.get(n)) is not None]
        job.unmet = {p.number for p in known if p.state is not JobState.COMPLETED}
        job.broken = frozenset(p.number for p in known if p.number in job.unmet and p.state.ended)
        for parent in known:
            if parent.number in job.unmet and number not in parent.children:
                parent.children.append(number)
        self.changed.add(number)
        self._queue_if_ready(job)

    def begin(self, number: int) -> None:
        """Mark a job as running, whatever it waits for: it was started by an earlier queue."""
        self._start(self._jobs[number])

    def put_back(self, number: int) -> None:
        """Queue a job again that is marked as running, but was never started."""
        job = self._stopped(number)
        self._set_state(job, JobState.WAITING)
        self._queue_if_ready(job)

    def end(self, number: int, outcome: Outcome) -> None:
        """Note how a running job ended."""
        self._finish(self._stopped(number), outcome)

    def end_unstarted(self, number: int, outcome: Outcome) -> None:
        """Note how a job ended that does not run."""
        self._finish(self._jobs[number], outcome)

    def start_due(self) -> list[QueuedJob]:
        """Mark the jobs that can start now as running and return them."""
        due = []
        while (job := self._room.next_due()) is not None:
            self._start(job)
            due.append(job)
        return due

    # ---- hand-over -------------------------------------------------------------------------

    def check(self, entries: Sequence[Entry]) -> None:
        """Refuse what could never be right.

        Raises
        ------
        RefusedError
            It names the job at fault.
        """
        names: set[str] = set()
        for position, entry in enumerate(entries):
            self._check_name(entry, None)
            if entry.name in names:
                raise RefusedError(f"a job named {entry.name!r} is there already", entry.name)
            if any(not 0 <= parent < position for parent in entry.parents):
                raise RefusedError(f"a parent of {entry.name!r} does not precede it", entry.name)
            self._check_demand(entry)
            names.add(entry.name)

    def _check_name(self, entry: Entry, number: int | None) -> None:
        """Refuse a name that another job has which has not ended."""
        there = self._names.get(entry.name)
        if there is not None and there != number and not self._jobs[there].state.ended:
            raise RefusedError(f"a job named {entry.name!r} is there already", entry.name)

    def _check_demand(self, entry: Entry) -> None:
        """Refuse what this machine cannot give."""
        if entry.demand.cpus < 1 or entry.demand.memory_bytes < 0:
            raise RefusedError(f"{entry.name!r} asks for less than nothing", entry.name)
        if entry.demand.cpus > self.cpus or entry.demand.memory_bytes > self.memory_bytes:
            raise RefusedError(f"{entry.name!r} is larger than this machine", entry.name)

    def _add(self, entry: Entry, first: int, cap: int | None) -> None:
        """Take one job of a hand-over that begins at number ``first``."""
        number = self.next_number
        self.next_number += 1
        waits = entry.parents or entry.after_failure or entry.after_end
        job = QueuedJob(
            number,
            entry.name,
            entry.demand,
            entry.payload,
            JobState.WAITING if waits else JobState.HELD,
            repeatable=entry.repeatable,
            patient=entry.patient,
        )
        self._jobs[number] = job
        self._names[entry.name] = number
        self.changed.add(number)
        self._room.enter(entry.demand, cap)
        job.unmet = {first + position for position in entry.parents} | set(entry.after)
        job.unended = set(entry.after_end) or None
        job.unfailed = set(entry.after_failure) or None
        for parent in {*job.unmet, *entry.after_end, *entry.after_failure}:
            if (known := self._jobs.get(parent)) is not None:
                known.children.append(number)

    def _settle(self, job: QueuedJob) -> None:
        """Let a job, just taken, know what of what it waits for has ended or is unknown."""
        for number in {*job.unmet, *(job.unended or ()), *(job.unfailed or ())}:
            parent = self._jobs.get(number)
            if job.state.ended:
                return
            if parent is None:
                job.unmet.discard(number)
                (job.unended or set()).discard(number)
                if job.unfailed is not None and number in job.unfailed:
                    job.unfailed = None
            elif parent.state.ended and (how := self._inform(job, parent)) is not None:
                self._finish(job, how)
        self._queue_if_ready(job)

    # ---- starting --------------------------------------------------------------------------

    def _queue_if_ready(self, job: QueuedJob) -> None:
        """Queue a job for resources once nothing else keeps it."""
        if job.state is JobState.WAITING and not job.waits:
            self._room.queue(job)

    def _start(self, job: QueuedJob) -> None:
        """Take a job's share of the machine."""
        self._room.take(job.demand)
        self._running[job.number] = None
        self._set_state(job, JobState.RUNNING)

    def _stopped(self, number: int) -> QueuedJob:
        """Give back the share of a job that runs."""
        job = self._jobs[number]
        if job.state is not JobState.RUNNING:
            raise ValueError(f"job {number} is not running but {job.state.value}")
        del self._running[number]
        self._room.give_back(job.demand)
        return job

    def _revive(self, job: QueuedJob, entry: Entry, cap: int | None) -> None:
        """Queue an ended job again."""
        self._ended.pop(job.number, None)
        self._names[job.name] = job.number
        job.demand, job.payload, job.outcome = entry.demand, entry.payload, None
        job.repeatable, job.patient = entry.repeatable, entry.patient
        job.passed_over, job.broken = 0, frozenset()
        job.unended = job.unfailed = None
        self._room.enter(job.demand, cap)
        self._set_state(job, JobState.WAITING)
        known = (self._jobs.get(number) for number in entry.after)
        self.repoint(job.number, [p.number for p in known if p is not None and not p.state.ended])
        for child in (c for n in job.children if (c := self._jobs.get(n)) is not None):
            child.broken -= {job.number}
            self.changed.add(child.number)

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
            ending.outcome, ending.broken = how, frozenset()
            self._set_state(ending, how.state)
            self._forget_payload(ending)
            waiting = []
            for number in ending.children:
                child = self._jobs.get(number)
                if child is None or child.state.ended:
                    continue
                if (fate := self._inform(child, ending)) is not None:
                    pending.append((child, fate))
                elif ending.number in child.unmet:
                    waiting.append(number)
                else:
                    self._queue_if_ready(child)
            ending.children = waiting

    def _inform(self, child: QueuedJob, parent: QueuedJob) -> Outcome | None:
        """Let a job know that one that it waits for has ended; return its end if this ends it."""
        number, succeeded = parent.number, parent.state is JobState.COMPLETED
        if child.unended is not None:
            child.unended.discard(number)
        if child.unfailed is not None and number in child.unfailed:
            child.unfailed.discard(number)
            if not succeeded:
                child.unfailed = None
            elif not child.unfailed:
                return _ALL_SUCCEEDED
        if number not in child.unmet:
            return None
        if succeeded:
            child.unmet.discard(number)
            return None
        if parent.state in _FAILED_ITSELF and (parent.repeatable or child.patient):
            child.broken |= {number}
            self.changed.add(child.number)
            return None
        return _dependency_failed(parent)

    def _forget_payload(self, job: QueuedJob) -> None:
        """Keep of an ended job only what may be asked for, and not for ever."""
        job.payload = None
        self._room.leave(job.demand)
        self.ended.append(job)
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
