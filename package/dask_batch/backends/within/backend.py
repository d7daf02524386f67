"""A batch system that lives in the client's own process, and ends with it."""

from __future__ import annotations

import functools
import os
import shutil
import threading
import weakref
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Final

from dask_batch.backends.base import Job, JobState, JobStatus
from dask_batch.backends.jobs import noted, refuse_beyond
from dask_batch.backends.local.records import Outcome, QueuedJob, RefusedError
from dask_batch.backends.within.entries import ClientQueue, Ids
from dask_batch.backends.within.keeper import Keeper
from dask_batch.backends.within.launcher import Launcher
from dask_batch.backends.within.room import ChangingRoom, bounded
from dask_batch.errors import ConfigurationError, ResourceError, SubmissionError

__all__ = ["WithinBackend", "queue_here"]

_queues: Final[weakref.WeakValueDictionary[str, WithinBackend]] = weakref.WeakValueDictionary()
"""The queues of this process, by the prefixes of their ids."""


class WithinBackend:
    """A queue in this process, whose jobs a launcher starts.

    Parameters
    ----------
    launcher
        Starts the jobs.
    name
        The backend's name; see :mod:`dask_batch.backends.reach`.
    max_workers, max_cores
        How many jobs may run at a time, and on how many CPUs together; None: as the launcher says.

    Attributes
    ----------
    prefix
        What the ids of its jobs begin with.

    Notes
    -----
    Its jobs end with the process. Executors of one process that share a cache may ask after, and
    end, each other's jobs; they do not share their room.
    """

    shared = False
    default_max_jobs: int | None = None

    def __init__(
        self,
        launcher: Launcher,
        *,
        name: str,
        max_workers: int | None = None,
        max_cores: int | None = None,
    ) -> None:
        for cap, given in (("max_workers", max_workers), ("max_cores", max_cores)):
            if given is not None and given < 1:
                raise ConfigurationError(f"{cap} must be greater than 0")
        self.name = name
        self._launcher = launcher
        self._max_cores = max_cores
        self._ids = Ids(name)
        self.prefix = self._ids.prefix
        self._queue = ClientQueue(ChangingRoom())
        self._woken = threading.Event()
        bound = functools.partial(bounded, max_workers=max_workers, max_cores=max_cores)
        self._keeper = Keeper(self._queue, launcher, self._ids.of, bound, self._woken.set)
        self._pid = os.getpid()
        _queues[self.prefix] = self

    # ---- before ----------------------------------------------------------------------------

    def check(self, jobs: Sequence[Job]) -> None:
        """Find what is wrong with jobs before any is submitted; see :class:`.base.Backend`."""
        for job in jobs:
            refuse_beyond(job, self._max_cores)
            _check_paths(job)
            _check_nodes(job)
            self._launcher.check(job)

    def script(self, job: Job, dependency: Sequence[str] = ()) -> str:
        """Return what would be run for a job, for people to read."""
        text = self._launcher.script(job)
        return noted(text, *(f"starts when {job_id} has completed" for job_id in dependency))

    # ---- hand-over -------------------------------------------------------------------------

    def submit(self, jobs: Sequence[Job], accepted: Callable[[str, str], None]) -> None:
        """Hand over jobs, all or none; those without parents among them are held.

        Raises
        ------
        SubmissionError
            They make no sense together: none was taken.
        """
        with self._keeper.lock:
            self._begin()
            try:
                taken = self._queue.hand_over(self._ids.entries(jobs))
            except RefusedError as refused:
                raise self._refusal(refused) from refused
        self._keeper.news()
        for number, job in zip(taken, jobs, strict=True):
            accepted(job.name, self._ids.of(number))

    def release(self, job_ids: Sequence[str]) -> None:
        """Let held jobs go."""
        self._each(job_ids, lambda queue, number: queue._queue.release([number]))

    def rerun(self, job: Job, job_id: str, dependents: Mapping[str, Sequence[str]]) -> str:
        """Run an ended job once more; see :class:`.base.Backend`.

        Raises
        ------
        SubmissionError
            It makes no sense.
        """
        there = _queue_of(job_id) or self
        with there._keeper.lock:
            there._begin()
            try:
                now_id = there._run_again(job, job_id)
            except RefusedError as refused:
                raise self._refusal(refused) from refused
            if now_id != job_id:
                for dependent, parents in dependents.items():
                    ids = [now_id if parent == job_id else parent for parent in parents]
                    numbers = there._ids.numbers(ids)
                    there._queue.repoint(there._ids.number(dependent), numbers)
        there._keeper.news()
        return now_id

    def _run_again(self, job: Job, job_id: str) -> str:
        queue = self._queue
        number = queue.jobs.find(job.name)
        if number is None or queue.jobs[number].state.ended:
            known = queue.jobs.known(self._ids.numbers([job_id]))
            number = known[0].number if known else number
        entry = self._ids.entry(job)
        if number is None:
            (number,) = queue.hand_over([entry])
            queue.release([number])
        elif queue.jobs[number].state.ended:
            queue.check_rerun(number, entry)
            queue.rerun(number, entry)
        return self._ids.of(number)

    def cancel(self, job_ids: Collection[str]) -> None:
        """End jobs, waiting or running. Unknown and ended ids are no error."""
        self._each(job_ids, WithinBackend._cancel)

    def _cancel(self, number: int) -> None:
        if self._queue.cancel(number, "it was cancelled"):
            self._keeper.end(number, Outcome(JobState.CANCELLED, reason="it was cancelled"))

    def _each(self, job_ids: Iterable[str], act: Callable[[WithinBackend, int], object]) -> None:
        """Do something with each known job, in the queue that has it."""
        for there, numbers in _by_queue(job_ids).items():
            with there._keeper.lock:
                for number in numbers:
                    act(there, number)
            there._keeper.news()

    def _begin(self) -> None:
        """See to it that jobs are started; with the lock."""
        if os.getpid() != self._pid:
            raise SubmissionError(
                1, [self.name], "this process is a fork of the one in which the queue lives"
            )
        if self._keeper.failure is not None:
            why = f"the queue in this process has failed: {self._keeper.failure!r}"
            raise SubmissionError(1, [self.name], why)
        self._keeper.ensure()

    def _refusal(self, refused: RefusedError) -> SubmissionError:
        refusal = SubmissionError(1, [f"{self.name} queue"], str(refused))
        refusal.job_name = refused.name
        return refusal

    # ---- looking ---------------------------------------------------------------------------

    def status(self, job_ids: Collection[str]) -> dict[str, JobStatus]:
        """Report jobs of the queues of this process. An id that is missing is not known."""
        found = {}
        for there, numbers in _by_queue(job_ids).items():
            with there._keeper.lock:
                for job in there._queue.jobs.known(numbers):
                    found[there._ids.of(job.number)] = there._status(job)
        return found

    def _status(self, job: QueuedJob) -> JobStatus:
        state, how = job.reported_state, job.reported_outcome
        return JobStatus(
            self._ids.of(job.number),
            state,
            word=state.value,
            exit_code=None if how is None else how.exit_code,
            signal=None if how is None else how.signal,
            reason="" if how is None else how.reason,
            source=f"the {self.name} queue",
            name=job.name,
            unbegun=None if how is None else how.unbegun,
        )

    def find(self, names: Collection[str]) -> dict[str, str]:
        """Look up job ids by unique job names."""
        found = {}
        for there in list(_queues.values()):
            with there._keeper.lock:
                numbers = ((name, there._queue.jobs.find(name)) for name in names)
                found.update({name: there._ids.of(n) for name, n in numbers if n is not None})
        return found

    def wait(self, timeout_s: float) -> None:
        """Return after ``timeout_s``, or earlier on news of a job or a call of :meth:`wake`."""
        self._woken.wait(max(timeout_s, 0.0))
        self._woken.clear()

    def wake(self) -> None:
        """End a :meth:`wait` of another thread, or the next one."""
        self._woken.set()

    def close(self) -> None:
        """End the queue, and with it all of its jobs that run."""
        if os.getpid() == self._pid:
            self._keeper.close()
        _queues.pop(self.prefix, None)


def queue_here(name: str) -> WithinBackend | None:
    """Return a queue of this process by its backend's name: any one tells of the jobs of all."""
    return next((queue for queue in list(_queues.values()) if queue.name == name), None)


def _queue_of(job_id: str) -> WithinBackend | None:
    """Return the queue of this process that a job is in."""
    prefix, dash, _ = job_id.rpartition("-")
    return _queues.get(prefix + dash)


def _by_queue(job_ids: Iterable[str]) -> dict[WithinBackend, list[int]]:
    found: dict[WithinBackend, list[int]] = {}
    for job_id in job_ids:
        there = _queue_of(job_id)
        if there is not None:
            found.setdefault(there, []).append(there._ids.number(job_id))
    return found


def _check_nodes(job: Job) -> None:
    """Refuse several nodes for one process.

    Raises
    ------
    ResourceError
        Names the culprit and the remedy.
    """
    wanted = job.resources
    if (wanted.get("num_nodes") or 1) > 1 and (wanted.get("cores") or 1) == 1:
        raise ResourceError(
            f"job {job.name}: resource 'num_nodes' = {wanted['num_nodes']}: a task of one process "
            "runs on one node; ask for as many MPI ranks at least (cores), or leave it out"
        )


def _check_paths(job: Job) -> None:
    """Refuse a directory or an interpreter that is not there.

    Raises
    ------
    ResourceError
        Names the culprit and the remedy.
    """
    wanted = job.resources
    if wanted.get("cwd") and not os.path.isdir(wanted["cwd"]):
        raise ResourceError(
            f"job {job.name}: resource 'cwd' = {wanted['cwd']!r}: there is no such directory; "
            "make it first"
        )
    python = wanted.get("python")
    if python and shutil.which(python) is None and shutil.which(python.split()[0]) is None:
        raise ResourceError(
            f"job {job.name}: resource 'python' = {python!r}: there is no such program"
        )
