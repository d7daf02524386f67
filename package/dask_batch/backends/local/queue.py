"""The local queue's scheduling, without any I/O: events in, jobs to start out.

Policy
------
A job is *held* until it is released, then *waits* for its parents, then for CPUs, memory and
GPUs (:mod:`.room`). When a job does not succeed, everything that depends on it ends as *dependency
failed*, at once. Except that the failure of a job that may be run again leaves those that wait
for it directly in the queue, *stuck*: until they are cancelled, or that job has succeeded.

Jobs are numbered from 0 in the order of hand-over. Everything that happens depends on the events
alone, so that a later queue that is given the same ones comes to the same state.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from dask_batch.backends.base import JobState
from dask_batch.backends.local.dependencies import (
    await_ends,
    await_success,
    inform,
    inform_of_unknown,
)
from dask_batch.backends.local.records import Cap, Entry, Outcome, QueuedJob, RefusedError
from dask_batch.backends.local.register import Register
from dask_batch.backends.local.room import Room

__all__ = ["WorkQueue"]


class WorkQueue:
    """Jobs, their dependencies, and what is free of the machine.

    Parameters
    ----------
    cpus, memory_bytes
        The machine.
    keep_ended
        How many ended jobs are remembered.
    room
        What is free, where that is not simply the machine.

    Attributes
    ----------
    changed : set of int
        Numbers of jobs whose state has changed; the caller empties it.
    jobs : Register
        All jobs, to look them up.
    ended : list of QueuedJob
        Jobs that have ended, in order; the caller empties it.
    """

    def __init__(
        self,
        *,
        cpus: int,
        memory_bytes: int,
        keep_ended: int = 100_000,
        room: Room | None = None,
    ) -> None:
        self.cpus, self.memory_bytes = cpus, memory_bytes
        self.changed: set[int] = set()
        self.ended: list[QueuedJob] = []
        self._room = Room(cpus, memory_bytes) if room is None else room
        self.jobs = Register(keep_ended)
        self._running: dict[int, None] = {}

    # ---- looking ---------------------------------------------------------------------------

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

    def hand_over(self, entries: Sequence[Entry], *, cap: Cap = None) -> range:
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
        first = self.jobs.next_number
        for entry in entries:
            self._add(entry, first, cap)
        for number in range(first, self.jobs.next_number):
            self._settle(self.jobs[number])
        return range(first, self.jobs.next_number)

    def release(self, numbers: Iterable[int]) -> None:
        """Let held jobs go. Others are left as they are."""
        for number in numbers:
            job = self.jobs.get(number)
            if job is not None and job.state is JobState.HELD:
                self._set_state(job, JobState.WAITING)
                self._queue_if_ready(job)

    def cancel(self, number: int, reason: str = "") -> bool:
        """End a job that has not started; True if it runs, and must be killed by the caller."""
        job = self.jobs.get(number)
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
        cap: Cap = None,
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
        job = self.jobs[number]
        if job.state.ended:
            self.check_rerun(number, entry)
            self._revive(job, entry, cap)

    def check_rerun(self, number: int, entry: Entry) -> None:
        """Refuse to run a job once more that asks for too much, or whose name is in use."""
        self._check_demand(entry)
        self.jobs.check_name(entry, number)

    def repoint(self, number: int, parents: Iterable[int]) -> None:
        """Have a queued job wait for these jobs, as far as they are known and not completed."""
        job = self.jobs.get(number)
        if job is None or job.state not in (JobState.WAITING, JobState.HELD):
            return
        await_success(job, self.jobs.known(parents))
        self.changed.add(number)
        self._queue_if_ready(job)

    def begin(self, number: int, devices: Sequence[str] = ()) -> None:
        """Mark a job as running, whatever it waits for: it was started by an earlier queue."""
        self._start(self.jobs[number], devices)

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
        self._finish(self.jobs[number], outcome)

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
        self.jobs.check(entries)
        for entry in entries:
            self._check_demand(entry)

    def _check_demand(self, entry: Entry) -> None:
        """Refuse what this machine cannot give."""
        if entry.demand.cpus < 1 or entry.demand.memory_bytes < 0:
            raise RefusedError(f"{entry.name!r} asks for less than nothing", entry.name)
        if entry.demand.cpus > self.cpus or entry.demand.memory_bytes > self.memory_bytes:
            raise RefusedError(f"{entry.name!r} is larger than this machine", entry.name)
        if not 0 <= entry.demand.gpus <= len(entry.demand.devices.names):
            raise RefusedError(f"{entry.name!r} names too few GPUs for it", entry.name)

    def _add(self, entry: Entry, first: int, cap: Cap) -> None:
        """Take one job of a hand-over that begins at number ``first``."""
        number = self.jobs.next_number
        self.jobs.next_number += 1
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
        self.jobs.add(job)
        self.changed.add(number)
        self._room.enter(entry.demand, cap)
        for parent in self.jobs.known(await_ends(job, entry, first)):
            parent.children.append(number)

    def _settle(self, job: QueuedJob) -> None:
        """Let a job, just taken, know what of what it waits for has ended or is unknown."""
        for number in {*job.unmet, *(job.unended or ()), *(job.unfailed or ())}:
            parent = self.jobs.get(number)
            if job.state.ended:
                return
            if parent is None:
                inform_of_unknown(job, number)
            elif parent.state.ended and (how := inform(job, parent)) is not None:
                self._finish(job, how)
        self._queue_if_ready(job)

    # ---- starting --------------------------------------------------------------------------

    def _queue_if_ready(self, job: QueuedJob) -> None:
        """Queue a job for resources once nothing else keeps it."""
        if job.state is JobState.WAITING and not job.waits:
            self._room.queue(job)

    def _start(self, job: QueuedJob, devices: Sequence[str] | None = None) -> None:
        """Take a job's share of the machine."""
        job.devices = self._room.take(job.demand, devices)
        self._running[job.number] = None
        self._set_state(job, JobState.RUNNING)

    def _stopped(self, number: int) -> QueuedJob:
        """Give back the share of a job that runs."""
        job = self.jobs[number]
        if job.state is not JobState.RUNNING:
            raise ValueError(f"job {number} is not running but {job.state.value}")
        del self._running[number]
        self._room.give_back(job.demand, job.devices)
        job.devices = ()
        return job

    def _revive(self, job: QueuedJob, entry: Entry, cap: Cap) -> None:
        """Queue an ended job again."""
        self.jobs.revive(job)
        job.demand, job.payload, job.outcome = entry.demand, entry.payload, None
        job.repeatable, job.patient = entry.repeatable, entry.patient
        job.passed_over, job.broken = 0, frozenset()
        job.unended = job.unfailed = None
        self._room.enter(job.demand, cap)
        self._set_state(job, JobState.WAITING)
        open_ = [p.number for p in self.jobs.known(entry.after) if not p.state.ended]
        self.repoint(job.number, open_)
        for child in self.jobs.known(job.children):
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
            for child in self.jobs.known(ending.children):
                if child.state.ended:
                    continue
                if (fate := inform(child, ending)) is not None:
                    pending.append((child, fate))
                elif ending.number in child.unmet:
                    waiting.append(child.number)
                    self.changed.add(child.number)
                else:
                    self._queue_if_ready(child)
            ending.children = waiting

    def _forget_payload(self, job: QueuedJob) -> None:
        """Keep of an ended job only what may be asked for, and not for ever."""
        job.payload = None
        self._room.leave(job.demand)
        self.ended.append(job)
        self.jobs.settle(job)
