"""The future of a task that somebody has handed in before, found by its name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from dask_batch.backends.reach import ends_with_client
from dask_batch.cache.claims import Claim
from dask_batch.cache.store import Cache
from dask_batch.compat.lookup import NotInCacheError, failure, key_of, opened
from dask_batch.compat.waiting import awaited, finished
from dask_batch.configuration.config import resolve
from dask_batch.engine.request import Request
from dask_batch.evidence.history import History
from dask_batch.future import BatchFuture
from dask_batch.session import open_session
from dask_batch.submitting.reread import reread_jobs
from dask_batch.upkeep.overview import Overview

__all__ = ["get_future_from_cache"]


def get_future_from_cache(cache_directory: str | Path, cache_key: str) -> BatchFuture:
    """Return the future of a task by the name that it was given, or by its key.

    Parameters
    ----------
    cache_directory
        The cache.
    cache_key
        What was said in ``resource_dict={"cache_key": ...}``; or a key of 64 digits, as in
        ``future.key`` and ``entry["key"]``.

    Returns
    -------
    BatchFuture
        Of what is finished, its value; what is under way is followed to its end. Where it lives in
        another process (on workers, in an allocation), or nobody can be asked, the cache is waited
        for. It may be among the arguments of further calls.

    Raises
    ------
    FileNotFoundError
        The cache has nothing of that name.
    Exception
        The task has failed: what it raised, or a :class:`~dask_batch.errors.TaskError`.
    """
    cache = opened(cache_directory)
    key = key_of(cache, cache_key)
    look = Overview(cache)
    try:
        claim = look.claims.current(key)
        if cache.present((key,)):
            return finished(cache, key, claim)
        if claim is None:
            raise NotInCacheError(f"{cache.path} knows of no task {cache_key!r}")
        stage = look.stage(claim)
        can_follow = look.can_ask(claim.run) and not ends_with_client(claim.run.backend)
    finally:
        look.close()
    if stage == "finished":
        return finished(cache, key, claim)
    if stage == "failed":
        raise failure(History(cache, look.claims), claim)
    return _followed(cache, claim) if can_follow else awaited(cache, claim)


def _followed(cache: Cache, claim: Claim) -> BatchFuture:
    """Follow a task as its own client would: it is under way, or was left half handed over."""
    session = open_session(resolve(backend=claim.run.backend, cache_directory=cache.path))
    future = BatchFuture(session.engine, claim.key)
    jobs = [replace(job, wanted=job.key == claim.key) for job in reread_jobs(cache, claim.run)]
    session.engine.request(Request(jobs, (future,)))
    session.engine.close()
    return future
