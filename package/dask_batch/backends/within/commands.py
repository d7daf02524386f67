"""What the process of a job is: its command, its environment, its directory."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping

from dask_batch.backends import logs
from dask_batch.backends.base import Job
from dask_batch.backends.local.interpreter import package_environment
from dask_batch.backends.local.machine import thread_variables
from dask_batch.backends.local.script import shell_script
from dask_batch.backends.slurm.script import job_command
from dask_batch.errors import ResourceError
from dask_batch.job.surroundings import JOB_VARIABLE, RUN_TIME_VARIABLE

__all__ = [
    "add_to_log",
    "command",
    "directory",
    "environment",
    "prepare_logs",
    "refuse",
    "script_text",
]


def command(job: Job) -> list[str]:
    """Return the command of a job's process; with a prologue it is a shell that becomes it."""
    argv = job_command(job)
    prologue = _prologue(job)
    if not prologue:
        return argv
    return ["bash", "-c", shell_script(tuple(argv), prologue=prologue)]


def _prologue(job: Job) -> str:
    lines = job.resources.get("job_script_prologue") or ""
    return lines if isinstance(lines, str) else "\n".join(lines)


def environment(job: Job, job_id: str, backend: str) -> dict[str, str]:
    """Return the environment of a job's process, its own id in the place of an outer job's."""
    own = {JOB_VARIABLE: job_id, "DASK_BATCH_BACKEND": backend}
    limit_s = job.resources.get("run_time_max")
    if limit_s is not None:
        own[RUN_TIME_VARIABLE] = str(float(limit_s))
    threads = thread_variables(int(job.resources.get("threads_per_core") or 1))
    return {**package_environment(job.environment), **threads, **own}


def directory(job: Job) -> str:
    """Return where a job's process starts; what is wrong with that is for the job to say."""
    wanted = str(job.resources.get("cwd") or job.working_directory)
    return wanted if os.path.isdir(wanted) else os.path.abspath(os.sep)


def prepare_logs(job: Job) -> tuple[str, str]:
    """Make the files of a job's words; return their paths, stdout's first."""
    logs.prepare(job)
    logs.separate(job)
    stem = job.log_directory / str(job.index)
    return f"{stem}.out", f"{stem}.err"


def add_to_log(path: str, said: str) -> None:
    """Append to a job's stderr what was said in its place; what is said of its end tells it too."""
    with contextlib.suppress(OSError), open(path, "a", encoding="utf-8") as log:
        log.write(f"{said}\n")


def script_text(job: Job, argv: list[str], extra: Mapping[str, str]) -> str:
    """Return, for people to read, how a job is started."""
    threads = thread_variables(int(job.resources.get("threads_per_core") or 1))
    return shell_script(
        tuple(argv), working_directory=directory(job), variables={**threads, **extra}
    )


def refuse(job: Job, things: Mapping[str, str], place: str) -> None:
    """Refuse resources of which there is nothing in a place.

    Raises
    ------
    ResourceError
        It names the job, the resource and the remedy.
    """
    for name, what in things.items():
        if job.resources.get(name):
            raise ResourceError(
                f"job {job.name}: resource {name!r} = {job.resources[name]!r}: {place} has no "
                f"{what}; leave it out"
            )
