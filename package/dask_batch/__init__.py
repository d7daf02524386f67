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
    from dask_batch.executors import (
        FluxJobExecutor,
        SingleNodeExecutor,
        SlurmClusterExecutor,
        SlurmJobExecutor,
    )
    from dask_batch.get import cluster_get
    from dask_batch.inputs import File
    from dask_batch.runs import cancel, explain, get_cache_data, status
    from dask_batch.upkeep import clean, verify

__version__ = "0.1.0"

_HOMES = {
    "File": "dask_batch.inputs",
    "FluxJobExecutor": "dask_batch.executors",
    "SingleNodeExecutor": "dask_batch.executors",
    "SlurmClusterExecutor": "dask_batch.executors",
    "SlurmJobExecutor": "dask_batch.executors",
    "cancel": "dask_batch.runs",
    "checkpoint_directory": "dask_batch.checkpoint",
    "clean": "dask_batch.upkeep",
    "cluster_get": "dask_batch.get",
    "explain": "dask_batch.runs",
    "get_cache_data": "dask_batch.runs",
    "status": "dask_batch.runs",
    "stop_local_queue": "dask_batch.backends.local",
    "verify": "dask_batch.upkeep",
}

__all__ = [
    "File",
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
    "status",
    "stop_local_queue",
    "verify",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


register()
