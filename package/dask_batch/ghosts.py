"""Jobs that are over, whatever the batch system says, and in the way of those that wait for them.

A controller that was killed comes back with what it had last saved: a job that ended in between
is *running* again in its books, until its time limit, and its dependents wait for it. Its result is
in the store all the while. So such a job is ended once that has gone on for too long; what waited
for it then falls, and is run again free of charge, since its inputs are there.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from dask_batch.backends.base import JobState, JobStatus
from dask_batch.entries import Entry

__all__ = ["Ghosts"]

logger = logging.getLogger(__name__)

_AFTER_S = 90.0
"""A job leaves right after it has published; what a template does after it has this long."""
_IN_THE_WAY = frozenset({JobState.RUNNING})


@dataclass(frozen=True, slots=True)
class _Ghost:
    since: float
    children: frozenset[str]


class Ghosts:
    """Keeps an eye on jobs that have published while others wait for them."""

    def __init__(self) -> None:
        self._seen: dict[str, _Ghost] = {}

    def note(self, entry: Entry, now: float) -> None:
        """Note that a task's result is there."""
        job_id = entry.standing.job_id
        if job_id is not None and entry.children and not entry.over:
            self._seen[job_id] = _Ghost(now, frozenset(entry.children))

    def ids(self, entries: Mapping[str, Entry]) -> list[str]:
        """Return the jobs to ask about: those that something here still waits for."""
        for job_id, ghost in list(self._seen.items()):
            if not any(self._waits(entries.get(key)) for key in ghost.children):
                del self._seen[job_id]
        return list(self._seen)

    def _waits(self, child: Entry | None) -> bool:
        if child is None:
            return False
        return child.status is None or child.status.state in (JobState.HELD, JobState.WAITING)

    def haunting(
        self, asked: Collection[str], told: Mapping[str, JobStatus], now: float
    ) -> list[str]:
        """Return the jobs to be ended, of those that were asked about."""
        found = []
        for job_id in asked:
            status = told.get(job_id)
            if status is None:
                continue
            if status.state.ended:
                self._seen.pop(job_id, None)
            elif status.state in _IN_THE_WAY and now - self._seen[job_id].since > _AFTER_S:
                del self._seen[job_id]
                found.append(job_id)
        if found:
            logger.warning(
                "%d job(s) are said to run %g s after they have published, and others wait for "
                "them: they are ended (%s)",
                len(found), _AFTER_S, ", ".join(found[:5]),
            )  # fmt: skip
        return found
