"""The future of a task that somebody has handed in before, found by its name."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

from dask_batch.cache.claims import Claim
from dask_batch.cache.store import Cache
from dask_batch.compat.lookup import NotInCacheError, failure, index_of, key_of, opened
from dask_batch.config import resolve
from dask_batch.future import BatchFuture
from dask_batch.history import History
from dask_batch.overview import Overview
from dask_batch.request import Request
from dask_batch.reread import reread_jobs
from dask_batch.session import open_session
from dask_batch.standing import log_stem

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
        Of what is finished, its value; what is under way is followed to its end. It may be among
        the arguments of further calls.

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
            return _finished(cache, key, claim)
        if claim is None:
            raise NotInCacheError(f"{cache.path} knows of no task {cache_key!r}")
        stage = look.stages(claim.run).get(key)
    finally:
        look.close()
    if stage == "finished":
        return _finished(cache, key, claim)
    if stage == "failed":
        raise failure(History(cache, look.claims), claim)
    return _followed(cache, claim)


class _Shelf:
    """Where a finished task is at home: nobody follows it any more."""

    def __init__(self, cache: Cache, claim: Claim | None) -> None:
        self.cache = cache
        self._claim = claim

    def forget(self, future: BatchFuture) -> None:
        """Do nothing: it has ended."""

    def job_id(self, key: str) -> str | None:
        job_id: str | None = self.cache.attributes(key).get("job_id")
        return job_id

    def log_stem(self, key: str) -> Path | None:
        if self._claim is None:
            return None
        return log_stem(self.cache, self._claim.run.id, index_of(self._claim))


def _finished(cache: Cache, key: str, claim: Claim | None) -> BatchFuture:
    future = BatchFuture(_Shelf(cache, claim), key)
    future._resolve_from(functools.partial(cache.load, key, mode="copy"))
    return future


def _followed(cache: Cache, claim: Claim) -> BatchFuture:
    """Follow a task as its own client would: it is under way, or was left half handed over."""
    session = open_session(resolve(backend=claim.run.backend, cache_directory=cache.path))
    future = BatchFuture(session.engine, claim.key)
    jobs = [replace(job, wanted=job.key == claim.key) for job in reread_jobs(cache, claim.run)]
    session.engine.request(Request(jobs, (future,)))
    session.engine.close()
    return future
