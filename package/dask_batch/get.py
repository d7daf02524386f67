"""``cluster_get``: the contract of Dask's schedulers, on a batch system."""

from __future__ import annotations

import logging
import queue
from collections.abc import Mapping, Sequence
from typing import Any

from dask_batch.configuration.config import resolve
from dask_batch.errors import ConfigurationError, DamagedEntryError, MissingEntryError
from dask_batch.graphrun import GraphRun
from dask_batch.job.surroundings import inside_job
from dask_batch.session import Session, open_session

__all__ = ["capture", "check_foreign_options", "cluster_get", "wait_for"]

logger = logging.getLogger(__name__)

FOREIGN_OPTIONS = frozenset(
    {
        "cache", "callbacks", "chunksize", "dumps", "flush", "func_dumps", "func_loads", "get_id",
        "initializer", "loads", "num_workers", "optimize_graph", "pack_exception", "pool",
        "raise_exception", "rerun_exceptions_locally", "submit", "traverse",
    }
)  # fmt: skip
"""What callers (xarray: ``flush``) pass to Dask's schedulers: accepted, without a meaning here."""


def cluster_get(
    dsk: Any,
    keys: Any,
    *,
    executor: Any = None,
    resource_dict: Mapping[str, Any] | None = None,
    refresh: bool = False,
    **options: Any,
) -> Any:
    """Compute a Dask graph as jobs of a batch system.

    Each task becomes a job, each edge a dependency at the batch system itself: once the graph is
    handed over it completes without this process. What has its result in the cache does not run.

    Parameters
    ----------
    dsk, keys
        What Dask hands to a scheduler: ``dask.compute(x, scheduler=cluster_get)``.
    executor
        An executor of this package to compute with, instead of the options below.
    resource_dict
        Resources of this graph's tasks; annotations and rules prevail over them.
    refresh
        Run everything again, and publish the new results.
    **options
        The options of the executors, and ``backend``: ``"local"`` or ``"slurm"``; without it
        Slurm is taken where ``sbatch`` is on the path, the local queue elsewhere.

    Returns
    -------
    object
        The results in the shape of ``keys``, lists as tuples.

    Raises
    ------
    Exception
        What a task raised, as it was, with the remote traceback as its ``__cause__``.
    TaskError
        A job ended without a result: see :mod:`dask_batch.errors`.
    GraphError, ConfigurationError, CacheError, BackendError
        Something is wrong with the graph, an option, the cache, the batch system; nothing of the
        graph runs.

    Notes
    -----
    Inside a job this computes in the job's own process: a job is never a client by accident. To
    hand over work from inside a job, use an executor.
    """
    if executor is not None:
        return executor.get(dsk, keys, resource_dict=resource_dict, refresh=refresh, **options)
    if inside_job():
        return _compute_here(dsk, keys)
    ours = {name: value for name, value in options.items() if name not in FOREIGN_OPTIONS}
    session = open_session(resolve(resource_dict=resource_dict, **ours))
    try:
        return wait_for(session, dsk, keys, {}, refresh=refresh)
    finally:
        session.engine.close()


def _compute_here(dsk: Any, keys: Any) -> Any:
    """Compute in this process, with threads where the job has several CPUs."""
    import os

    import dask.local
    import dask.threaded

    if int(os.environ.get("DASK_NUM_WORKERS") or 1) > 1:
        return dask.threaded.get(dsk, keys)
    return dask.local.get_sync(dsk, keys)


def check_foreign_options(options: Mapping[str, Any]) -> None:
    """Refuse keywords that neither we nor Dask's own schedulers know."""
    for name in options:
        if name not in FOREIGN_OPTIONS:
            raise ConfigurationError(
                f"unknown option {name!r}; an executor takes its options when it is created, and "
                "resource_dict= and refresh= with a graph"
            )


def wait_for(
    session: Session,
    dsk: Any,
    keys: Any,
    resource_dict: Mapping[str, Any],
    *,
    refresh: bool = False,
) -> Any:
    """Hand a graph to a session, wait, tell Dask's callbacks, and return the results."""
    try:
        return _wait(session.graph(dsk, keys, resource_dict, refresh=refresh, callbacks=True))
    except (DamagedEntryError, MissingEntryError) as error:
        # A damaged entry counts as absent, and it has been set aside: once more, without it.
        logger.warning("%s; computing it again", error)
        return _wait(session.graph(dsk, keys, resource_dict, callbacks=True))


def _wait(run: GraphRun) -> Any:
    """Wait for a graph in this thread, which is where Dask's callbacks are called."""
    try:
        with run.progress:
            while not run.future.done():
                event = run.events.get()
                if event is not None:
                    run.progress.tell(*event)
            _drain(run)
            return run.future.result()
    except KeyboardInterrupt:
        logger.warning("%s", run.farewell())
        raise


def _drain(run: GraphRun) -> None:
    while True:
        try:
            event = run.events.get_nowait()
        except queue.Empty:
            return
        if event is not None:
            run.progress.tell(*event)


class _Captured(BaseException):
    """Carries what Dask hands to a scheduler out of ``dask.compute``."""


def capture(collections: Sequence[Any], **kwargs: Any) -> tuple[Any, Any]:
    """Return the graph and the keys that ``dask.compute`` would hand to a scheduler."""
    import dask

    def scheduler(dsk: Any, keys: Any, **_: Any) -> Any:
        raise _Captured(dsk, keys)

    try:
        dask.compute(*collections, scheduler=scheduler, traverse=False, **kwargs)
    except _Captured as captured:
        dsk, keys = captured.args
        return dsk, keys
    raise ConfigurationError("compute() takes Dask collections, and none was given")
