"""A queue that was killed goes on: what happened to it is done once more, from the journal."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from dask_batch.backends.base import JobState
from dask_batch.backends.local.chronicle import FormerJobs
from dask_batch.backends.local.entries import Entries
from dask_batch.backends.local.protocol import ProtocolError
from dask_batch.backends.local.queue import WorkQueue
from dask_batch.backends.local.records import Cap, Entry, Outcome, RefusedError
from dask_batch.backends.local.submission import Staged

__all__ = ["restore"]

_LOG = logging.getLogger(__name__)


def restore(former: FormerJobs, queue: WorkQueue, entries: Entries) -> None:
    """Bring an empty queue to where the one that was killed stood.

    Jobs that were started are running then. What became of them is for the caller to find out.
    """
    replay = _Replay(queue, entries)
    for event in former.events:
        try:
            replay.event(event)
        except (RefusedError, ProtocolError, LookupError, TypeError, ValueError) as error:
            _LOG.warning("not taken over from the journal: %.200r: %s", event, error)
    former.events.clear()
    # What has ended is on record; only what fell with it just before the kill may not be.
    queue.ended = [job for job in queue.ended if _id(job.number, former) in former.unfinished]
    queue.changed.clear()


def _id(number: int, former: FormerJobs) -> str:
    return f"{former.latest}-{number}"


class _Replay:
    """One event after the other."""

    def __init__(self, queue: WorkQueue, entries: Entries) -> None:
        self._queue, self._entries = queue, entries
        self._environments: dict[str, dict[str, str]] = {}
        self._events: dict[str, Callable[..., None]] = {
            "environment": self._environment,
            "taken": self._taken,
            "release": self._release,
            "again": self._again,
            "repoint": self._repoint,
            "start": self._start,
            "end": self._end,
        }

    def event(self, event: list[Any]) -> None:
        kind, *rest = event
        self._events[kind](*rest)

    def _environment(self, digest: str, variables: dict[str, str]) -> None:
        self._environments[digest] = variables

    def _members(self, group: str | None, parts: list[dict[str, Any]]) -> list[Entry]:
        """Return the jobs of a hand-over."""
        staged = Staged()
        for part in parts:
            environments = [self._environments[digest] for digest in part["environments"]]
            staged.add({**part, "environments": environments})
        return [self._entries.entry(member, group) for member in staged.members]

    def _taken(
        self, _: str, first: int, group: str | None, cap: Cap, parts: list[dict[str, Any]]
    ) -> None:
        # What was refused, or is left out of a shortened journal, has had numbers too.
        self._queue.jobs.next_number = max(first, self._queue.jobs.next_number)
        count = sum(len(part["jobs"]) for part in parts)
        try:
            self._queue.hand_over(self._members(group, parts), cap=cap)
        finally:
            self._queue.jobs.next_number = first + count

    def _release(self, _: str, numbers: list[int]) -> None:
        self._queue.release(numbers)

    def _number(self, job_id: str) -> int:
        (number,) = self._entries.numbers([job_id])
        return number

    def _again(self, job_id: str, group: str | None, cap: Cap, parts: list[dict[str, Any]]) -> None:
        (entry,) = self._members(group, parts)
        self._queue.rerun(self._number(job_id), entry, cap=cap)

    def _repoint(self, job_id: str, parents: list[int]) -> None:
        self._queue.repoint(self._number(job_id), parents)

    def _start(self, job_id: str, _: str, __: int, ___: str, devices: Sequence[str] = ()) -> None:
        job = self._queue.jobs.get(self._number(job_id))
        if job is not None and job.state in (JobState.WAITING, JobState.HELD):
            self._queue.begin(job.number, devices)

    def _end(self, job_id: str, _: str, state: str, *details: Any) -> None:
        job = self._queue.jobs.get(self._number(job_id))
        if job is None:
            return
        outcome = Outcome(JobState(state), *details)
        if job.state is JobState.RUNNING:
            self._queue.end(job.number, outcome)
        else:
            self._queue.end_unstarted(job.number, outcome)
