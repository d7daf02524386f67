"""The executors for who is inside an allocation: no new job is queued for their tasks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from dask_batch.backends.within.extent import spans_machines
from dask_batch.executors import BatchExecutor
from dask_batch.future import BatchFuture
from dask_batch.private import PrivateCache, shared_place

__all__ = ["FluxJobExecutor", "JobExecutor", "SlurmJobExecutor"]


class JobExecutor(BatchExecutor):
    """What the executors share whose jobs run inside the allocation of this process.

    Its jobs end with the process, and no new job is queued for them.

    Parameters
    ----------
    max_workers
        How many jobs of this executor may run at the same time; None: as many as the allocation
        has CPUs and GPUs for.
    max_cores
        On how many CPUs they may run together; None: on all of the allocation.
    cache_directory
        Where results are kept. None: nowhere, and every call runs. The results are then in a
        folder of this executor's own, which is removed when it is shut down: a temporary one where
        the allocation is this node alone, else one in the working directory, or in the home
        directory, whichever the nodes share.
    resource_dict, **options
        As for the other executors.

    Raises
    ------
    BackendUnavailableError
        This process runs in no allocation.
    ConfigurationError, CacheError
        As for the other executors; or no cache directory is given and no folder is known that all
        nodes see.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        *,
        cache_directory: str | Path | None = None,
        resource_dict: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        self._private = None
        if cache_directory is None:
            place = shared_place() if spans_machines(self.backend) else None
            self._private = PrivateCache(place)
            cache_directory = self._private.path
            resource_dict = {"cache": False, **(resource_dict or {})}
        try:
            super().__init__(
                max_workers,
                cache_directory=cache_directory,
                resource_dict=resource_dict,
                **options,
            )
        except BaseException:
            if self._private is not None:
                self._private.remove()
            raise
        if self._private is not None and self._drawing is None:
            self._session.engine.ended = self._private.remove

    def submit(  # type: ignore[override]
        self,
        fn: Any,
        /,
        *args: Any,
        resource_dict: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> BatchFuture:
        """Hand in a call; see :meth:`BatchExecutor.submit`."""
        future = super().submit(fn, *args, resource_dict=resource_dict, **kwargs)
        if self._private is not None:
            self._private.serve([future])
        return future

    def compute(self, *collections: Any, **kwargs: Any) -> Any:
        """Hand in Dask collections and return at once; see :meth:`BatchExecutor.compute`."""
        futures = super().compute(*collections, **kwargs)
        if self._private is not None:
            self._private.serve(futures if isinstance(futures, list) else [futures])
        return futures

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls; see :meth:`BatchExecutor.shutdown`.

        What ``wait=False`` leaves running goes on while this process lives; at its end it is waited
        for, as the standard library does.
        """
        super().shutdown(wait, cancel_futures=cancel_futures)
        if wait and self._wait and self._private is not None:
            self._private.remove()


class SlurmJobExecutor(JobExecutor):
    __doc__ = JobExecutor.__doc__

    backend: ClassVar[str] = "slurm-step"


class FluxJobExecutor(JobExecutor):
    __doc__ = JobExecutor.__doc__

    backend: ClassVar[str] = "flux-step"
