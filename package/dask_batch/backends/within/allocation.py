"""The Slurm allocation that this process runs in: how much there is for steps."""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from dask_batch.backends.command import run
from dask_batch.backends.within.launcher import Room
from dask_batch.errors import BackendError, BackendUnavailableError

__all__ = [
    "Allocation",
    "cpus_per_node",
    "environment_allocation",
    "read_allocation",
    "this_allocation",
]

logger = logging.getLogger(__name__)

_TIMEOUT_S: Final = 60.0
_NO_STEP: Final = 0xFFFFFFF0
"""Above are the numbers of what only looks like a step: batch script, interactive shell."""
_UNITS: Final = {"": 2**20, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True, slots=True)
class Allocation:
    """A job of Slurm, as one of its processes sees it.

    Attributes
    ----------
    job_id
        Its number.
    cpus
        How many CPUs it has on each of its nodes.
    gpus, memory_bytes
        What it has of these on all its nodes together; None if that is not known.
    in_step
        Whether this process is itself in a step, whose CPUs its own steps have to share.
    on_node
        Whether this process runs on a node of the allocation, and not where ``salloc`` was typed.
    """

    job_id: str
    cpus: tuple[int, ...]
    gpus: int | None
    memory_bytes: int | None
    in_step: bool
    on_node: bool

    @property
    def nodes(self) -> int:
        """How many nodes it has."""
        return len(self.cpus)

    @property
    def room(self) -> Room:
        """What there is for steps together."""
        return Room(cpus=sum(self.cpus), gpus=self.gpus, memory_bytes=self.memory_bytes)

    @property
    def memory_of_node(self) -> int | None:
        """How much memory it has on one node, as far as it is the same on all."""
        return None if self.memory_bytes is None else math.ceil(self.memory_bytes / self.nodes)


def environment_allocation(environ: Mapping[str, str] | None = None) -> Allocation:
    """Return what the environment alone tells of the allocation that this process runs in.

    Raises
    ------
    BackendUnavailableError
        It runs in none.
    """
    environ = os.environ if environ is None else environ
    return read_allocation(_job_id(environ), "", environ)


def _job_id(environ: Mapping[str, str]) -> str:
    job_id = environ.get("SLURM_JOB_ID") or environ.get("SLURM_JOBID")
    if not job_id:
        raise BackendUnavailableError(
            "this process runs in no allocation of Slurm (SLURM_JOB_ID is not set): use "
            "SlurmClusterExecutor, which submits jobs of its own, or start this within salloc or "
            "sbatch"
        )
    return job_id


def this_allocation(environ: Mapping[str, str] | None = None) -> Allocation:
    """Return the allocation that this process runs in, with what Slurm says of it.

    Raises
    ------
    BackendUnavailableError
        It runs in none, or Slurm's commands are not here.
    """
    environ = os.environ if environ is None else environ
    job_id = _job_id(environ)
    try:
        shown = run(["scontrol", "-o", "show", "job", job_id], timeout_s=_TIMEOUT_S).stdout
    except BackendUnavailableError:
        raise
    except BackendError as error:
        # The environment tells most of it; srun itself will say if the job is over.
        logger.info("scontrol does not tell of job %s: %s", job_id, error)
        shown = ""
    return read_allocation(job_id, shown, environ)


def read_allocation(job_id: str, shown: str, environ: Mapping[str, str]) -> Allocation:
    """Return an allocation from what ``scontrol show job`` and the environment say.

    Parameters
    ----------
    job_id
        Its number.
    shown
        The line of ``scontrol -o show job``; may be empty.
    environ
        The environment of a process in it.
    """
    tres = _tres(shown)
    cpus = cpus_per_node(environ.get("SLURM_JOB_CPUS_PER_NODE", ""))
    if not cpus:
        nodes = int(tres.get("node", "1"))
        cpus = (max(1, int(tres.get("cpu", "1")) // nodes),) * nodes
    in_step = _in_step(environ)
    if in_step and environ.get("SLURM_CPUS_ON_NODE", "").isdecimal():
        cpus = (int(environ["SLURM_CPUS_ON_NODE"]),)
    return Allocation(
        job_id=job_id,
        cpus=cpus,
        gpus=_gpus(tres, environ, len(cpus)) if shown or "SLURM_GPUS" in environ else None,
        memory_bytes=None if in_step else _bytes(tres.get("mem", "")),
        in_step=in_step,
        on_node="SLURMD_NODENAME" in environ,
    )


def cpus_per_node(text: str) -> tuple[int, ...]:
    """Read ``SLURM_JOB_CPUS_PER_NODE``.

    >>> cpus_per_node("4(x2),2")
    (4, 4, 2)
    """
    found: list[int] = []
    for cpus, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", text):
        found += [int(cpus)] * int(times or 1)
    return tuple(found)


def _tres(shown: str) -> dict[str, str]:
    """Return what the job was given; from Slurm 23.02 on it is called AllocTRES."""
    for name in ("AllocTRES", "TRES"):
        match = re.search(rf"(?:^|\s){name}=(\S+)", shown)
        if match and "=" in match[1]:
            return dict(item.split("=", 1) for item in match[1].split(",") if "=" in item)
    return {}


def _gpus(tres: Mapping[str, str], environ: Mapping[str, str], nodes: int) -> int:
    if tres.get("gres/gpu", "").isdecimal():
        return int(tres["gres/gpu"])
    for name, times in (("SLURM_GPUS", 1), ("SLURM_GPUS_ON_NODE", nodes)):
        if environ.get(name, "").isdecimal():
            return int(environ[name]) * times
    return 0


def _bytes(text: str) -> int | None:
    match = re.fullmatch(r"([\d.]+)([KMGT]?)", text)
    return None if match is None else int(float(match[1]) * _UNITS[match[2]])


def _in_step(environ: Mapping[str, str]) -> bool:
    step = environ.get("SLURM_STEP_ID", "")
    return step.isdecimal() and int(step) < _NO_STEP
