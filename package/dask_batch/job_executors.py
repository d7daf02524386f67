"""The executors for who is inside an allocation: no new job is queued for their tasks."""

from __future__ import annotations

from typing import ClassVar

from dask_batch.executors import BatchExecutor

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
        Where results are kept. None: where Dask's setting ``batch.cache-directory`` says; if that
        is at its default, nowhere, and every call runs. The results are then in a folder of this
        executor's own, which is removed when it is shut down and its jobs are over: a temporary one
        where the allocation is this node alone, else one in the working directory, or in the home
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

    keeps_results: ClassVar[bool] = False


class SlurmJobExecutor(JobExecutor):
    __doc__ = JobExecutor.__doc__

    backend: ClassVar[str] = "slurm-step"


class FluxJobExecutor(JobExecutor):
    __doc__ = JobExecutor.__doc__

    backend: ClassVar[str] = "flux-step"
