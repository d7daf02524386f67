"""Finding a task in a cache by what users call it, and what is on record about it."""

from __future__ import annotations

import os
import re
from pathlib import Path

from dask_batch.cache import attempts
from dask_batch.cache.claims import Claim
from dask_batch.cache.store import Cache
from dask_batch.configuration.resource_values import entry_name
from dask_batch.errors import MissingEntryError, TaskError
from dask_batch.evidence.history import History
from dask_batch.evidence.standing import log_stem
from dask_batch.verdicts.failures import failure_of
from dask_batch.verdicts.follow import Evidence, judge

__all__ = ["NotInCacheError", "failure", "index_of", "key_of", "opened"]

_KEY = re.compile(r"[0-9a-f]{64}")


class NotInCacheError(MissingEntryError, FileNotFoundError):
    """The cache has nothing of that name."""


def opened(cache_directory: str | Path) -> Cache:
    """Open a cache that must be there."""
    if not os.path.lexists(cache_directory):
        raise NotInCacheError(f"there is no cache directory {cache_directory}")
    return Cache(cache_directory, create=False)


def key_of(cache: Cache, cache_key: str) -> str:
    """Return the key that a user means: a name given as ``cache_key``, or the key itself.

    Raises
    ------
    NotInCacheError
        No entry was ever given that name.
    ValueError
        It cannot be a name.
    """
    if not isinstance(cache_key, str):
        raise TypeError(f"cache_key must be a text, not {cache_key!r}")
    if _KEY.fullmatch(cache_key):
        return cache_key
    try:
        key = cache.resolve_name(entry_name(cache_key))
    except ValueError as error:
        raise ValueError(f"cache_key={cache_key!r} {error}") from None
    if key is None:
        raise NotInCacheError(
            f"{cache.path} has no entry that was given the name cache_key={cache_key!r}"
        )
    return key


def index_of(claim: Claim) -> int:
    """Return which of its run's jobs a claim's is: a job's name ends with that."""
    return int(claim.job_name.rpartition("-")[2])


def failure(history: History, claim: Claim) -> BaseException:
    """Return the error of a task that has failed, as its own client was told it."""
    cache, key = history.cache, claim.key
    log = log_stem(cache, claim.run.id, index_of(claim)).with_suffix(".err")
    function = history.function(claim.run, key)
    end = attempts.read_end(cache, key, claim.generation)
    verdict = judge(Evidence(end=end)) if end is not None else None
    if verdict is None:
        return TaskError(
            f"{function or 'a task'}: its job has ended without a result, and nobody has recorded "
            "why",
            key=key, function=function, log=log,
            evidence="the batch system's word for the job",
            advice="Compute again: what has failed runs again, and what follows it finds out.",
        )  # fmt: skip
    return failure_of(
        verdict, key=key, function=function, job_id=(end or {}).get("job_id"),
        state=str((end or {}).get("state", "")), log=log, end=end,
        cut=attempts.read_cut(cache, key, claim.generation),
    )  # fmt: skip
