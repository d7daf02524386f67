"""What a batch system must offer: the seam between the engine and Slurm, Flux, the local queue.

A backend knows nothing of tasks, results or the cache. It is given :class:`Job` records, hands
them to its batch system as a whole, and reports what became of them in :class:`JobStatus` records.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

__all__ = ["NO_LOGS", "Backend", "Job", "JobState", "JobStatus", "tells_at_once"]

NO_LOGS = "the node could not open the job's log files"
"""The reason of a job that a batch system has ended for that."""


class JobState(enum.Enum):
    """The states that a job can be in, whatever the batch system calls them."""

    HELD = "held"
    WAITING = "waiting"
    """Queued: for resources or for its dependencies."""
    RUNNING = "running"
    ENDING = "ending"
    """Still at the batch system, but past its body."""
    COMPLETED = "completed"
    FAILED = "failed"
    TIMEOUT = "timeout"
    OUT_OF_MEMORY = "out of memory"
    NODE_FAILURE = "node failure"
    PREEMPTED = "preempted"
    CANCELLED = "cancelled"
    DEPENDENCY_FAILED = "dependency failed"
    """It will never start, or was removed, because a job it waits for did not succeed."""
    LOST = "lost"
    """The batch system answered, and has lost its way with the job: its memory of it is gone, or it
    will not start it for a reason of its own."""
    UNKNOWN = "unknown"
    """A word that this version does not know: not finished, as far as we can tell."""

    @property
    def ended(self) -> bool:
        """Whether a job in this state will do no more."""
        return self not in _NOT_ENDED


_NOT_ENDED = frozenset(
    {JobState.HELD, JobState.WAITING, JobState.RUNNING, JobState.ENDING, JobState.UNKNOWN}
)


@dataclass(frozen=True, slots=True)
class JobStatus:
    """What a batch system says about one job."""

    job_id: str
    state: JobState
    word: str = ""
    """The batch system's own word for the state."""
    exit_code: int | None = None
    signal: int | None = None
    reason: str = ""
    source: str = ""
    """Who said so: ``squeue``, ``sacct``, ``local queue``."""
    name: str = ""
    """The job's name, where the batch system tells it: ids can be given out a second time."""
    unbegun: Exception | None = None
    """Why it never began, where the queue is one of this process and knows."""
    restarts: int | None = None
    """How often the job was put back into the queue, where the batch system tells it."""


@dataclass(frozen=True, slots=True)
class Job:
    """One job to be: how to start it, what it needs, what it waits for."""

    name: str
    """Unique, in ``[A-Za-z0-9_.-]``: the function's name, the run's id, the index."""
    definition: Path
    """The task-definition file ..."""
    index: int
    """... and which of its tasks this job runs: both are the arguments of its program."""
    resources: Mapping[str, Any]
    """Checked and complete: see :mod:`dask_batch.configuration.resources`."""
    parents: tuple[str, ...] = ()
    """Names of jobs of the same hand-over that must succeed first."""
    after: tuple[str, ...] = ()
    """Ids of jobs handed over earlier, known to be unfinished, that must succeed first."""
    log_directory: Path = Path()
    """Where stdout and stderr go: ``<index>.out`` and ``<index>.err``."""
    working_directory: Path = Path()
    """The client's working directory, where the function will run."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """The client's environment, scheduler variables already taken out."""
    preload: tuple[str, ...] = ()
    """Library modules that the task will import: a hint for warm workers."""
    program: str = "dask_batch.job"
    """The module that is run (``python -m``)."""
    repeatable: bool = False
    """Whether it may be run again after a failure (:meth:`Backend.rerun`): jobs that wait for it
    must outlive its failure, and stay queued until they are cancelled or it has succeeded."""
    patient: bool = False
    """Whether one of the jobs in ``after`` may be run again, so that this one must outlive its
    failure. For ``parents`` the backend sees that by itself."""
    after_failure: tuple[str, ...] = ()
    """Ids of jobs one of which must have failed first, however; if all succeed, this job is
    dropped. Such a job is not held."""
    after_end: tuple[str, ...] = ()
    """Ids of jobs all of which must have ended first, however. Such a job is not held."""


class Backend(Protocol):
    """A batch system. One instance is used by one engine, from one thread at a time."""

    name: str
    """As in ``backend=``, in claims and in ``status``."""

    shared: bool
    """Whether others ask the same batch system, so that it must be asked politely."""

    # ``prompt``, where a backend has it: see :func:`tells_at_once`.

    default_max_jobs: int | None
    """The bound of ``max_jobs`` when the user gave none."""

    def check(self, jobs: Sequence[Job]) -> None:
        """Find what is wrong with jobs before any is submitted.

        Raises
        ------
        ConfigurationError
            An unknown resource, a template that fails, a request larger than the machine: names
            the culprit and the remedy.
        BackendUnavailableError
            The batch system is not there.
        """

    def script(self, job: Job, dependency: Sequence[str] = ()) -> str:
        """Return the script that would be submitted for a job."""

    def submit(self, jobs: Sequence[Job], accepted: Callable[[str, str], None]) -> None:
        """Hand over jobs, parents before children; those without parents in this hand-over *held*.

        Parameters
        ----------
        jobs
            In an order in which parents come first.
        accepted
            Called with the job's name and its id as soon as the batch system has taken it.

        Raises
        ------
        SubmissionError
            A job was refused. What was accepted before it is still held: the caller cancels it.
            The error's attribute ``job_name`` names the job.
        QueueFullError
            The batch system takes no more jobs of this user for now. What was accepted before is
            of use: no accepted job waits for one that was not.
        """

    def release(self, job_ids: Sequence[str]) -> None:
        """Let held jobs go (those of one hand-over, together)."""

    def rerun(self, job: Job, job_id: str, dependents: Mapping[str, Sequence[str]]) -> str:
        """Run a job that has ended once more, in its place: what waits for it goes on waiting.

        Calling this twice does no harm: a job that is queued or running again is left alone.

        Parameters
        ----------
        job
            The job, with the resources that it is to have this time.
        job_id
            Its id.
        dependents
            For each queued job that waits for it directly, by id: the ids of all jobs that must
            succeed before that one, this job's among them.

        Returns
        -------
        str
            The job's id: the same one; or, where the batch system has forgotten the job, that of
            a new one of the same name, for which the dependents now wait.

        Raises
        ------
        JobEndingError
            The job has not ended altogether; it may be tried again.
        SubmissionError, CommandError, BackendUnavailableError
            It could not be done; it may be tried again.
        """

    def status(self, job_ids: Collection[str]) -> dict[str, JobStatus]:
        """Ask once, for all jobs. An id that is missing in the answer means *don't know*.

        Raises
        ------
        CommandError, BackendUnavailableError
            No answer is to be had now; nothing may be concluded from that.
        """

    def find(self, names: Collection[str]) -> dict[str, str]:
        """Look up job ids by unique job names; those of ended jobs as far as they are known."""

    def cancel(self, job_ids: Collection[str]) -> None:
        """End jobs, waiting or running. Unknown and ended ids are no error."""

    def wait(self, timeout_s: float) -> None:
        """Return after ``timeout_s``, or earlier on news of a job or a call of :meth:`wake`."""

    def wake(self) -> None:
        """End a :meth:`wait` of another thread, or the next one. The one method for any thread."""

    def close(self) -> None:
        """Let go of connections. Jobs go on."""


def tells_at_once(backend: Backend) -> bool:
    """Whether a backend is told at once what becomes of jobs, so that asking it costs nothing.

    One that is not shared is. A shared one says so by an attribute ``prompt``.
    """
    return bool(getattr(backend, "prompt", not backend.shared))
