"""Words of a batch system that are about an attempt before the one that is followed.

A job that failed was run again in its place, and the controller was killed before it had saved
that: it comes back with the job at work, or ended, as it was in its attempt before. The job's
*restarts* tell: an attempt that began after so many of them is not followed, in the same job, by
one that has as many.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from dask_batch.cache import attempts
from dask_batch.cache.store import Cache
from dask_batch.following.entries import Entry

__all__ = ["Outdated"]

logger = logging.getLogger(__name__)


class Outdated:
    """Tells words about this attempt from words about the one before.

    Parameters
    ----------
    cache
        Where jobs have recorded their starts.

    Notes
    -----
    Nothing can be told of an attempt that ended before it had recorded its start and whose end this
    client has not heard of, nor where the batch system does not count restarts.
    """

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._begun: set[tuple[str, int]] = set()

    def found(self, entries: Iterable[Entry]) -> list[Entry]:
        """Return those entries of which the batch system's last word is about an earlier attempt.

        One whose own start is on record is at work, whatever is said of its job.
        """
        found = []
        for entry in entries:
            status = entry.status
            if not entry.course.sure or entry.standing.generation == 0 or status is None:
                continue
            if status.restarts is None or not (entry.running or entry.over):
                continue
            try:
                if self._is_outdated(entry, status.restarts):
                    found.append(entry)
            except OSError as error:
                logger.debug("the starts of %s cannot be read now: %s", entry.function, error)
        return found

    def _is_outdated(self, entry: Entry, restarts: int) -> bool:
        key, generation = entry.standing.key, entry.standing.generation
        if (key, generation) in self._begun:
            return False
        if attempts.read_start(self._cache, key, generation) is not None:
            self._begun.add((key, generation))
            return False
        job_id, spent = entry.spent or self._begun_with(key, generation - 1)
        return job_id == entry.standing.job_id and restarts <= spent

    def _begun_with(self, key: str, generation: int) -> tuple[str | None, int]:
        """Return which job began an attempt, and after how many restarts."""
        start = attempts.read_start(self._cache, key, generation) or {}
        return start.get("job_id"), int(start.get("restart") or 0)
