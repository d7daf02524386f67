"""Futures that the store alone resolves: nobody else is asked, and nothing is handed over."""

from __future__ import annotations

import functools
import threading
import time
from pathlib import Path
from typing import Final

from dask_batch.cache import attempts
from dask_batch.cache.claims import Claim
from dask_batch.cache.store import Cache
from dask_batch.compat.lookup import NotInCacheError, failure, index_of
from dask_batch.evidence.history import History
from dask_batch.evidence.standing import log_stem
from dask_batch.future import BatchFuture
from dask_batch.upkeep.overview import Overview

__all__ = ["awaited", "finished"]

_SHORTEST_S: Final = 0.02
_LONGEST_S: Final = 1.0
_LIFE_S: Final = 5.0
"""How often it is asked whether who makes the result still lives, in seconds."""


class _Shelf:
    """Where a task is at home that no engine of this process follows."""

    def __init__(self, cache: Cache, claim: Claim | None) -> None:
        self.cache = cache
        self._claim = claim

    def forget(self, future: BatchFuture) -> None:
        """Do nothing: it has ended, or is somebody else's."""

    def job_id(self, key: str) -> str | None:
        if self._claim is not None and not self.cache.check(key):
            ids = Overview(self.cache).claims.log(self._claim.run.id).ids
            return ids.get(self._claim.job_name)
        job_id: str | None = self.cache.attributes(key).get("job_id")
        return job_id

    def log_stem(self, key: str) -> Path | None:
        if self._claim is None:
            return None
        return log_stem(self.cache, self._claim.run.id, index_of(self._claim))


def finished(cache: Cache, key: str, claim: Claim | None) -> BatchFuture:
    """Return the future of a result that is there."""
    future = BatchFuture(_Shelf(cache, claim), key)
    future._resolve_from(_load(cache, key))
    return future


def awaited(cache: Cache, claim: Claim) -> BatchFuture:
    """Return the future of a result that somebody makes who cannot be followed from here.

    To cancel it ends the waiting, and nothing else.
    """
    future = BatchFuture(_Shelf(cache, claim), claim.key)
    future._recorded()
    threading.Thread(
        target=_wait, args=(cache, future), name="dask-batch-waiting", daemon=True
    ).start()
    return future


def _load(cache: Cache, key: str) -> functools.partial[object]:
    return functools.partial(cache.load, key, mode="copy")


def _wait(cache: Cache, future: BatchFuture) -> None:
    """Resolve a future; whatever goes wrong here reaches it."""
    look = Overview(cache)
    try:
        pause_s, asked = _SHORTEST_S, time.monotonic()
        while not future.done():
            now = time.monotonic()
            life = now - asked > _LIFE_S
            asked = now if life else asked
            if _settled(cache, look, future, life=life):
                return
            time.sleep(pause_s)
            pause_s = min(pause_s * 1.5, _LONGEST_S)
    except Exception as error:
        future._fail(error)
    finally:
        look.close()


def _settled(cache: Cache, look: Overview, future: BatchFuture, *, life: bool) -> bool:
    """Look once; return whether the future has come to its end."""
    key = future.key
    if cache.check(key):
        future._resolve_from(_load(cache, key))
        return True
    claim = look.claims.current(key)
    if claim is None:
        raise NotInCacheError(f"{cache.path} knows of no task {key} any more: compute it again")
    if not life and not attempts.ended(cache, {key: claim.generation}):
        return False
    if look.stage(claim) != "failed" or cache.check(key):
        return False
    future._fail(failure(History(cache, look.claims), claim))
    return True
