"""The executors by name: for this machine, for clusters, for who is inside an allocation."""

from __future__ import annotations

from typing import Any, ClassVar

from dask_batch.configuration.config import resolve
from dask_batch.configuration.options import Options
from dask_batch.executor import BatchExecutor

__all__ = [
    "BaseExecutor",
    "ClusterExecutor",
    "FluxClusterExecutor",
    "FluxJobExecutor",
    "JobExecutor",
    "SingleNodeExecutor",
    "SlurmClusterExecutor",
    "SlurmJobExecutor",
]

BaseExecutor = BatchExecutor
"""What all executors are an instance of, by the name that it has in executorlib."""


class SingleNodeExecutor(BatchExecutor):
    """The executor for this machine: its calls and graphs become jobs of the local queue.

    An executor is also a Dask scheduler: ``dask.compute(x, scheduler=executor)``.

    Parameters
    ----------
    max_workers
        How many jobs of this executor may run at the same time; None: as many as the machine has
        room for.
    cache_directory
        Where results are kept. None: where Dask's setting ``batch.cache-directory`` says; if that
        is at its default, nowhere, and every call runs. The results are then in a temporary folder
        of this executor's own, which is removed when it is shut down and its jobs are over.
    max_cores
        On how many CPUs they may run together.
    resource_dict, **options
        As for every executor: :class:`BatchExecutor`.

    Raises
    ------
    ConfigurationError, CacheError, BackendUnavailableError
        As every executor.
    """

    backend: ClassVar[str] = "local"
    keeps_results: ClassVar[bool] = False


class SlurmClusterExecutor(BatchExecutor):
    __doc__ = BatchExecutor.__doc__

    backend: ClassVar[str] = "slurm"


class FluxClusterExecutor(BatchExecutor):
    __doc__ = BatchExecutor.__doc__

    backend: ClassVar[str] = "flux"


class ClusterExecutor(BatchExecutor):
    """The executor for whatever batch system there is: PBS, Grid Engine, LSF, Torque, Moab, ...

    Parameters
    ----------
    max_workers, cache_directory, resource_dict
        As for every executor.
    **options
        ``backend="pbs"`` (``"sge"``, ``"lsf"``, ``"torque"``, ``"moab"``, ``"slurm"``, ``"local"``)
        names the batch system; ``pysqa_config_directory`` names a directory with the queues of the
        site, and thereby the batch system too. Without either it is chosen as by ``cluster_get``.

    Raises
    ------
    ConfigurationError, CacheError, BackendUnavailableError
        As every executor.
    """

    def _resolve(self, **options: Any) -> Options:
        return resolve(**options)


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
