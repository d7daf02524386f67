"""A cache as a table: every task that it knows of, and how far it is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from dask_batch.cache.claims import Claim
from dask_batch.cache.store import Cache
from dask_batch.compat.families import asked_family, belongs
from dask_batch.compat.lookup import failure
from dask_batch.errors import ConfigurationError
from dask_batch.evidence.history import History
from dask_batch.upkeep.cached import CacheEntry, Calls
from dask_batch.upkeep.overview import Overview
from dask_batch.upkeep.runs import result_entries
from dask_batch.upkeep.unfinished import unfinished_entry

__all__ = ["check_config_directory", "get_cache_data_queue"]

_STATUS: Final = {"failed": "aborted", "waiting": "pending"}
"""What executorlib's users know the stages as; the others have the same names."""


def get_cache_data_queue(
    cache_directory: str | Path,
    queue_type: str | None = None,
    config_directory: str | Path | None = None,
) -> list[CacheEntry]:
    """Return what a cache knows of every task, and how far each is.

    Parameters
    ----------
    cache_directory
        The cache.
    queue_type
        Only the tasks of this batch system: ``"slurm"``, ``"flux"`` (all instances),
        ``"local"``, ..., in small letters or large ones; tasks inside an allocation are
        ``"slurm-step"`` or ``"flux-step"``, those on long-lived workers ``"workers"``. None: all.
        Each is asked about its own tasks; results come from any.
    config_directory
        Not needed: the cache itself says which batch system has a task.

    Returns
    -------
    list of CacheEntry
        All results, then what has none, each with ``status``:
        ``"finished"``, ``"running"``, ``"pending"``, ``"aborted"`` (then ``error`` says why), or
        ``"unknown"`` while nobody can tell.

    Raises
    ------
    ConfigurationError
        There is no batch system of that name, or no such directory.
    """
    if queue_type is not None:
        queue_type = asked_family(queue_type)
    check_config_directory("config_directory", config_directory)
    finished = [entry | {"status": "finished"} for entry in result_entries(cache_directory)]
    if not Path(cache_directory).exists():
        return finished
    look = Overview(Cache(cache_directory, create=False))
    try:
        return [*finished, *_others(look, queue_type)]
    finally:
        look.close()


def check_config_directory(name: str, value: Any) -> None:
    """Check a directory that tells of a batch system: what it would tell, the cache knows.

    Raises
    ------
    ConfigurationError
        There is none.
    """
    if value is not None and not os.path.isdir(value):
        raise ConfigurationError(
            f"{name}={str(value)!r}: there is no such directory; leave it out, since a cache says "
            "itself to which batch system its tasks were handed over"
        )


def _others(look: Overview, queue_type: str | None) -> Iterator[CacheEntry]:
    """Yield what is known of tasks without a result, by run and in the order of their jobs."""
    history, calls = History(look.cache, look.claims), Calls(look.cache)
    for run in look.runs():
        if queue_type is not None and not belongs(run.backend, queue_type):
            continue
        ids = look.claims.log(run.id).ids
        for key, stage in look.stages(run).items():
            if stage == "finished":
                continue
            claim = look.claims.current(key)
            if claim is None or claim.run.id != run.id:
                continue  # another run has tried again since
            yield _entry(history, calls, claim, stage, ids.get(claim.job_name))


def _entry(
    history: History, calls: Calls, claim: Claim, stage: str, job_id: str | None
) -> CacheEntry:
    entry = unfinished_entry(history, calls, claim, job_id) | {"status": _STATUS.get(stage, stage)}
    if stage != "failed":
        return entry
    return entry.with_unread({"error": lambda: failure(history, claim)})
