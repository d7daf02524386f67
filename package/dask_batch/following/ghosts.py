"""Jobs that are over, whatever the batch system says, and in the way of others.

A controller that was killed comes back with what it had last saved: a job that ended in between
is *running* again in its books, without a process, until its time limit. Or it is held, as it was
before it was let go, or because the node on which it ran refused a second copy; or it waits for
what is said to have failed. It keeps what waits for it from beginning, and one that "runs" holds
processors that others wait for. Its result, or its end record, is in the store all the while. So
once something of ours waits although nothing that we know of keeps it, the jobs that may be in its
way are asked about, and those that do not leave are ended. What waited for them then falls, and is
run again free of charge, since its inputs are there.

Who watches need not have seen the job: the claims on the inputs of what waits name it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from dask_batch.backends.base import Backend, JobState, JobStatus
from dask_batch.cache import attempts
from dask_batch.cache.claims import Run
from dask_batch.errors import BatchError, DamagedEntryError, MissingEntryError
from dask_batch.evidence.history import History
from dask_batch.evidence.standing import Standing
from dask_batch.following.entries import Entry

__all__ = ["Ghosts"]

logger = logging.getLogger(__name__)

_AFTER_S = 90.0
"""A job leaves right after it has published; what a template does after it has this long."""
_NEVER_S = 15.0
"""What is not running, or never will be, needs no patience, but for a batch system that is just
recovering: nothing is lost with it, its result is there."""
_GATHER_S = 15.0
"""How often it is looked for what may be in the way ..."""
_RARELY_S = 300.0
"""... and how often, at least, where nothing is found."""
_RECENT = 50
"""The last so many runs of a cache are looked at, beside those that are followed."""
_AT_ONCE = 500
"""At most so many jobs are asked about: those that the queue has forgotten burden the accounts."""
_QUEUED = frozenset({JobState.HELD, JobState.WAITING})
_STUCK = {
    JobState.RUNNING: _AFTER_S,
    JobState.WAITING: _NEVER_S,
    JobState.HELD: _NEVER_S,
    JobState.LOST: _NEVER_S,
    JobState.DEPENDENCY_FAILED: _NEVER_S,
}
"""States that a job which is over does not leave by itself, and for how long that is put up with.
(One that waits will run, see that its result is there, and end well. But if others wait for it by
name, they need not wait until there is room for it, nor for what it is itself waiting for.)"""
_FORGET_S = 600.0
"""For how long a job that has left is taken to have left: a controller that was killed between two
polls may bring it back, unnoticed."""
_BOUND = frozenset({"", "Dependency"})
"""For these reasons a job may be waiting for another one ..."""
_PATIENT = frozenset({"Dependency", "BeginTime", "JobHeldUser", "JobHeldAdmin"})
"""... and for all but these for room."""


@dataclass(frozen=True, slots=True)
class _Job:
    """A job that is over, or should be."""

    id: str
    name: str
    key: str
    run_id: str


@dataclass(frozen=True, slots=True)
class _Suspect:
    """A job that should have left."""

    job: _Job
    binds: bool
    """Whether it has a result, and something waits for it by name."""
    since: float
    """Since when that is known here, on the monotonic clock."""

    def stuck_s(self, state: JobState) -> float:
        """Return for how long it may be in a state."""
        goes = state is JobState.WAITING and not self.binds
        return math.inf if goes else _STUCK.get(state, math.inf)


class Ghosts:
    """Keeps an eye on jobs that are over while others wait.

    Parameters
    ----------
    history
        Where the records are.
    backend
        Whose jobs they are.

    Notes
    -----
    Jobs of all recent runs of the cache are ended, not only of those that this client follows:
    theirs have the same owner, and their results are there.
    """

    def __init__(self, history: History, backend: Backend) -> None:
        self._history = history
        self._cache = history.cache
        self._claims = history.claims
        self._backend = backend
        self._suspects: dict[_Job, _Suspect] = {}
        self._left: set[_Job] = set()
        self._empty: set[str] = set()
        self._forget_at = math.inf
        self._pause_s = _GATHER_S
        self._gathered = -math.inf

    @property
    def suspected(self) -> bool:
        """Whether there are jobs that may turn out to be in the way."""
        return bool(self._suspects)

    # ---- whom to ask about -----------------------------------------------------------------

    def ids(self) -> list[str]:
        """Return the ids of the jobs to ask about: two jobs may have been given the same one."""
        return list(dict.fromkeys(job.id for job in self._suspects))

    def forget(self) -> None:
        """Take it that jobs which had left may be back: an outage has been survived."""
        self._left.clear()
        self._empty.clear()
        self._pause_s, self._gathered = _GATHER_S, -math.inf

    def gather(self, entries: Mapping[str, Entry], known: Iterable[Standing], now: float) -> None:
        """Find the jobs that may be in the way of what waits, now and then.

        Parameters
        ----------
        entries
            What is under way, by key.
        known
            The standings of all that ever was.
        now
            The monotonic clock.
        """
        if now >= self._forget_at:
            self._left.clear()
            self._empty.clear()
            self._forget_at = math.inf
        waiting = [
            (entry, entry.status)
            for entry in entries.values()
            if entry.status is not None and entry.status.state in _QUEUED
        ]
        bound = [
            entry
            for entry, status in waiting
            if status.reason in _BOUND and entries.keys().isdisjoint(entry.parents)
        ]
        # What is bound although all that it needs is there is looked after all the time.
        pause_s = min(self._pause_s, _GATHER_S) if bound else self._pause_s
        if not waiting or now < self._gathered + pause_s or not self._backend.shared:
            return
        hungry = any(s.state is JobState.WAITING and s.reason not in _PATIENT for _, s in waiting)
        binding: list[_Job] = []
        over: list[_Job] = []
        try:
            for run, key in self._above(bound):
                binding += self._jobs(run, {key})
            for run_id in self._runs(known) if hungry else ():
                over += self._over(run_id, entries)
        except (OSError, BatchError) as error:
            logger.info("what may be in the way of jobs cannot be found out now: %s", error)
        self._suspect({**dict.fromkeys(over, False), **dict.fromkeys(binding, True)}, now)
        found = bool(self._suspects)
        self._pause_s = _GATHER_S if found else min(2 * self._pause_s, _RARELY_S)
        self._gathered = now

    def _suspect(self, jobs: Mapping[_Job, bool], now: float) -> None:
        """Suspect these jobs, those first that bind others; known ones since they were found."""
        first = sorted(jobs, key=lambda job: not jobs[job])[:_AT_ONCE]
        since = {job: suspect.since for job, suspect in self._suspects.items()}
        self._suspects = {job: _Suspect(job, jobs[job], since.get(job, now)) for job in first}

    def _runs(self, known: Iterable[Standing]) -> list[str]:
        """Return the runs some jobs of which may not have left, the last ones first."""
        runs = {standing.run_id for standing in known}
        runs.update(self._claims.run_ids()[-_RECENT:])
        return sorted(runs - self._empty, reverse=True)

    def _above(self, bound: Iterable[Entry]) -> Iterator[tuple[Run, str]]:
        """Yield the inputs of tasks that wait although all they need is there, with their runs."""
        inputs = [
            set(self._history.inputs(self._claims.run(entry.standing.run_id), entry.standing.key))
            for entry in bound
        ]
        there = self._cache.present(set().union(*inputs))
        for key in sorted(set().union(*(each for each in inputs if each <= there))):
            for claim in self._claims.generations(key):
                if claim.run.backend == self._backend.name:
                    yield claim.run, key

    def _over(self, run_id: str, entries: Mapping[str, Entry]) -> list[_Job]:
        """Return the jobs of a run that are over, as far as they are not known to have left."""
        try:
            run = self._claims.run(run_id)
        except (MissingEntryError, DamagedEntryError) as error:
            logger.debug("run %s: %s", run_id, error)
            self._empty.add(run_id)
            return []
        jobs = self._jobs(run, {key for _, key in run.jobs})
        if run.backend != self._backend.name:
            jobs = []
        if not jobs and self._claims.log(run_id).settled:
            self._empty.add(run_id)
        keys = {job.key for job in jobs} - entries.keys()
        over = self._cache.present(keys)
        over |= self._ended(run, keys - over)
        return [job for job in jobs if job.key in over]

    def _ended(self, run: Run, keys: Collection[str]) -> set[str]:
        """Return those keys whose last attempt was the run's, and has ended without a result."""
        latest = {key: self._claims.latest(key, run.id) for key in keys}
        return attempts.ended(self._cache, {key: n for key, (n, ours) in latest.items() if ours})

    def _jobs(self, run: Run, keys: Collection[str]) -> list[_Job]:
        """Return the jobs of a run for some keys that are not known to have left."""
        ids = self._claims.log(run.id).ids
        jobs = (
            _Job(ids[name], name, key, run.id)
            for name, key in run.jobs
            if key in keys and name in ids
        )
        return [job for job in jobs if job not in self._left]

    # ---- what is said of them --------------------------------------------------------------

    def haunting(self, told: Mapping[str, JobStatus], now: float) -> list[str]:
        """Return the jobs to be ended, by what is said of those that were asked about."""
        found = []
        for job, suspect in list(self._suspects.items()):
            status = told.get(job.id)
            if status is None:
                continue
            if _has_left(status, job.name):
                self._has_gone(job, now)
            elif now - suspect.since > suspect.stuck_s(status.state):
                # It may have been run again since it was found to be over.
                del self._suspects[job]
                if self._is_over(job, status.state):
                    self._has_gone(job, now)
                    found.append(job.id)
        if found:
            logger.warning(
                "%d job(s) are over and have not left the queue, where others wait: they are ended "
                "(%s)",
                len(found), ", ".join(found[:5]),
            )  # fmt: skip
        return found

    def _has_gone(self, job: _Job, now: float) -> None:
        self._left.add(job)
        self._suspects.pop(job, None)
        self._forget_at = min(self._forget_at, now + _FORGET_S)

    def _is_over(self, job: _Job, state: JobState) -> bool:
        try:
            if self._cache.present([job.key]):
                return True
            # What has no result and is queued may be an attempt that somebody is about to claim.
            run = self._claims.run(job.run_id)
            return state is not JobState.WAITING and bool(self._ended(run, [job.key]))
        except (OSError, BatchError) as error:
            logger.info("whether %s is over cannot be found out now: %s", job.name, error)
            return False


def _has_left(status: JobStatus, name: str) -> bool:
    """Whether a job keeps nobody waiting any more."""
    if status.name and status.name != name:
        return True  # its id is another job's now
    return status.state.ended and status.state not in _STUCK
