"""From a job's resources to what the local queue has to know: :class:`~.submission.Profile`."""

from __future__ import annotations

import math
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from dask_batch.backends.base import Job
from dask_batch.backends.gpus import Devices, visible
from dask_batch.backends.local.interpreter import package_environment
from dask_batch.backends.local.machine import Machine
from dask_batch.backends.local.script import DEFAULT_PROGRAM
from dask_batch.backends.local.submission import LONGEST_S, Member, Profile
from dask_batch.errors import ResourceError
from dask_batch.job.ranks.launch import MPIEXEC

__all__ = ["Profiles", "check_resources"]

_GB = 2**30  # as Slurm counts

_MEANINGLESS = {
    "flux_executor_nesting": "instances of Flux",
    "partition": "partitions",
    "account": "accounts",
    "qos": "qualities of service",
    "constraint": "node features",
    "reservation": "reservations",
    "gpu_request": "sbatch",
    "slurm_cmd_args": "sbatch",
    "job_extra_directives": "directives",
    "submission_template": "templates",
}
"""What there is nothing of on the local queue."""


def cpus(resources: Mapping[str, Any]) -> int:
    """Return how many CPUs a job takes: all of the machine's, where its ranks share them."""
    wanted = int(resources.get("cores") or 1) * int(resources.get("threads_per_core") or 1)
    if resources.get("openmpi_oversubscribe"):
        return min(wanted, Machine.here().cpus)
    return wanted


def memory_bytes(resources: Mapping[str, Any]) -> int:
    """Return how much memory a job takes; 0 if it does not say."""
    gigabytes = resources.get("memory_max")
    return 0 if gigabytes is None else math.ceil(float(gigabytes) * _GB)


def gpus(resources: Mapping[str, Any]) -> int:
    """Return how many GPUs a job takes."""
    return int(resources.get("cores") or 1) * int(resources.get("gpus_per_core") or 0)


def check_resources(
    job: Job, *, machine_cpus: int, machine_memory_bytes: int, devices: Devices
) -> None:
    """Refuse what this machine cannot give.

    Raises
    ------
    ResourceError
        It names the job, the resource and the remedy.
    """
    wanted = job.resources
    for name, things in _MEANINGLESS.items():
        if wanted.get(name):
            raise _refusal(job, name, f"the local queue has no {things}; leave it out")
    if wanted.get("pmi_mode") not in (None, MPIEXEC):
        why = f"MPI ranks are started by mpiexec here; leave it out, or say {MPIEXEC!r}"
        raise _refusal(job, "pmi_mode", why)
    if gpus(wanted) > len(devices.names):
        raise _refusal(job, "gpus_per_core", _too_few_gpus(gpus(wanted), devices))
    if (wanted.get("num_nodes") or 1) > 1:
        raise _refusal(job, "num_nodes", "the local queue is one machine; leave it out")
    if wanted.get("exclusive"):
        raise _refusal(job, "exclusive", f"ask for all CPUs instead: cores={machine_cpus}")
    if cpus(wanted) > machine_cpus:
        name = "cores" if (wanted.get("cores") or 1) > 1 else "threads_per_core"
        what = f"{cpus(wanted)} CPUs are asked for, this machine has {machine_cpus}"
        remedy = "ask for at most that many"
        if name == "cores":
            remedy += ", or say openmpi_oversubscribe=True, so that ranks share CPUs"
        raise _refusal(job, name, f"{what}; {remedy}")
    if memory_bytes(wanted) > machine_memory_bytes:
        there = f"this machine has {machine_memory_bytes / _GB:.4g} GB"
        raise _refusal(job, "memory_max", f"{there}; ask for less")
    if (wanted.get("run_time_max") or 0) >= LONGEST_S:
        raise _refusal(job, "run_time_max", "that is no limit; leave it out, and there is none")
    if wanted.get("cwd") and not os.path.isdir(wanted["cwd"]):
        raise _refusal(job, "cwd", "there is no such directory; make it first")
    if wanted.get("python") and shutil.which(wanted["python"]) is None:
        raise _refusal(job, "python", "there is no such program")


def _too_few_gpus(wanted: int, devices: Devices) -> str:
    """Say how many there are, as far as is known, and what to do."""
    declare = (
        "others are declared with local_gpus (batch.local-gpus in Dask's configuration): how many "
        "there are, or a list"
    )
    if not devices.names:
        sees = f" ({devices.variable} names none)" if devices.variable else ""
        return f"no GPUs are to be seen on this machine{sees}; leave it out, or {declare}"
    there = f"there are {len(devices.names)} ({devices.variable}={','.join(devices.names)})"
    return f"{wanted} GPUs are asked for, {there}; ask for at most that many; {declare}"


def _refusal(job: Job, name: str, why: str) -> ResourceError:
    return ResourceError(f"job {job.name}: resource {name!r} = {job.resources[name]!r}: {why}")


class Profiles:
    """Makes the members of one hand-over, equal jobs sharing one profile.

    Parameters
    ----------
    devices
        Returns the GPUs that jobs with an environment may have.
    """

    def __init__(self, devices: Callable[[Mapping[str, str]], Devices] = visible) -> None:
        self._devices = devices
        self._environments: dict[int, dict[str, str]] = {}
        self._profiles: dict[tuple[Any, ...], Profile] = {}

    def members(self, jobs: Iterable[Job]) -> list[Member]:
        """Return jobs as the queue takes them; all must stay alive meanwhile."""
        positions: dict[str, int] = {}
        members = []
        for job in jobs:
            missing = [name for name in job.parents if name not in positions]
            if missing:
                raise ValueError(f"{job.name}: its parent {missing[0]} does not precede it")
            parents = tuple(positions[name] for name in job.parents)
            members.append(self._member(job, parents))
            positions[job.name] = len(positions)
        return members

    def member(self, job: Job) -> Member:
        """Return one job whose parents have been handed over before."""
        return self._member(job, ())

    def _member(self, job: Job, parents: tuple[int, ...]) -> Member:
        return Member(
            name=job.name,
            profile=self._profile(job),
            index=job.index,
            parents=parents,
            after=tuple(job.after),
            repeatable=job.repeatable,
            patient=job.patient,
            after_failure=tuple(job.after_failure),
            after_end=tuple(job.after_end),
        )

    def _profile(self, job: Job) -> Profile:
        # Equal mappings are usually the same object; where not, only some bytes are wasted.
        alike = (
            *(job.definition, job.log_directory, job.working_directory, job.preload, job.program),
            *(id(job.resources), id(job.environment)),
        )
        if alike not in self._profiles:
            environment = self._environments.get(id(job.environment))
            if environment is None:
                environment = package_environment(job.environment)
                self._environments[id(job.environment)] = environment
            devices = self._devices(job.environment)
            self._profiles[alike] = profile(job, environment, devices)
        return self._profiles[alike]


def profile(job: Job, environment: Mapping[str, str], devices: Devices) -> Profile:
    """Return how one job is started and what it needs."""
    wanted = job.resources
    prologue = wanted.get("job_script_prologue") or ""
    return Profile(
        definition=os.path.abspath(job.definition),
        log_directory=os.path.abspath(job.log_directory),
        working_directory=os.path.abspath(wanted.get("cwd") or job.working_directory),
        environment=environment,
        python=wanted.get("python") or sys.executable,
        cpus=cpus(wanted),
        memory_bytes=memory_bytes(wanted),
        limit_memory=wanted.get("memory_max") is not None,
        run_time_s=wanted.get("run_time_max"),
        priority=int(wanted.get("priority") or 0),
        prologue=prologue if isinstance(prologue, str) else "\n".join(prologue),
        warm=_may_be_forked(job),
        preload=job.preload,
        program=job.program,
        gpus=gpus(wanted),
        gpu_variable=devices.variable,
        gpu_names=devices.names,
    )


def _may_be_forked(job: Job) -> bool:
    """Whether a warm parent, which has imported what tasks need, may fork it."""
    own_start = job.resources.get("job_script_prologue") or job.resources.get("python")
    # Elsewhere system libraries do not survive a fork without exec.
    return sys.platform == "linux" and job.program == DEFAULT_PROGRAM and not own_start
