"""Jobs that are held although they were let go.

A controller that was killed comes back with what it had last saved, in which a job that was
released a moment before may be held. It would be held for ever, and all that depends on it would
wait. So it is let go once more: once for each time that it comes back held, and a few times in all,
since a user may hold a job of his own. One that is held because it is being repeated is left to
whoever repeats it: it has not been given yet what its next attempt is to have.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable

from dask_batch.backends.base import Backend
from dask_batch.cache.claims import Claim, Claims
from dask_batch.errors import BackendError
from dask_batch.following.entries import Entry
from dask_batch.following.tending import Tending

__all__ = ["LettingGo"]

logger = logging.getLogger(__name__)

_AFTER_S = 20.0
"""Whoever hands over, or repeats, holds a job for moments only."""
_TIMES = 3
"""So often is an attempt let go once more, at most."""


class LettingGo:
    """Keeps an eye on jobs that should not be held.

    Parameters
    ----------
    claims, backend
        Where it is on record what was let go, and who holds it.
    tending
        Knows which repetitions have been finished.
    """

    def __init__(self, claims: Claims, backend: Backend, tending: Tending) -> None:
        self._claims = claims
        self._backend = backend
        self._tending = tending
        self._held_since: dict[tuple[str, int], float] = {}
        self._done: set[tuple[str, int]] = set()
        self._times: Counter[tuple[str, int]] = Counter()

    def forget(self) -> None:
        """Take it that what was let go may be held once more: an outage has been survived."""
        self._done.clear()

    def tend(self, entries: Iterable[Entry], now: float) -> None:
        """Let jobs go that have been held for too long by what the batch system says."""
        held = {self._attempt(entry): entry for entry in entries if self._is_held(entry)}
        self._done &= held.keys()
        self._held_since = {each: self._held_since.get(each, now) for each in held}
        due = {
            attempt: entry
            for attempt, entry in held.items()
            if now - self._held_since[attempt] > _AFTER_S
            and attempt not in self._done
            and self._times[attempt] < _TIMES
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
            self._times.update(chosen.keys())

    def _attempt(self, entry: Entry) -> tuple[str, int]:
        return entry.standing.key, entry.standing.generation

    def _is_held(self, entry: Entry) -> bool:
        standing = entry.standing
        here = standing.backend == self._backend.name and standing.job_id is not None
        # One that is to be repeated is held while somebody is at it.
        return here and entry.course.sure and entry.held

    def _was_let_go(self, entry: Entry) -> bool:
        standing = entry.standing
        if not self._claims.log(standing.run_id).released:
            return False
        run = self._claims.run(standing.run_id)
        claim = Claim(standing.key, standing.generation, run, standing.job_name)
        first = self._tending.history.is_first(claim)
        return first or self._tending.reran(claim) is not None
