"""What executorlib's users know by name, as far as it has a meaning here.

``from executorlib import X`` becomes ``from dask_batch import X``, and ``executorlib.api`` becomes
``dask_batch.api``: see ``docs/migrating-from-executorlib.md``. All names of executorlib's root are
here, and ``api``: ``import dask_batch.compat as executorlib`` is another way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dask_batch import (
        BaseExecutor,
        FluxClusterExecutor,
        FluxJobExecutor,
        SingleNodeExecutor,
        SlurmClusterExecutor,
        SlurmJobExecutor,
        get_cache_data,
        get_cache_data_queue,
        get_future_from_cache,
        get_item_from_future,
        split_future,
        terminate_task_in_cache,
        terminate_tasks_in_cache,
    )

__all__ = [
    "BaseExecutor",
    "FluxClusterExecutor",
    "FluxJobExecutor",
    "SingleNodeExecutor",
    "SlurmClusterExecutor",
    "SlurmJobExecutor",
    "get_cache_data",
    "get_cache_data_queue",
    "get_future_from_cache",
    "get_item_from_future",
    "split_future",
    "terminate_task_in_cache",
    "terminate_tasks_in_cache",
]


def __getattr__(name: str) -> Any:
    if name == "api":
        from dask_batch import api

        return api
    if name in __all__:
        import dask_batch

        return getattr(dask_batch, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
