"""Workers as processes of this machine, children of the client."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable

from dask_batch.backends.base import Job, JobState
from dask_batch.backends.local.interpreter import package_environment
from dask_batch.backends.local.machine import Machine, thread_variables
from dask_batch.backends.local.profiles import check_resources, profile
from dask_batch.backends.local.script import command, shell_script
from dask_batch.backends.within.launcher import Ended, Room
from dask_batch.errors import BackendError, ResourceError

__all__ = ["ProcessLauncher"]

_GRACE_S = 5.0


class ProcessLauncher:
    """Starts jobs as processes: see :class:`~dask_batch.backends.within.launcher.Launcher`."""

    def __init__(self) -> None:
        self.news: Callable[[], None] = lambda: None
        self._machine = Machine.here()
        self._started: list[_Process] = []

    def room(self) -> Room:
        """Return what this machine has."""
        return Room(cpus=self._machine.cpus)

    def check(self, job: Job) -> None:
        """Refuse what this machine cannot give to a process.

        Raises
        ------
        ResourceError
            Names the resource.
        """
        check_resources(
            job, machine_cpus=self._machine.cpus, machine_memory_bytes=self._machine.memory_bytes
        )
        for name in ("memory_max", "run_time_max"):
            if job.resources.get(name) is not None:
                raise ResourceError(
                    f"resource {name!r} = {job.resources[name]!r}: nobody watches over the workers "
                    "of this machine; leave it out, or leave out block_allocation"
                )

    def script(self, job: Job) -> str:
        """Return the script that does what is done to start a job."""
        how = profile(job, job.environment)
        return shell_script(
            command(how.python, how.definition, job.index, how.program),
            prologue=how.prologue,
            working_directory=how.working_directory,
            variables=thread_variables(how.cpus),
        )

    def start(self, job: Job, job_id: str) -> _Process:
        """Start a job.

        Raises
        ------
        BackendError
            There is no such interpreter, or no room for one more process.
        """
        how = profile(job, package_environment(job.environment))
        argv = list(command(how.python, how.definition, job.index, how.program))
        if how.prologue:
            argv = ["bash", "-c", shell_script(tuple(argv), prologue=how.prologue)]
        own = {"DASK_BATCH_JOB_ID": job_id, "DASK_BATCH_BACKEND": "workers"}
        out, err = (_log(job, suffix) for suffix in ("out", "err"))
        try:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                cwd=how.working_directory,
                env={**how.environment, **thread_variables(how.cpus), **own},
                start_new_session=True,
            )
        except OSError as error:
            raise BackendError(f"{argv[0]} cannot be started: {error}") from error
        finally:
            os.close(out)
            os.close(err)
        started = _Process(process)
        self._started = [one for one in self._started if one.ended() is None]
        self._started.append(started)
        return started

    def close(self) -> None:
        """End what runs."""
        for started in self._started:
            started.kill()
        for started in self._started:
            started.wait()


class _Process:
    """A process that was started."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def ended(self) -> Ended | None:
        """Return how it has ended; None while it runs."""
        code = self._process.poll()
        if code is None:
            return None
        if code < 0:
            return Ended(JobState.FAILED, signal=-code)
        return Ended(JobState.FAILED if code else JobState.COMPLETED, exit_code=code)

    def kill(self) -> None:
        """Ask it to end; it has a keeper that ends all else."""
        if self._process.poll() is None:
            self._process.terminate()

    def wait(self) -> None:
        """Return when it has ended."""
        try:
            self._process.wait(_GRACE_S + 1)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


def _log(job: Job, suffix: str) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(job.log_directory / f"{job.index}.{suffix}", flags, 0o600)
