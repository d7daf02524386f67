"""Looking at a cache from outside: what runs, what is there, and an end to it."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dask_batch.cache.store import Cache
from dask_batch.configuration.config import resolve
from dask_batch.errors import CacheError, ConfigurationError, MissingEntryError
from dask_batch.upkeep.cached import CacheEntry, Calls, result_entry
from dask_batch.upkeep.overview import Overview, RunStatus
from dask_batch.upkeep.unfinished import open_entries

__all__ = [
    "CacheEntry",
    "RunStatus",
    "cancel",
    "explain",
    "get_cache_data",
    "result_entries",
    "status",
]

logger = logging.getLogger(__name__)


def get_cache_data(cache_directory: str | Path) -> list[CacheEntry]:
    """Return what a cache knows of every result in it, and of what is queued or running.

    Parameters
    ----------
    cache_directory
        The cache.

    Returns
    -------
    list of CacheEntry
        Results in the order of their keys, without those that cannot be read (a warning in the log
        names them); then, by run, the tasks whose end nobody has recorded:
        these have no ``output``, ``runtime`` and ``host``. Values are not read before they are
        asked for. Only the cache is looked at: a job that was killed while no client followed it
        counts as under way until its run is computed again or cleaned away. What the batch system
        says, and what has failed, is in :func:`dask_batch.get_cache_data_queue`.

    Examples
    --------
    >>> for entry in get_cache_data("cache"):  # doctest: +SKIP
    ...     print(entry["function"], entry["queue_id"], entry.get("runtime"))
    """
    entries = result_entries(cache_directory)
    if not os.path.lexists(cache_directory):
        return entries
    look = Overview(Cache(cache_directory, create=False))
    results = frozenset(entry["key"] for entry in entries)
    return entries + list(open_entries(look, Calls(look.cache), results))


def result_entries(cache_directory: str | Path) -> list[CacheEntry]:
    """Return what a cache knows of every result in it, in the order of their keys."""
    if not os.path.lexists(cache_directory):
        logger.warning(
            "there is no cache directory %s, so there are no results in it", cache_directory
        )
        return []
    cache = Cache(cache_directory, create=False)
    calls = Calls(cache)
    entries = []
    for key in sorted(cache.keys()):
        try:
            entry = result_entry(cache, key, calls)
        except MissingEntryError:
            continue  # set aside by another process since the listing
        except CacheError as error:  # damaged, or not ours: there are others
            logger.warning("%s is left out: %s", key[:12], error)
            continue
        if entry is not None:
            entries.append(entry)
    return entries


def status(cache_directory: str | Path | None = None) -> list[RunStatus]:
    """Tell how far the runs of a cache have come.

    Parameters
    ----------
    cache_directory
        The cache; default as in the configuration.

    Returns
    -------
    list of RunStatus
        The oldest first; runs that were taken back are left out.
    """
    options = resolve(cache_directory=cache_directory)
    cache = Cache(options.cache_directory, create=False)
    look = Overview(cache)
    try:
        return [look.status(run) for run in look.runs()]
    finally:
        look.close()


def cancel(
    cache_directory: str | Path | None = None, *, run: str | None = None, key: str | None = None
) -> int:
    """End jobs, and free their tasks to be computed again.

    Parameters
    ----------
    cache_directory
        The cache; default as in the configuration.
    run
        Only the jobs of this run.
    key
        Only the job of this key.

    Returns
    -------
    int
        How many tasks were under way, and are not any more. Jobs that wait for one of them end
        with it.
    """
    options = resolve(cache_directory=cache_directory)
    cache = Cache(options.cache_directory, create=False)
    look = Overview(cache)
    try:
        runs = [each for each in look.runs() if run in (None, each.id)]
        if run is not None and not runs:
            raise ConfigurationError(f"there is no run {run!r} in {cache.path}")
        # All are counted before any is ended: what waits for it ends by itself.
        chosen = [(each, look.under_way(each, key)) for each in runs]
        for each, jobs in chosen:
            look.end(each, jobs)
        return sum(len(jobs) for _, jobs in chosen)
    finally:
        look.close()


def explain(cache_directory: str | Path, key: str) -> dict[str, str]:
    """Say which parts of a key differ from the last result of the same function.

    Parameters
    ----------
    cache_directory
        The cache.
    key
        The key of a result, as in ``future.key`` or ``entry["key"]``.

    Returns
    -------
    dict
        For each part of the key that is new or other, what it was: ``"changed"``, ``"new"`` or
        ``"gone"``. Empty if no other result of that function is there.
    """
    cache = Cache(cache_directory, create=False)
    attributes = cache.attributes(key)
    before: Mapping[str, Any] | None = None
    for other in list(cache.keys()):
        if other == key:
            continue
        try:
            found = cache.attributes(other)
        except CacheError as error:  # it is another's, and there are others
            logger.info("%s is passed over: %s", other[:12], error)
            continue
        same = found.get("function") == attributes.get("function")
        earlier = found.get("started", 0) < attributes.get("started", 0)
        if same and earlier and (before is None or found["started"] > before["started"]):
            before = found
    if before is None:
        return {}
    old, new = before.get("parts") or {}, attributes.get("parts") or {}
    differences = {part: "changed" for part in new if part in old and old[part] != new[part]}
    differences.update({part: "new" for part in new if part not in old})
    differences.update({part: "gone" for part in old if part not in new})
    return differences
