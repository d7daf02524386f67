"""Jobs that are said to run and have not begun: ended already, by what the accounting says.

A controller that was killed may call a job running whose process was killed before it could record
its start, until the time limit. The queue says so again and again, but the accounting has a row of
that very job with its end. It is asked for a second opinion only where a job has been running for
long and has left no start: that is rare, and most often a slow prologue.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping

from dask_batch.backends.base import Backend, JobState, JobStatus
from dask_batch.cache import attempts
from dask_batch.cache.store import Cache
from dask_batch.errors import BackendError
from dask_batch.following.entries import Entry
from dask_batch.verdicts.follow import Evidence, Outcome, Verdict, judge

__all__ = ["Unbegun"]

logger = logging.getLogger(__name__)

_AFTER_S = 90.0
"""Whatever the accounting has not heard of by then it hears late: another attempt's start, too."""
_FIRST_PAUSE_S = 30.0
_LONGEST_PAUSE_S = 600.0
_AT_ONCE = 200
_DIED = frozenset(
    {JobState.FAILED, JobState.OUT_OF_MEMORY, JobState.TIMEOUT, JobState.NODE_FAILURE}
)
"""Ends that say what became of the attempt. Any other came from a mistake about the job."""


class Unbegun:
    """Asks about jobs that are said to run and have not begun.

    Parameters
    ----------
    cache
        Where jobs record their starts.
    backend
        Whose jobs they are. Only one that has accounts is asked.
    """

    def __init__(self, cache: Cache, backend: Backend) -> None:
        self._cache = cache
        self._accounts = getattr(backend, "accounts", None)
        self._next = 0.0
        self._pause_s = _FIRST_PAUSE_S

    def found(self, entries: Mapping[str, Entry], now: float) -> list[tuple[Entry, Verdict]]:
        """Return those that have ended, with the verdict on each."""
        if self._accounts is None or now < self._next:
            return []
        suspects = {entry.standing.job_id or "": entry for entry in self._suspects(entries, now)}
        if not suspects:
            self._pause_s = _FIRST_PAUSE_S
            return []
        self._next = now + self._pause_s
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
        try:
            told: Mapping[str, JobStatus] = self._accounts(sorted(suspects)[:_AT_ONCE])
        except BackendError as error:
            logger.debug("the accounting says nothing now: %s", error)
            return []
        ends = ((suspects[job_id], status) for job_id, status in told.items())
        return [
            (entry, _verdict(status))
            for entry, status in ends
            if status.state.ended and status.name in ("", entry.standing.job_name)
        ]

    def _suspects(self, entries: Mapping[str, Entry], now: float) -> Iterator[Entry]:
        for entry in entries.values():
            quiet = entry.running and entry.course.sure and now - entry.state_since > _AFTER_S
            if not quiet or entry.standing.job_id is None:
                continue
            try:
                start = attempts.read_start(
                    self._cache, entry.standing.key, entry.standing.generation
                )
            except OSError as error:
                logger.debug("the start of %s cannot be read now: %s", entry.function, error)
                continue
            if start is None:
                yield entry


def _verdict(status: JobStatus) -> Verdict:
    verdict = judge(Evidence(status=status)) if status.state in _DIED else None
    if verdict is not None:
        return verdict
    return Verdict(
        Outcome.LOST,
        "the batch system calls the job running, and its accounting says that it is over",
        f"{status.source} says {status.word}",
    )
