"""What a cache knows of tasks that have no result: those under way, and those that have failed."""

from __future__ import annotations

from collections.abc import Iterator

from dask_batch.cache import attempts
from dask_batch.cache.claims import Claim, Run
from dask_batch.evidence.history import History
from dask_batch.evidence.whereabouts import Sight, sight_of
from dask_batch.upkeep.cached import CacheEntry, Calls
from dask_batch.upkeep.overview import Overview

__all__ = ["open_entries", "unfinished_entry"]


def open_entries(look: Overview, calls: Calls, results: frozenset[str]) -> Iterator[CacheEntry]:
    """Yield what is known of the tasks whose end nobody has recorded, by run, in their order.

    The store alone is asked, and of runs only what has no result is looked at.

    Parameters
    ----------
    look, calls
        Of the cache.
    results
        The keys that have results.
    """
    history = History(look.cache, look.claims)
    for run in look.runs():
        keys = [key for _, key in run.jobs if key not in results]
        if not keys or sight_of(run) is Sight.GONE:
            continue  # it is complete, or its jobs have ended with their client
        ids = look.claims.log(run.id).ids
        for claim in _open_claims(look, run, keys):
            yield unfinished_entry(history, calls, claim, ids.get(claim.job_name))


def _open_claims(look: Overview, run: Run, keys: list[str]) -> Iterator[Claim]:
    """Yield a run's claims on attempts that have not ended, or are to be repeated."""
    latest = {key: look.claims.latest(key, run.id) for key in keys}
    mine = {key: generation for key, (generation, ours) in latest.items() if ours}
    ended = attempts.ended(look.cache, mine)
    for key in mine:
        claim = look.claims.current(key)
        if claim is None or claim.run.id != run.id:
            continue  # cleaned away, or taken over, in the meantime
        if key not in ended or look.goes_on(claim):
            yield claim


def unfinished_entry(
    history: History, calls: Calls, claim: Claim, job_id: str | None
) -> CacheEntry:
    """Return what is known of a task without a result."""
    attributes = history.header(claim.run, claim.key).get("attributes") or {}
    known = {
        "key": claim.key,
        "function": attributes.get("function", ""),
        "name": attributes.get("name", ""),
        "filename": str(history.cache.path_of(claim.key)),
        "queue_id": job_id,
        "resource_dict": dict(attributes.get("resources") or {}),
    }
    return CacheEntry(known, {} if known["name"] else calls.unread(claim.run.id, claim.key))
