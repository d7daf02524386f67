"""The surroundings of a function in a job: those of the client that asked for it."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any

__all__ = [
    "CHECKPOINT_VARIABLE",
    "JOB_VARIABLE",
    "OF_A_JOB",
    "RUN_TIME_VARIABLE",
    "STEP_VARIABLE",
    "WORKER_VARIABLE",
    "enter",
    "extend_path",
    "inside_job",
    "job_id",
]

JOB_VARIABLE = "DASK_BATCH_JOB_ID"
"""Set in every job and in what it starts: whoever sees it is not a client by accident."""

CHECKPOINT_VARIABLE = "DASK_BATCH_CHECKPOINTS"
"""Set while a task runs: where it may leave what its next attempt is to find."""

RUN_TIME_VARIABLE = "DASK_BATCH_RUN_TIME_S"
"""Set where whoever started this job keeps to its time limit exactly, in seconds."""

STEP_VARIABLE = "DASK_BATCH_STEP_OPTIONS"
"""Set for the leader of ranks in an allocation: further options of the ``srun`` for them."""

WORKER_VARIABLE = "DASK_BATCH_WORKER"
"""Set in a worker that stays: its place among the workers of its client, counted from 0."""

OF_A_JOB = frozenset(
    {
        "DASK_BATCH_BACKEND",
        CHECKPOINT_VARIABLE,
        JOB_VARIABLE,
        RUN_TIME_VARIABLE,
        STEP_VARIABLE,
        WORKER_VARIABLE,
    }
)
"""What makes a process a job, and is not for the jobs that it hands over."""

_BACKEND_IDS = ("SLURM_JOB_ID", "FLUX_JOB_ID", "PBS_JOBID", "LSB_JOBID", "MOAB_JOBID", "JOB_ID")
"""The last one is Grid Engine's."""


def inside_job() -> bool:
    """Whether this process runs inside a job of dask-batch."""
    return JOB_VARIABLE in os.environ


def job_id() -> str:
    """Return the id that the batch system gave to the job this process is."""
    given = os.environ.get(JOB_VARIABLE)
    if given:
        return given
    told = next((os.environ[name] for name in _BACKEND_IDS if os.environ.get(name)), "")
    # Flux's own way to write it begins with a letter that is not ASCII; it reads both.
    return f"f{told[1:]}" if told.startswith("\u0192") else told


def enter(surroundings: Mapping[str, Any], *, cpus: int) -> None:
    """Take over the client's working directory and umask; tame Dask.

    The cache's own files do not follow the umask: they are made owner-only, whatever it is.

    Raises
    ------
    OSError
        The working directory does not exist here, or may not be entered.
    """
    os.environ[JOB_VARIABLE] = job_id() or "unknown"
    os.umask(int(surroundings["umask"]))
    os.chdir(surroundings["working_directory"])
    _quiet_dask(cpus)


def extend_path(surroundings: Mapping[str, Any]) -> None:
    """Find modules also where the client does: after all that this interpreter has itself."""
    present = set(sys.path)
    sys.path.extend(entry for entry in surroundings["module_path"] if entry not in present)


def _quiet_dask(cpus: int) -> None:
    """Make Dask compute in this process, whatever the client's configuration said."""
    for name in [name for name in os.environ if name.startswith("DASK_BATCH__")]:
        del os.environ[name]
    scheduler = "threads" if cpus > 1 else "synchronous"
    os.environ["DASK_SCHEDULER"] = scheduler
    os.environ["DASK_NUM_WORKERS"] = str(cpus)
    if "dask" in sys.modules:  # a warm worker has it already, and it has read its environment
        import dask

        dask.config.set(scheduler=scheduler, num_workers=cpus)
