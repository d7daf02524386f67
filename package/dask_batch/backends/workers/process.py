"""Workers as processes of this machine, children of the client."""

from __future__ import annotations

from dask_batch.backends.base import Job
from dask_batch.backends.local.machine import Machine
from dask_batch.backends.local.profiles import check_resources
from dask_batch.backends.within.processes import ProcessLauncher
from dask_batch.errors import ResourceError

__all__ = ["WorkerProcesses"]

_UNWATCHED = ("memory_max", "run_time_max")


class WorkerProcesses(ProcessLauncher):
    """Starts a process for each worker, and refuses what nobody would keep it to."""

    def check(self, job: Job) -> None:
        """Refuse what this machine cannot give to a process.

        Raises
        ------
        ResourceError
            Names the resource.
        """
        machine = Machine.here()
        check_resources(job, machine_cpus=machine.cpus, machine_memory_bytes=machine.memory_bytes)
        for name in _UNWATCHED:
            if job.resources.get(name) is not None:
                raise ResourceError(
                    f"resource {name!r} = {job.resources[name]!r}: nobody watches over the workers "
                    "of this machine; leave it out, or leave out block_allocation"
                )
