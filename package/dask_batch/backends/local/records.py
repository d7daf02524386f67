"""The records that scheduling works on: jobs as they are handed over, wait, and have ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from dask_batch.backends.base import JobState
from dask_batch.backends.gpus import NO_DEVICES, Devices

__all__ = ["NEVER_SATISFIED", "Cap", "Demand", "Entry", "Outcome", "QueuedJob", "RefusedError"]

NEVER_SATISFIED = "DependencyNeverSatisfied"
"""Slurm's word for a job that stays in the queue although one that it waits for has failed."""


class RefusedError(Exception):
    """A hand-over makes no sense; nothing of it was taken. ``name`` is the job at fault."""

    def __init__(self, message: str, name: str) -> None:
        super().__init__(message)
        self.name = name


Cap: TypeAlias = int | Sequence[int | None] | None
"""How many jobs of a group may run at a time; or that, and on how many CPUs together."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What a job takes from the machine while it runs."""

    cpus: int = 1
    memory_bytes: int = 0
    priority: int = 0
    group: str | None = None
    gpus: int = 0
    devices: Devices = NO_DEVICES
    """Those among which its GPUs have to be."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One job of a hand-over."""

    name: str
    demand: Demand
    parents: tuple[int, ...] = ()
    """Positions in this hand-over, each before the job's own."""
    after: tuple[int, ...] = ()
    """Numbers of jobs handed over earlier; those that are unknown count as satisfied."""
    payload: Any = None
    """How to start it: nothing that scheduling looks at."""
    repeatable: bool = False
    """Whether it may be run again after a failure: its dependents outlive that."""
    patient: bool = False
    """Whether it outlives the failure of any job that it waits for."""
    after_failure: tuple[int, ...] = ()
    """Numbers of jobs one of which must have failed; one that is unknown counts as failed."""
    after_end: tuple[int, ...] = ()
    """Numbers of jobs that must have ended; those that are unknown have."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a job ended."""

    state: JobState
    exit_code: int | None = None
    signal: int | None = None
    reason: str = ""
    unbegun: Exception | None = None
    """Why it never began, as it was raised; known where its queue is in the same process."""


@dataclass(slots=True)
class QueuedJob:
    """One job and where it stands."""

    number: int
    name: str
    demand: Demand
    payload: Any
    state: JobState
    repeatable: bool = False
    patient: bool = False
    unmet: set[int] = field(default_factory=set)
    """Parents that have not completed."""
    broken: frozenset[int] = frozenset()
    """Those of them that have failed and may be run again."""
    unended: set[int] | None = None
    """Jobs that have to end before this one starts, however."""
    unfailed: set[int] | None = None
    """Jobs one of which has to fail before this one starts, as long as none has; None: met."""
    children: list[int] = field(default_factory=list)
    """Jobs that wait for this one, in whatever way."""
    turn: int = 0
    """Raised whenever the job is queued for resources: its earlier places are void."""
    passed_over: int = 0
    devices: tuple[str, ...] = ()
    """Which it holds while it runs."""
    outcome: Outcome | None = None

    @property
    def waits(self) -> bool:
        """Whether anything but resources keeps the job from starting."""
        return bool(self.unmet or self.unended or self.unfailed)

    @property
    def reported_state(self) -> JobState:
        """The state to tell: a queued job that waits for a failed one is told apart."""
        stuck = self.broken and not self.state.ended
        return JobState.DEPENDENCY_FAILED if stuck else self.state

    @property
    def reported_outcome(self) -> Outcome | None:
        """What goes with :attr:`reported_state`."""
        if self.broken and not self.state.ended:
            return Outcome(JobState.DEPENDENCY_FAILED, reason=NEVER_SATISFIED)
        return self.outcome
