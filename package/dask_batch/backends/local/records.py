"""The records that scheduling works on: jobs as they are handed over, wait, and have ended."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from dask_batch.backends.base import JobState

__all__ = ["Demand", "Entry", "Outcome", "QueuedJob", "RefusedError"]


class RefusedError(Exception):
    """A hand-over makes no sense; nothing of it was taken. ``name`` is the job at fault."""

    def __init__(self, message: str, name: str) -> None:
        super().__init__(message)
        self.name = name


@dataclass(frozen=True, slots=True)
class Demand:
    """What a job takes from the machine while it runs."""

    cpus: int = 1
    memory_bytes: int = 0
    priority: int = 0
    group: str | None = None


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


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a job ended."""

    state: JobState
    exit_code: int | None = None
    signal: int | None = None
    reason: str = ""


@dataclass(slots=True)
class QueuedJob:
    """One job and where it stands."""

    number: int
    name: str
    demand: Demand
    payload: Any
    state: JobState
    unmet: int = 0
    """How many parents have not completed."""
    children: list[int] = field(default_factory=list)
    passed_over: int = 0
    outcome: Outcome | None = None
