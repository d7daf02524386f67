"""Jobs that are said to run, and whose process is gone: seen on the machine on which they ran.

A controller that was killed may call a job running that has died without a word, until its time
limit. Only its own machine knows better: where clients and jobs share one, or from a steward.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping

from dask_batch.backends.base import Backend
from dask_batch.cache import attempts
from dask_batch.cache.owner import Owner
from dask_batch.cache.store import Cache
from dask_batch.following.entries import Entry
from dask_batch.job.checks import starter_is_dead

__all__ = ["Vanished"]

logger = logging.getLogger(__name__)

_LOOK_S = 30.0
_AFTER_S = 90.0
"""What a process left in the store is seen, and what comes after it in its job is over, by then."""


class Vanished:
    """Looks for the processes of jobs that run.

    Parameters
    ----------
    cache
        Where jobs have recorded their starts.
    backend
        Whose jobs they are.
    """

    def __init__(self, cache: Cache, backend: Backend) -> None:
        self._cache = cache
        self._backend = backend
        self._boot = Owner.current().boot_id
        self._elsewhere: set[tuple[str, int]] = set()
        self._since: dict[tuple[str, int], float] = {}
        self._next = 0.0

    def found(self, entries: Mapping[str, Entry], now: float) -> list[Entry]:
        """Return what is said to run and has had no process for too long."""
        if now < self._next or not self._backend.shared:
            return []
        self._next = now + _LOOK_S
        gone = set(self._gone(entries))
        self._since = {attempt: self._since.get(attempt, now) for attempt in gone}
        return [entries[key] for (key, _), at in self._since.items() if now - at > _AFTER_S]

    def _gone(self, entries: Mapping[str, Entry]) -> Iterator[tuple[str, int]]:
        for key, entry in entries.items():
            attempt = (key, entry.standing.generation)
            if not entry.running or not entry.course.sure or attempt in self._elsewhere:
                continue
            try:
                start = attempts.read_start(self._cache, *attempt)
            except OSError as error:
                logger.debug("the start of %s cannot be read now: %s", entry.function, error)
                continue
            if start is None:
                continue
            # Not the host's name: there are clusters whose nodes are all called alike.
            if start.get("boot_id") != self._boot:
                self._elsewhere.add(attempt)
            elif starter_is_dead(start):
                yield attempt
