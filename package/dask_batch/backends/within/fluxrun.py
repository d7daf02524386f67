"""Jobs as jobs of the Flux instance that this process runs in.

Flux's own commands are used: they are wherever an instance is, and need no bindings for this
interpreter. A guard (:mod:`.fluxguard`) follows each job and cancels it when the client is gone.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dask_batch.backends.base import Job, JobState
from dask_batch.backends.command import run
from dask_batch.backends.within import commands
from dask_batch.backends.within.attached import Attached
from dask_batch.backends.within.entries import share_of
from dask_batch.backends.within.launcher import Ended, Room
from dask_batch.backends.within.processes import ProcessLauncher, StartedProcess, ended_process
from dask_batch.errors import BackendUnavailableError, ResourceError

__all__ = ["FluxRunLauncher", "Instance", "read_attached", "this_instance"]

NAME: Final = "flux-step"
_GUARD: Final = str(Path(__file__).with_name("fluxguard.py"))
_TIMEOUT_S: Final = 60.0
_TEMPLATE_MARK: Final = "{{"
_MEANINGLESS: Final = {
    "memory_max": "limit of memory (Flux sets none)",
    "exclusive": "whole nodes to itself",
    "openmpi_oversubscribe": "more ranks than CPUs",
    "partition": "partition to choose",
    "account": "account to choose",
    "qos": "quality of service to choose",
    "constraint": "node features to choose",
    "gpu_request": "sbatch",
    "reservation": "reservation to choose",
    "slurm_cmd_args": "srun",
    "job_extra_directives": "directives",
    "submission_template": "template",
}


@dataclass(frozen=True, slots=True)
class Instance:
    """What a Flux instance has that is up: nodes, cores, GPUs."""

    nodes: int
    cores: int
    gpus: int


def this_instance(environ: Mapping[str, str] | None = None) -> Instance:
    """Return the Flux instance that this process runs in.

    Raises
    ------
    BackendUnavailableError
        It runs in none, or Flux's commands are not here.
    CommandError
        The instance does not answer.
    """
    environ = os.environ if environ is None else environ
    uri = environ.get("FLUX_URI")
    if not uri:
        raise BackendUnavailableError(
            "this process runs in no instance of Flux (FLUX_URI is not set): use "
            "FluxClusterExecutor, or start this by `flux start` or `flux batch`"
        )
    if shutil.which("flux") is None:
        raise BackendUnavailableError("FLUX_URI is set, and the command `flux` is not on PATH")
    argv = ["flux", "resource", "list", "-s", "up", "-n", "-o", "{nnodes} {ncores} {ngpus}"]
    said = run(argv, timeout_s=_TIMEOUT_S, env={**os.environ, "FLUX_URI": uri}).stdout
    rows = [list(map(int, line.split())) for line in said.splitlines() if line.strip()]
    return Instance(*(sum(column) for column in zip(*rows, strict=True)))


class FluxRunLauncher:
    """Starts a job of Flux for each job; the leader of MPI ranks is a process that does it itself.

    Parameters
    ----------
    instance
        Where this process runs.
    uri
        How it is reached.
    """

    def __init__(self, instance: Instance, uri: str) -> None:
        self.news: Callable[[], None] = lambda: None
        self.instance = instance
        self._own = {"FLUX_URI": uri}
        self._leaders = ProcessLauncher(backend=NAME, variables=self._own)

    @classmethod
    def here(cls) -> FluxRunLauncher:
        """Return the launcher for the instance that this process runs in.

        Raises
        ------
        BackendUnavailableError, CommandError
            It runs in none, or that does not answer.
        """
        return cls(this_instance(), os.environ["FLUX_URI"])

    def room(self) -> Room:
        """Return what there is for jobs; where others use the instance, Flux has them wait."""
        return Room(cpus=self.instance.cores, gpus=self.instance.gpus)

    # ---- before ----------------------------------------------------------------------------

    def check(self, job: Job) -> None:
        """Refuse what the instance cannot give.

        Raises
        ------
        ResourceError
            It names the job, the resource and the remedy.
        """
        commands.refuse(job, _MEANINGLESS, "a job inside an instance of Flux")
        _refuse_marks(job)
        share, there = share_of(job), self.instance
        for what, asked, given in (
            ("cores", share.cpus, there.cores),
            ("GPUs", share.gpus, there.gpus),
            ("nodes", int(job.resources.get("num_nodes") or 1), there.nodes),
        ):
            if asked > given:
                raise ResourceError(
                    f"job {job.name}: {asked} {what} are asked for, the instance of Flux has "
                    f"{given}; ask for less, or for a larger instance"
                )

    def script(self, job: Job) -> str:
        """Return what is run for a job."""
        if int(job.resources.get("cores") or 1) > 1:
            return self._leaders.script(job)
        stem = job.log_directory / str(job.index)
        argv = ["flux", "submit", *self._options(job, (f"{stem}.out", f"{stem}.err"))]
        extra = {"DASK_BATCH_BACKEND": NAME}
        return commands.script_text(job, [*argv, *_command(job)], extra)

    # ---- starting --------------------------------------------------------------------------

    def start(self, job: Job, job_id: str) -> Attached | StartedProcess:
        """Start a job.

        Raises
        ------
        BackendUnavailableError
            It cannot be started.
        """
        if int(job.resources.get("cores") or 1) > 1:
            self._leaders.news = self.news
            return self._leaders.start(job, job_id)
        logs = commands.prepare_logs(job)
        return Attached.start(
            # A SIGTERM makes the guard cancel it, and Flux ends it by force after a while.
            [sys.executable, "-I", "-S", _GUARD, *self._options(job, logs), *_command(job)],
            env={**commands.environment(job, job_id, NAME), **self._own},
            cwd=commands.directory(job),
            log=logs[1],
            read=read_attached,
            news=self.news,
        )

    def _options(self, job: Job, logs: tuple[str, str]) -> list[str]:
        wanted = job.resources
        gpus = int(wanted.get("gpus_per_core") or 0)
        return [
            *(f"--job-name={job.name}", "--ntasks=1"),
            f"--cores-per-task={wanted.get('threads_per_core') or 1}",
            *([f"--gpus-per-task={gpus}", "-o", "gpu-affinity=per-task"] if gpus else []),
            *(f"--output={logs[0]}", f"--error={logs[1]}", "-o", "output.mode=append"),
        ]

    def close(self) -> None:
        """Nothing is held."""


def _refuse_marks(job: Job) -> None:
    """Refuse what Flux would replace: what stands between braces in commands and paths of logs.

    The leader of ranks is no job of Flux, and keeps its braces.
    """
    if int(job.resources.get("cores") or 1) > 1:
        return
    python, prologue = (job.resources.get(name) for name in ("python", "job_script_prologue"))
    for what, text, remedy in (
        ("the cache directory", f"{job.definition} {job.log_directory}", "choose another one"),
        ("resource 'python'", python, "choose another interpreter"),
        ("resource 'job_script_prologue'", prologue, "put these lines into a file, and source it"),
    ):
        if _TEMPLATE_MARK in str(text or ""):
            raise ResourceError(
                f"job {job.name}: {what}: Flux would replace what is between {_TEMPLATE_MARK!r} "
                f"and '}}}}' in {str(text)!r}; {remedy}"
            )


def _command(job: Job) -> list[str]:
    """Return what Flux is to run: the job, in an instance of its own where that is asked for."""
    nested = ["flux", "start"] if job.resources.get("flux_executor_nesting") else []
    return [*nested, *commands.command(job)]


def read_attached(code: int, said: str) -> Ended:
    """Tell from what ``flux job attach`` ended with, and said, how a job has ended."""
    exception = re.search(r"job\.exception .*?type=(\S+) severity=0 ?(.*)", said)
    if exception is not None:
        kind, note = exception[1], exception[2].strip()
        if kind == "cancel":
            return Ended(JobState.CANCELLED, reason=note or "it was cancelled")
        if kind == "timeout":
            return Ended(JobState.TIMEOUT, exit_code=code, reason=note)
        if kind in ("node-failure", "lost-shell"):
            return Ended(JobState.NODE_FAILURE, exit_code=code, reason=note)
        return Ended(JobState.FAILED, reason=f"Flux could not run it: {note} ({kind})")
    if code <= 0 or re.search(r"task\(s\)", said):
        return ended_process(code)
    return Ended(JobState.FAILED, reason=f"Flux could not run it: {said}")
