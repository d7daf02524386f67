"""Jobs as plain processes of this machine."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from dask_batch.backends.base import Job, JobState
from dask_batch.backends.local.script import DEFAULT_PROGRAM
from dask_batch.backends.within import commands
from dask_batch.backends.within.children import Child
from dask_batch.backends.within.launcher import Ended, Room

__all__ = ["ProcessLauncher", "StartedProcess", "ended_process"]

_MEANINGLESS: Final = {
    "flux_executor_nesting": "instances of Flux",
    "partition": "partitions",
    "account": "accounts",
    "qos": "qualities of service",
    "constraint": "node features",
    "gpu_request": "sbatch",
    "reservation": "reservations",
    "slurm_cmd_args": "srun",
    "job_extra_directives": "directives",
    "submission_template": "templates",
}


class ProcessLauncher:
    """Starts ``python -P -m PROGRAM DEFINITION INDEX`` for each job.

    Parameters
    ----------
    room
        What there is for jobs.
    backend
        The backend's name, as the jobs are told.
    variables
        What their environment has beside the client's.
    """

    def __init__(
        self,
        room: Room | None = None,
        *,
        backend: str = "workers",
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self.news: Callable[[], None] = lambda: None
        self._room = Room() if room is None else room
        self._backend = backend
        self._variables = dict(variables or {})

    def room(self) -> Room:
        """Return what there is for jobs."""
        return self._room

    def check(self, job: Job) -> None:
        """Refuse what a process cannot have."""
        commands.refuse(job, _MEANINGLESS, "this machine")

    def script(self, job: Job) -> str:
        """Return what is run for a job."""
        extra = {"DASK_BATCH_BACKEND": self._backend}
        return commands.script_text(job, commands.command(job), extra)

    def start(
        self, job: Job, job_id: str, variables: Mapping[str, str] | None = None
    ) -> StartedProcess:
        """Start a process for a job, with some variables beside the others.

        Raises
        ------
        BackendUnavailableError
            It cannot be started.
        """
        out, err = commands.prepare_logs(job)
        # The leader of MPI ranks, and a worker's keeper, end others when asked to end themselves.
        leads = int(job.resources.get("cores") or 1) > 1 or job.program != DEFAULT_PROGRAM
        with open(out, "ab") as stdout, open(err, "ab") as stderr:
            child = Child.start(
                commands.command(job),
                env={
                    **commands.environment(job, job_id, self._backend),
                    **self._variables,
                    **(variables or {}),
                },
                cwd=commands.directory(job),
                stdout=stdout,
                stderr=stderr,
                dies_by=signal.SIGTERM if leads else signal.SIGKILL,
                news=self.news,
            )
        return StartedProcess(child)

    def close(self) -> None:
        """Nothing is held."""


@dataclass(slots=True)
class StartedProcess:
    """A job that is a process of this machine."""

    child: Child
    _asked: bool = field(default=False)

    def ended(self) -> Ended | None:
        """Return how it has ended; None while it runs. What it left running ends with it."""
        code = self.child.process.poll()
        if code is None:
            return None
        self.child.signal(signal.SIGKILL)
        return ended_process(code)

    def kill(self) -> None:
        """End it: first so that it may clear up, then not."""
        self.child.signal(signal.SIGKILL if self._asked else signal.SIGTERM)
        self._asked = True


def ended_process(code: int) -> Ended:
    """Read what :class:`subprocess.Popen` says of a process that has ended."""
    if code == 0:
        return Ended(JobState.COMPLETED, exit_code=0)
    if code > 0:
        return Ended(JobState.FAILED, exit_code=code, reason=f"ended with exit code {code}")
    try:
        name = signal.Signals(-code).name
    except ValueError:  # a real-time signal
        name = f"signal {-code}"
    return Ended(JobState.FAILED, signal=-code, reason=f"killed by {name}")
