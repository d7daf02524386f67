"""Jobs that are held although they were let go.

A controller that was killed comes back with what it had last saved, in which a job that was
released a moment before may be held. It would be held for ever, and all that depends on it would
wait. So it is let go once more: once for each attempt, since a user may hold a job of his own.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from dask_batch.backends.base import Backend, JobState
from dask_batch.cache.claims import Claims
from dask_batch.entries import Entry
from dask_batch.errors import BackendError

__all__ = ["LettingGo"]

logger = logging.getLogger(__name__)

_AFTER_S = 20.0
"""Whoever hands over, or repeats, holds a job for moments only."""


class LettingGo:
    """Keeps an eye on jobs that should not be held.

    Parameters
    ----------
    claims, backend
        Where it is on record what was let go, and who holds it.
    """

    def __init__(self, claims: Claims, backend: Backend) -> None:
        self._claims = claims
        self._backend = backend
        self._held_since: dict[tuple[str, int], float] = {}
        self._done: set[tuple[str, int]] = set()

    def tend(self, entries: Iterable[Entry], now: float) -> None:
        """Let jobs go that have been held for too long by what the batch system says."""
        held = {self._attempt(entry): entry for entry in entries if self._is_held(entry)}
        self._held_since = {each: self._held_since.get(each, now) for each in held}
        due = {
            attempt: entry
            for attempt, entry in held.items()
            if now - self._held_since[attempt] > _AFTER_S and attempt not in self._done
        }
        chosen = {attempt: entry for attempt, entry in due.items() if self._was_let_go(entry)}
        if not chosen:
            return
        ids = [entry.standing.job_id or "" for entry in chosen.values()]
        logger.info(
            "%d job(s) are held although they were let go, as if the controller of %s had "
            "forgotten that: they are let go once more (%s)",
            len(ids), self._backend.name, ", ".join(ids[:5]),
        )  # fmt: skip
        try:
            self._backend.release(ids)
        except BackendError as error:
            logger.warning("they cannot be let go now: %s", error)
            self._held_since.update(dict.fromkeys(chosen, now))
        else:
            self._done |= chosen.keys()

    def _attempt(self, entry: Entry) -> tuple[str, int]:
        return entry.standing.key, entry.standing.generation

    def _is_held(self, entry: Entry) -> bool:
        standing = entry.standing
        here = standing.backend == self._backend.name and standing.job_id is not None
        # One that is to be repeated is held while somebody is at it.
        sure = entry.course.sure
        return here and sure and entry.status is not None and entry.status.state is JobState.HELD

    def _was_let_go(self, entry: Entry) -> bool:
        return self._claims.log(entry.standing.run_id).released
