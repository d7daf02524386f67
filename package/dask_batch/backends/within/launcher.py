"""How a queue in the client's process starts jobs: the seam between the queue and what runs them.

The queue decides which job is next; a launcher starts it: as a step of the allocation, as a job of
the enclosing Flux instance, as a process, or by handing it to a worker that waits for work.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from dask_batch.backends.base import Job, JobState

__all__ = ["Ended", "Launcher", "Room", "Started"]


@dataclass(frozen=True, slots=True)
class Room:
    """What jobs may use together: CPUs, GPUs, memory; None where the launcher sets no bound."""

    cpus: int | None = None
    gpus: int | None = None
    jobs: int | None = None
    """How many jobs may run at a time, whatever they need; those that run are counted."""
    memory_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Ended:
    """How a started job has ended."""

    state: JobState
    exit_code: int | None = None
    signal: int | None = None
    reason: str = ""
    """In words, where an exit code does not say it all."""
    unbegun: Exception | None = None
    """Why it was not even begun, if it was not."""


class Started(Protocol):
    """A job that was started."""

    def ended(self) -> Ended | None:
        """Return how it has ended; None while it runs. Never blocks."""

    def kill(self) -> None:
        """End it, with all that it has started; does not wait for that.

        Called again where the first call did not help: then harder.
        """


class Launcher(Protocol):
    """Starts jobs. Used by one thread at a time: the queue's own, but for ``check``, ``script``.

    Attributes
    ----------
    news
        Called from any thread when ``room`` or a job's ``ended`` may have changed; whose jobs are
        waited for sets it.
    """

    news: Callable[[], None]

    def room(self) -> Room:
        """Return what there is for jobs at this moment (workers come and go)."""

    def check(self, job: Job) -> None:
        """Refuse what cannot be met.

        Raises
        ------
        ConfigurationError
            Names the culprit and the remedy.
        """

    def script(self, job: Job) -> str:
        """Return, for people to read, what would be run for a job."""

    def start(self, job: Job, job_id: str) -> Started:
        """Start a job. The process finds its id in the variable ``DASK_BATCH_JOB_ID``.

        Raises
        ------
        BackendError
            It cannot be started: the job has failed, for that reason.
        """

    def close(self) -> None:
        """Let go of what is held; what runs is ended, since it does not outlive the client."""
