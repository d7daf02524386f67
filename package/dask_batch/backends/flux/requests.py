"""From a job to what is asked of Flux for it, and what Flux cannot be asked for."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from dask_batch.backends import logs
from dask_batch.backends.base import Job
from dask_batch.backends.flux.instance import NORMAL, URGENT, Dependency, Machine, Request
from dask_batch.backends.local.machine import thread_variables
from dask_batch.backends.local.script import shell_script
from dask_batch.backends.slurm.script import job_command
from dask_batch.errors import ResourceError
from dask_batch.job.surroundings import JOB_VARIABLE

__all__ = ["Writer", "refuse_what_cannot_be", "urgency_of"]

logger = logging.getLogger(__name__)

_MEANINGLESS: Final[Mapping[str, str]] = {
    "qos": "Flux has no qualities of service; a partition is a queue, an account a bank",
    "constraint": "node features are not asked for here; choose a queue: partition=",
    "reservation": "Flux has no reservations; choose a queue: partition=",
    "slurm_cmd_args": "there is no sbatch; leave it out",
    "job_extra_directives": "there is no sbatch; leave it out",
    "openmpi_oversubscribe": "Flux gives each rank CPUs of its own; leave it out",
    "submission_template": (
        "jobs are handed to Flux without a script; what a template sets up belongs into "
        "job_script_prologue, what it asks for into resources"
    ),
}
"""What there is nothing of in Flux, and what to do instead."""

_TOLD: set[str] = set()
"""What was said, which is enough for a process."""
_TEMPLATE_MARK: Final = "{{"
"""Flux replaces what stands between braces in commands and paths of logs."""


def urgency_of(resources: Mapping[str, Any]) -> int:
    """Return a job's urgency: 16 without a priority, never 0, which would hold it for ever."""
    return min(max(NORMAL + int(resources.get("priority") or 0), 1), URGENT)


def refuse_what_cannot_be(job: Job, machine: Machine) -> None:
    """Refuse what Flux cannot give; Flux itself would take it, and fail the job.

    Raises
    ------
    ResourceError
        It names the job, the resource and the remedy.
    """
    wanted = job.resources
    for name, why in _MEANINGLESS.items():
        if wanted.get(name):
            raise _refusal(job, name, why)
    for name in ("definition", "log_directory"):
        if _TEMPLATE_MARK in str(getattr(job, name)):
            raise ResourceError(
                f"job {job.name}: {_TEMPLATE_MARK!r} in {str(getattr(job, name))!r} would be "
                "replaced by Flux; choose another cache_directory"
            )
    if _TEMPLATE_MARK in str(wanted.get("python") or ""):
        raise _refusal(job, "python", "Flux would replace what is between the braces")
    _refuse_sizes(job, machine)
    if wanted.get("account") is not None:
        _say_once(
            "account",
            logging.INFO,
            "account=%s is the bank of the jobs: an instance without flux-accounting keeps it with "
            "them, and charges nobody",
            wanted["account"],
        )
    if wanted.get("memory_max") is not None:
        _say_once(
            "memory_max",
            logging.WARNING,
            "Flux does not share out memory: memory_max=%s neither reserves nor limits any "
            "(threads_per_core or exclusive keep others away)",
            wanted["memory_max"],
        )


def _refuse_sizes(job: Job, machine: Machine) -> None:
    ranks, cpus, gpus = _sizes(job.resources)
    nodes = job.resources.get("num_nodes") or 1
    fits = sum(_slots_on(node, cpus, gpus) for node in machine.nodes)
    if nodes > len(machine.nodes):
        raise _refusal(job, "num_nodes", f"the instance has {len(machine.nodes)} node(s)")
    if fits >= max(ranks, nodes):
        return
    largest = max((node[0] for node in machine.nodes), default=0)
    if gpus and sum(_slots_on(node, cpus, 0) for node in machine.nodes) >= ranks:
        what = f"the instance has {machine.gpus} GPU(s); ask for fewer"
        raise _refusal(job, "gpus_per_core", what)
    if cpus > largest:
        what = f"the largest node of the instance has {largest} CPU(s); ask for at most that many"
        raise _refusal(job, "threads_per_core", what)
    what = f"{ranks} ranks of {cpus} CPU(s) are asked for, the instance has room for {fits}"
    raise _refusal(job, "cores", f"{what}; ask for fewer")


def _slots_on(node: tuple[int, int], cpus: int, gpus: int) -> int:
    return min(node[0] // cpus, node[1] // gpus if gpus else node[0])


def _sizes(resources: Mapping[str, Any]) -> tuple[int, int, int]:
    """Return the number of ranks, and the CPUs and GPUs of each."""
    ranks = int(resources.get("cores") or 1)
    cpus = int(resources.get("threads_per_core") or 1)
    return ranks, cpus, int(resources.get("gpus_per_core") or 0)


def _refusal(job: Job, name: str, why: str) -> ResourceError:
    return ResourceError(f"job {job.name}: resource {name!r} = {job.resources[name]!r}: {why}")


def _say_once(about: str, level: int, message: str, *arguments: object) -> None:
    if about not in _TOLD:
        _TOLD.add(about)
        logger.log(level, message, *arguments)


class Writer:
    """Writes requests.

    Parameters
    ----------
    backend
        The name of the backend, as a job's results are to have it.
    command
        Returns the command that runs a job's task.
    machine
        Returns what the instance has.
    """

    def __init__(
        self,
        backend: str,
        machine: Callable[[], Machine],
        command: Callable[[Job], Sequence[str]] = job_command,
    ) -> None:
        self._backend = backend
        self._machine = machine
        self._command = command

    def script(self, job: Job) -> str:
        """Return, for people to read and where there is a prologue for Flux to run, a job's script.

        The shell becomes Python (``exec``), so that signals reach it. Variables of threads come
        first: the prologue may change them.
        """
        prologue = job.resources.get("job_script_prologue") or ()
        text = prologue if isinstance(prologue, str) else "\n".join(prologue)
        return shell_script(
            tuple(self._command(job)), prologue=text, variables=self._variables(job)
        )

    def _variables(self, job: Job) -> dict[str, str]:
        threads = thread_variables(int(job.resources.get("threads_per_core") or 1))
        return {**threads, "DASK_BATCH_BACKEND": self._backend}

    def request(
        self,
        job: Job,
        dependencies: Sequence[Dependency] = (),
        *,
        urgency: int | None = None,
        behind: Sequence[str] = (),
    ) -> Request:
        """Return what is asked of Flux for a job.

        Parameters
        ----------
        job
            The job.
        dependencies
            What it waits for.
        urgency
            How urgent it is at first; None: as it will be.
        behind
            A command that is to run the job's, which follows as its arguments.
        """
        wanted = job.resources
        ranks, cpus, gpus = _sizes(wanted)
        nodes, exclusive = wanted.get("num_nodes"), bool(wanted.get("exclusive"))
        slots = max(ranks, nodes or 1)
        if exclusive and nodes is None:
            nodes = self._nodes_for(slots, cpus, gpus)  # Flux gives whole nodes by their number
        once_released = urgency_of(wanted)
        of_a_task = {JOB_VARIABLE: "{{id.f58plain}}"}  # a nested instance has another FLUX_JOB_ID
        return Request(
            name=job.name,
            command=(*behind, *self._argv(job)),
            slots=slots,
            cpus=cpus,
            gpus=gpus,
            nodes=nodes,
            exclusive=exclusive,
            nested=slots > 1 or bool(wanted.get("flux_executor_nesting")),
            run_time_s=wanted.get("run_time_max"),
            environment={**job.environment, **self._variables(job)},
            expanded=of_a_task if job.program == "dask_batch.job" else {},
            directory=os.path.abspath(wanted.get("cwd") or job.working_directory),
            stdout=self._log(job, "out"),
            stderr=self._log(job, "err"),
            queue=wanted.get("partition"),
            bank=wanted.get("account"),
            dependencies=tuple(dependencies),
            urgency=once_released if urgency is None else urgency,
            note={"urgency": once_released, "repeatable": job.repeatable},
        )

    def _argv(self, job: Job) -> Sequence[str]:
        if not job.resources.get("job_script_prologue"):
            return self._command(job)
        return ["/usr/bin/env", "bash", self._log(job, "sh")]

    def prepare(self, job: Job) -> None:
        """Make the files that a job needs, for their owner alone: its logs, and its script."""
        job.log_directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        logs.prepare(job)
        if not job.resources.get("job_script_prologue"):
            return
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(self._log(job, "sh"), flags, 0o600)
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(self.script(job))

    def _log(self, job: Job, suffix: str) -> str:
        return str(job.log_directory.absolute() / f"{job.index}.{suffix}")

    def _nodes_for(self, slots: int, cpus: int, gpus: int) -> int:
        """Return the least number of nodes with room for so many slots."""
        room = sorted((_slots_on(n, cpus, gpus) for n in self._machine().nodes), reverse=True)
        for count in range(1, len(room) + 1):
            if sum(room[:count]) >= slots:
                return count
        return max(len(room), 1)

    def aside(self, job: Job, name: str, command: Sequence[str], **changes: Any) -> Request:
        """Return a small job that serves another one, in the same queue and on the same account."""
        return Request(
            name=name,
            command=tuple(command),
            environment=job.environment,
            directory="/",
            queue=job.resources.get("partition"),
            bank=job.resources.get("account"),
            **changes,
        )
