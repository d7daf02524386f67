"""One job, as the controller knows it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

__all__ = ["ACTIVE", "JobRecord", "exit_pair"]

ACTIVE = frozenset({"PENDING", "RUNNING", "COMPLETING", "SUSPENDED", "CONFIGURING"})
"""What ``squeue`` lists without ``-t``."""


@dataclass(slots=True, kw_only=True)
class JobRecord:
    """One job; all of it can be written as JSON."""

    job_id: int
    folder: str
    """Where its script, its environment and its steps' records are."""
    name: str
    uid: int
    account: str
    partition: str
    cwd: str
    command: str
    stdin: str
    stdout: str
    stderr: str
    append: bool
    umask: int
    arguments: list[str]
    tasks: int
    cpus_per_task: int
    nodes: int
    memory_mb: int
    """On each node."""
    gpus: int
    exclusive: bool
    limit_min: float
    nice: int
    comment: str
    requeue: bool
    kill_on_invalid: bool
    signal: str
    """As ``--signal`` gave it."""
    dependency: str
    held: bool
    begin: float = 0.0
    variables: dict[str, str] = field(default_factory=dict)
    """Variables of the request that the job finds in its environment."""

    state: str = "PENDING"
    reason: str = "None"
    ending: str = ""
    """The state that a running job ends in, once its processes are gone."""
    again: str = ""
    """Whether it is put back to the queue after that: ``requeue`` or ``hold``."""
    cancelled_by: int | None = None
    status: int = 0
    """As wait(2) gives it."""
    submitted: float = field(default_factory=time.time)
    started: float = 0.0
    ended: float = 0.0
    kill_at: float = 0.0
    """When SIGKILL follows the SIGTERM of a job that is ending."""
    warned: bool = False
    restarts: int = 0
    runs: int = 0
    """How often it was started: the number in the names of its steps' records."""
    allocation: dict[str, list[int]] = field(default_factory=dict)
    """By node: CPUs, memory, and the numbers of the GPUs."""
    step: int = 0
    """The process id of its step."""
    ghost: bool = False
    """Whether the controller does not notice that its processes have gone."""

    @property
    def word(self) -> str:
        """Its state as ``squeue`` prints it."""
        return "COMPLETING" if self.state == "RUNNING" and self.ending else self.state

    @property
    def active(self) -> bool:
        """Whether it has not ended."""
        return self.state in ACTIVE

    @property
    def cpus(self) -> int:
        """How many CPUs it asks for."""
        return self.tasks * self.cpus_per_task

    @property
    def run_time_s(self) -> float:
        """How long it has run, or ran."""
        if not self.started:
            return 0.0
        return max(0.0, (self.ended or time.time()) - self.started)


def exit_pair(job: JobRecord) -> str:
    """Return ``CODE:SIGNAL`` as the accounting has it: nothing of what Slurm itself killed."""
    if job.state == "OUT_OF_MEMORY":
        return "0:125"
    if job.state in ("CANCELLED", "TIMEOUT", "PREEMPTED", "REQUEUED", "NODE_FAIL"):
        return "0:0"
    signal = job.status & 0x7F
    return f"0:{signal}" if signal else f"{job.status >> 8 & 0xFF}:0"
