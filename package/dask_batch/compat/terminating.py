"""An end to what a cache has under way."""

from __future__ import annotations

from pathlib import Path

from dask_batch.compat.families import asked_family, belongs
from dask_batch.compat.lookup import key_of, opened
from dask_batch.compat.queue import check_config_directory
from dask_batch.upkeep.runs import cancel, status

__all__ = ["terminate_task_in_cache", "terminate_tasks_in_cache"]


def terminate_tasks_in_cache(
    cache_directory: str | Path,
    pysqa_config_directory: str | Path | None = None,
    backend: str | None = None,
) -> None:
    """End all jobs that a cache has under way; they may be computed again.

    Parameters
    ----------
    cache_directory
        The cache.
    pysqa_config_directory
        Not needed: the cache itself says which batch system has a task.
    backend
        Only the jobs of this batch system: see ``queue_type`` of
        :func:`dask_batch.get_cache_data_queue`. None: all.

    Raises
    ------
    FileNotFoundError
        There is no such directory.
    ConfigurationError
        There is no batch system of that name, or no such directory.
    """
    check_config_directory("pysqa_config_directory", pysqa_config_directory)
    cache = opened(cache_directory)
    if backend is None:
        cancel(cache.path)
        return
    family = asked_family(backend)
    for run in status(cache.path):
        if belongs(run.backend, family):
            cancel(cache.path, run=run.run)


def terminate_task_in_cache(
    cache_directory: str | Path,
    cache_key: str,
    pysqa_config_directory: str | Path | None = None,
    backend: str | None = None,
) -> None:
    """End the job of one task, and of what waits for it; they may be computed again.

    Parameters
    ----------
    cache_directory
        The cache.
    cache_key
        The task: what was said in ``resource_dict={"cache_key": ...}``, or its key.
    pysqa_config_directory, backend
        As in :func:`terminate_tasks_in_cache`. There is only one job, so nothing is left to choose.

    Raises
    ------
    FileNotFoundError
        The cache has nothing of that name.
    ConfigurationError
        There is no batch system of that name, or no such directory.
    """
    check_config_directory("pysqa_config_directory", pysqa_config_directory)
    if backend is not None:
        asked_family(backend)
    cache = opened(cache_directory)
    cancel(cache.path, key=key_of(cache, cache_key))
