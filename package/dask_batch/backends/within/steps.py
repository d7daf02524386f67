"""Jobs as steps of the Slurm allocation that this process runs in.

``srun --exact`` gives a step the CPUs that it asks for, and no more, for as long as it runs; where
others still have them, it waits by itself. Its memory is the allocation's, shared with the other
steps, unless the task says how much it takes: then Slurm keeps it to that.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
from collections.abc import Callable, Mapping
from typing import Final

from dask_batch.backends.base import Job, JobState
from dask_batch.backends.slurm.options import gpu_option, log_pattern, memory_mb
from dask_batch.backends.within import commands
from dask_batch.backends.within.allocation import Allocation, this_allocation
from dask_batch.backends.within.attached import Attached
from dask_batch.backends.within.entries import share_of
from dask_batch.backends.within.launcher import Ended, Room
from dask_batch.backends.within.processes import ProcessLauncher, StartedProcess, ended_process
from dask_batch.errors import ResourceError
from dask_batch.job.ranks.launch import MPIEXEC
from dask_batch.job.surroundings import STEP_VARIABLE

__all__ = ["StepLauncher", "read_end"]

NAME: Final = "slurm-step"
_MEANINGLESS: Final = {
    "flux_executor_nesting": "instance of Flux",
    "partition": "partition to choose",
    "account": "account to choose",
    "qos": "quality of service to choose",
    "constraint": "node features to choose",
    "reservation": "reservation to choose",
    "job_extra_directives": "directives (use slurm_cmd_args for options of srun)",
    "submission_template": "template",
}
_RESERVED: Final = (
    "--chdir", "--cpus-per-task", "--error", "--help", "--input", "--job-name", "--jobid",
    "--multi-prog", "--nodes", "--ntasks", "--open-mode", "--output", "-D", "-J", "-N", "-c", "-e",
    "-h", "-i", "-n", "-o",
)  # fmt: skip
_OF_A_STEP: Final = (
    "SLURM_CPUS_PER_TASK", "SLURM_CPU_BIND", "SLURM_DISTRIBUTION", "SLURM_GPUS_PER_TASK",
    "SLURM_JOB_NUM_NODES", "SLURM_LAUNCH_NODE", "SLURM_MEM_", "SLURM_NNODES", "SLURM_NPROCS",
    "SLURM_NTASKS", "SLURM_SRUN", "SLURM_STEP", "SLURM_TRES_PER_TASK",
)  # fmt: skip
"""What an srun in an srun would take for its own options."""
_CONNECTION: Final = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT", "SLURM_HET_SIZE")
"""Where to find Slurm; and that a job has several components, or srun would know no default."""
_SIGNALS: Final = (signal.SIGTERM, signal.SIGKILL)
"""srun ends its step by force on the first; if it is killed itself, Slurm does."""


class StepLauncher:
    """Starts ``srun`` for each job; the leader of MPI ranks is a process that calls it itself.

    Parameters
    ----------
    allocation
        Where this process runs.
    environ
        Its environment.
    """

    def __init__(self, allocation: Allocation, environ: Mapping[str, str]) -> None:
        self.news: Callable[[], None] = lambda: None
        self.allocation = allocation
        own = {name: value for name, value in environ.items() if name.startswith("SLURM")}
        self._connection = {
            name: own[name] for name in _CONNECTION if name in own
        } | {"SLURM_JOB_ID": allocation.job_id}  # fmt: skip
        of_leaders = {n: v for n, v in own.items() if not n.startswith(_OF_A_STEP)}
        if allocation.in_step:
            of_leaders["SLURM_OVERLAP"] = "1"
        self._leaders = ProcessLauncher(backend=NAME, variables=of_leaders)

    @classmethod
    def here(cls) -> StepLauncher:
        """Return the launcher for the allocation that this process runs in.

        Raises
        ------
        BackendUnavailableError
            It runs in none, or Slurm's commands are not here.
        """
        return cls(this_allocation(), os.environ)

    def room(self) -> Room:
        """Return what there is for steps."""
        return self.allocation.room

    # ---- before ----------------------------------------------------------------------------

    def check(self, job: Job) -> None:
        """Refuse what the allocation cannot give.

        Raises
        ------
        ResourceError
            It names the job, the resource and the remedy.
        """
        commands.refuse(job, _MEANINGLESS, "a step of an allocation")
        _refuse_reserved(job)
        share, there = share_of(job), self.allocation
        leads = int(job.resources.get("cores") or 1) > 1
        cpus = sum(there.cpus) if leads else max(there.cpus)
        where = "the allocation has" if leads else "its largest node has"
        if share.cpus > cpus:
            raise _too_large(job, f"{share.cpus} CPUs are asked for, {where} {cpus}")
        if share.gpus and there.in_step:
            raise _too_large(
                job, "steps of a process that is itself in a step cannot be given GPUs of their "
                "own: start it in the batch script, or by salloc",
            )  # fmt: skip
        if there.gpus is not None and share.gpus > there.gpus:
            asked = f"{share.gpus} GPUs are asked for"
            raise _too_large(job, f"{asked}, the allocation has {there.gpus}")
        nodes = int(job.resources.get("num_nodes") or 1)
        if nodes > there.nodes:
            raise _too_large(job, f"{nodes} nodes are asked for, the allocation has {there.nodes}")
        memory = there.memory_of_node
        if memory is not None and share.memory_bytes > memory:
            raise _too_large(
                job, f"memory_max={job.resources['memory_max']} (GB): the allocation has "
                f"{memory / 2**30:.4g} GB on a node",
            )  # fmt: skip

    def script(self, job: Job) -> str:
        """Return what is run for a job."""
        if int(job.resources.get("cores") or 1) > 1:
            return self._leaders.script(job)
        stem = job.log_directory / str(job.index)
        argv = [*self._options(job, f"{stem}.err"), *commands.command(job)]
        return commands.script_text(job, argv, {"DASK_BATCH_BACKEND": NAME})

    # ---- starting --------------------------------------------------------------------------

    def start(self, job: Job, job_id: str) -> Attached | StartedProcess:
        """Start a step for a job.

        Raises
        ------
        BackendUnavailableError
            There is no srun.
        """
        if int(job.resources.get("cores") or 1) > 1:
            self._leaders.news = self.news
            return self._leaders.start(job, job_id, _for_ranks(job, self.allocation.nodes))
        out, err = commands.prepare_logs(job)
        with open(out, "ab") as stdout:
            return Attached.start(
                [*self._options(job, err), *commands.command(job)],
                env={**commands.environment(job, job_id, NAME), **self._connection},
                cwd=commands.directory(job),
                stdout=stdout,
                log=err,
                read=read_end,
                signals=_SIGNALS,
                news=self.news,
            )

    def _options(self, job: Job, err: str) -> list[str]:
        wanted = job.resources
        return [
            *("srun", f"--jobid={self.allocation.job_id}", f"--job-name={job.name}"),
            *("--nodes=1", "--ntasks=1", f"--cpus-per-task={wanted.get('threads_per_core') or 1}"),
            *(["--overlap"] if self.allocation.in_step else []),
            "--exact",
            f"--mem={_memory(job)}",
            gpu_option(wanted) or "--gres=none",  # else it would have all of them
            *(f"--error={log_pattern(err)}", "--open-mode=append"),
            *("--input=none", *_mpi(wanted.get("pmi_mode"))),
            *(wanted.get("slurm_cmd_args") or ()),
        ]  # fmt: skip

    def close(self) -> None:
        """Nothing is held."""


def _mpi(mode: str | None) -> tuple[str, ...]:
    """Return the option for a process that uses MPI by itself; srun has a default of the site's."""
    return (f"--mpi={mode}",) if mode and mode != MPIEXEC else ()


def _memory(job: Job) -> str:
    """Return how much memory a step has on a node; 0: what the allocation has, with others."""
    memory = job.resources.get("memory_max")
    return f"{memory_mb(memory)}M" if memory else "0"


def _for_ranks(job: Job, nodes: int) -> dict[str, str]:
    """Return the variables by which the step of a task's ranks leaves to others what is theirs."""
    further = [f"--job-name={job.name}", *(job.resources.get("slurm_cmd_args") or ())]
    variables = {STEP_VARIABLE: shlex.join(further), "SLURM_MEM_PER_NODE": _memory(job)}
    if not job.resources.get("num_nodes"):
        variables["SLURM_JOB_NUM_NODES"] = f"1-{nodes}"  # else it would take a CPU of each
    if not job.resources.get("gpus_per_core"):
        variables["SLURM_GRES"] = "none"
    return variables


def read_end(code: int, said: str) -> Ended:
    """Tell from srun's exit code, and from what it said, how a step has ended.

    Parameters
    ----------
    code
        As :class:`subprocess.Popen` gives it.
    said
        What srun itself wrote to stderr: not what the task did.
    """
    if code <= 0:
        return ended_process(code)
    if re.search(r"task \d+: Out Of Memory|oom-kill|OOM Killed", said, re.IGNORECASE):
        return Ended(JobState.OUT_OF_MEMORY, exit_code=code, reason=_last(said))
    if re.search(r"Node failure|NODE FAIL", said, re.IGNORECASE):
        return Ended(JobState.NODE_FAILURE, exit_code=code, reason=_last(said))
    if re.search(r"tasks? [\d,-]+: ", said):
        return ended_process(code)
    if "srun: " in said:
        return Ended(JobState.FAILED, reason=f"srun could not run its step: {said}")
    return ended_process(code)


def _last(said: str) -> str:
    return said.splitlines()[0] if said else ""


def _refuse_reserved(job: Job) -> None:
    """Refuse options of srun that are this package's own business."""
    for word in job.resources.get("slurm_cmd_args") or ():
        option = word.partition("=")[0] if word.startswith("--") else word[:2]
        fits = [one for one in _RESERVED if one.startswith(option) and len(option) > 1]
        if option in _RESERVED or (option.startswith("--") and len(option) > 2 and fits):
            raise ResourceError(
                f"job {job.name}: resource 'slurm_cmd_args': {option} cannot be given here: "
                "size, name, place and logs of a step come from its other resources"
            )


def _too_large(job: Job, why: str) -> ResourceError:
    return ResourceError(f"job {job.name}: {why}; ask for less, or for a larger allocation")
