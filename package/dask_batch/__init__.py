"""Dask graphs and plain function calls become batch jobs that finish without you.

>>> import dask
>>> from dask_batch import cluster_get
>>> dask.compute(x, scheduler=cluster_get)  # doctest: +SKIP

The public names are loaded when they are first used, so that a job that imports the package pays
for nothing that it does not need.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from dask_batch.registration import register

if TYPE_CHECKING:
    from dask_batch.backends.local import stop_local_queue
    from dask_batch.checkpoint import checkpoint_directory
    from dask_batch.compat.queue import get_cache_data_queue
    from dask_batch.compat.recall import get_future_from_cache
    from dask_batch.compat.selection import get_item_from_future, split_future
    from dask_batch.compat.terminating import terminate_task_in_cache, terminate_tasks_in_cache
    from dask_batch.executors import (
        BaseExecutor,
        ClusterExecutor,
        FluxClusterExecutor,
        FluxJobExecutor,
        SingleNodeExecutor,
        SlurmClusterExecutor,
        SlurmJobExecutor,
    )
    from dask_batch.get import cluster_get
    from dask_batch.inputs import File
    from dask_batch.upkeep.runs import cancel, explain, get_cache_data, status
    from dask_batch.upkeep.upkeep import clean, verify

__version__ = "0.1.0"

_HOMES = {
    "ClusterExecutor": "dask_batch.executors",
    "File": "dask_batch.inputs",
    "FluxClusterExecutor": "dask_batch.executors",
    "FluxJobExecutor": "dask_batch.executors",
    "SingleNodeExecutor": "dask_batch.executors",
    "SlurmClusterExecutor": "dask_batch.executors",
    "SlurmJobExecutor": "dask_batch.executors",
    "cancel": "dask_batch.upkeep.runs",
    "checkpoint_directory": "dask_batch.checkpoint",
    "clean": "dask_batch.upkeep.upkeep",
    "cluster_get": "dask_batch.get",
    "explain": "dask_batch.upkeep.runs",
    "get_cache_data": "dask_batch.upkeep.runs",
    "status": "dask_batch.upkeep.runs",
    "stop_local_queue": "dask_batch.backends.local",
    "verify": "dask_batch.upkeep.upkeep",
}

_EXECUTORLIB = {
    "BaseExecutor": "dask_batch.executors",
    "get_cache_data_queue": "dask_batch.compat.queue",
    "get_future_from_cache": "dask_batch.compat.recall",
    "get_item_from_future": "dask_batch.compat.selection",
    "split_future": "dask_batch.compat.selection",
    "terminate_task_in_cache": "dask_batch.compat.terminating",
    "terminate_tasks_in_cache": "dask_batch.compat.terminating",
}
"""What else executorlib's users import from its root: ``dask_batch.compat``."""

__all__ = [
    "BaseExecutor",
    "ClusterExecutor",
    "File",
    "FluxClusterExecutor",
    "FluxJobExecutor",
    "SingleNodeExecutor",
    "SlurmClusterExecutor",
    "SlurmJobExecutor",
    "__version__",
    "cancel",
    "checkpoint_directory",
    "clean",
    "cluster_get",
    "explain",
    "get_cache_data",
    "get_cache_data_queue",
    "get_future_from_cache",
    "get_item_from_future",
    "split_future",
    "status",
    "stop_local_queue",
    "terminate_task_in_cache",
    "terminate_tasks_in_cache",
    "verify",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name) or _EXECUTORLIB.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


register()
