"""Workers as processes of this machine, children of the client."""

from __future__ import annotations

from collections.abc import Mapping

from dask_batch.backends.base import Job
from dask_batch.backends.gpus import Declared, Devices, visible
from dask_batch.backends.local.machine import Machine
from dask_batch.backends.local.profiles import check_resources, gpus
from dask_batch.backends.within.processes import ProcessLauncher, StartedProcess
from dask_batch.errors import BackendError, ResourceError
from dask_batch.job.devices import restricted

__all__ = ["WorkerProcesses"]

_UNWATCHED = ("memory_max", "run_time_max")


class WorkerProcesses(ProcessLauncher):
    """Starts a process for each worker, and refuses what nobody would keep it to.

    Parameters
    ----------
    gpus
        What is said of the GPUs of this machine. Each worker has its own.
    """

    def __init__(self, gpus: Declared | None = None) -> None:
        super().__init__()
        self._gpus = gpus
        self._holders: list[tuple[StartedProcess, tuple[str, ...]]] = []

    def check(self, job: Job) -> None:
        """Refuse what this machine cannot give to a process.

        Raises
        ------
        ResourceError
            Names the resource.
        """
        machine = Machine.here()
        check_resources(
            job,
            machine_cpus=machine.cpus,
            machine_memory_bytes=machine.memory_bytes,
            devices=self._devices(job),
        )
        for name in _UNWATCHED:
            if job.resources.get(name) is not None:
                raise ResourceError(
                    f"resource {name!r} = {job.resources[name]!r}: nobody watches over the workers "
                    "of this machine; leave it out, or leave out block_allocation"
                )

    def start(
        self, job: Job, job_id: str, variables: Mapping[str, str] | None = None
    ) -> StartedProcess:
        """Start a process for a worker, with some variables beside its own.

        Raises
        ------
        BackendError
            It cannot be started, or others have all GPUs.
        """
        devices = self._devices(job)
        own = self._free(job, devices)
        told = dict(variables or {})
        if devices.variable:
            told |= restricted(job.environment, devices.variable, devices.names, own)
        started = super().start(job, job_id, told)
        self._holders.append((started, own))
        return started

    def _devices(self, job: Job) -> Devices:
        return visible(job.environment, self._gpus)

    def _free(self, job: Job, devices: Devices) -> tuple[str, ...]:
        """Return GPUs that no other worker has."""
        self._holders = [h for h in self._holders if h[0].child.process.poll() is None]
        taken = {name for _, names in self._holders for name in names}
        free = [name for name in devices.names if name not in taken]
        wanted = gpus(job.resources)
        if wanted > len(free):
            raise BackendError(
                f"{wanted} GPU(s) for a worker: {len(free)} of {len(devices.names)} are left "
                "by the others; ask for fewer workers, or for fewer GPUs each"
            )
        return tuple(free[:wanted])
