"""One job through ``sbatch``: what is repeated, what is looked up first, what is refused."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from dask_batch.backends import logs
from dask_batch.backends.base import Job
from dask_batch.backends.command import Completed, command_environment, run
from dask_batch.backends.patience import PATIENCE_S, Patience, Waiting
from dask_batch.backends.slurm.options import SBATCH_VARIABLES, thread_variables
from dask_batch.backends.slurm.parse import parse_job_id
from dask_batch.backends.slurm.refusals import SATURATED, Meaning, advice, meaning
from dask_batch.errors import BackendError, CommandError, QueueFullError, SubmissionError
from dask_batch.job.devices import without_lists

__all__ = ["Submitter", "submission_environment"]

logger = logging.getLogger(__name__)

SUBMIT_TIMEOUT_S = 150.0
"""Longer than the time for which sbatch itself goes on trying."""
SATURATED_S = 10.0
"""How long sbatch may go on trying once it has said that the whole queue is full."""
_HIDDEN_PAUSES_S = (1.0, 4.0)
"""Before the look-ups of a job whose id a wrapper does not print."""

_ALWAYS_DROPPED = frozenset(
    f"SBATCH_{name}"
    for name in (
        *("ARRAY_INX", "CLUSTERS", "DEPENDENCY", "ERROR", "EXPORT", "INPUT", "JOB_NAME"),
        *("NO_REQUEUE", "OUTPUT", "REQUEUE", "SIGNAL", "WAIT"),
    )
)
"""Settings of a user's environment that would undo what a submission relies on."""


def submission_environment(job: Job) -> dict[str, str]:
    """Return the environment for ``sbatch``, which the job inherits (``--export=ALL``).

    It is the client's own, without its ``SBATCH_*`` where a resource says otherwise: an
    environment variable would override the line in the script. Nor does it carry the client's
    numbers of threads and its lists of GPUs, which were meant for another machine.
    """
    dropped = set(_ALWAYS_DROPPED) | set(thread_variables(job.resources))
    for name, variables in SBATCH_VARIABLES.items():
        if job.resources.get(name) is not None:
            dropped.update(variables)
    environment = {
        name: value for name, value in without_lists(job.environment).items() if name not in dropped
    }
    connection = {
        name: value for name, value in command_environment().items() if name.startswith("SLURM_")
    }
    return {**environment, **connection}


class Submitter:
    """Submits jobs one by one; safe to call from several threads.

    Parameters
    ----------
    find
        Looks up the ids of queued jobs by their unique names.
    busy
        Whether the user has jobs in the queue.
    waiting
        How to wait when Slurm does not answer.
    """

    def __init__(
        self,
        find: Callable[[Collection[str]], Mapping[str, str]],
        busy: Callable[[], bool],
        waiting: Waiting,
    ) -> None:
        self._find = find
        self._busy = busy
        self._waiting = waiting

    def __call__(
        self, job: Job, arguments: Sequence[str], script: str, *, total_s: float = PATIENCE_S
    ) -> str:
        """Submit one job and return its id, within so many seconds.

        A failure that leaves open whether the job was taken is cleared up by its unique name
        before anything is repeated; as long as the look-up fails as well, nothing is.

        Raises
        ------
        SubmissionError
            The job was refused, or Slurm does not answer; ``job_name`` names the job. In the
            second case the :class:`CommandError` is its cause, and the job may have been taken.
        QueueFullError
            Slurm takes no more jobs for now.
        """
        path = write_script(job, script)
        logs.prepare(job)
        argv = ["sbatch", *arguments, str(path)]
        patience = Patience(self._waiting, f"submitting job {job.name}", total_s=total_s)
        doubted = False
        while True:
            outcome = self._once(job, argv, path)
            if isinstance(outcome, str):
                return outcome
            what = self._meaning(outcome)
            if what is Meaning.PERHAPS_FULL and not doubted:
                doubted = True  # the last of the jobs may have ended between the two questions
                continue
            if what in (Meaning.REFUSED, Meaning.PERHAPS_FULL):
                raise _refusal(SubmissionError, job, outcome, path)
            if what is Meaning.FULL:
                raise _refusal(QueueFullError, job, outcome, path)
            found = self._cleared_up(job, outcome, patience)
            if found is not None:
                return found
            if outcome.returncode == 0:  # a wrapper that hides ids might change names as well
                raise _refusal(SubmissionError, job, outcome, path)
            if SATURATED.search(outcome.stderr):
                raise _refusal(QueueFullError, job, outcome, path)

    def _once(self, job: Job, argv: Sequence[str], path: Path) -> str | CommandError:
        """Run sbatch once: return the id, or what went wrong."""
        try:
            done = _run_sbatch(argv, submission_environment(job), path.parent)
        except CommandError as error:
            return error
        job_id = parse_job_id(done.stdout)
        return job_id or CommandError(tuple(argv), 0, done.stdout, done.stderr)

    def _meaning(self, failure: CommandError) -> Meaning:
        what = meaning(failure)
        if what is not Meaning.PERHAPS_FULL:
            return what
        try:
            # Of a user without jobs no number of jobs can be at its limit.
            return Meaning.FULL if self._busy() else what
        except BackendError as error:
            logger.debug("whether there are jobs in the queue cannot be told: %s", error)
            return Meaning.FULL

    def _cleared_up(self, job: Job, failure: CommandError, patience: Patience) -> str | None:
        """Return the id of a job that was taken after all; None if it was not, for certain.

        Raises
        ------
        SubmissionError
            There is no more time to find out, or to submit it again.
        """
        hidden = failure.returncode == 0
        if hidden:
            return self._looked_up_twice(job.name)
        while True:
            if not patience.pause(failure.stderr):
                raise _refusal(SubmissionError, job, failure, _script_path(job)) from failure
            try:
                return self._find([job.name]).get(job.name)
            except BackendError as error:
                logger.debug("the look-up of %s failed as well: %s", job.name, error)

    def _looked_up_twice(self, name: str) -> str | None:
        for pause_s in _HIDDEN_PAUSES_S:
            if self._waiting.pause(pause_s):
                return None
            try:
                found = self._find([name]).get(name)
            except BackendError as error:
                logger.debug("the look-up of %s failed: %s", name, error)
            else:
                if found is not None:
                    return found
        return None


def _run_sbatch(argv: Sequence[str], environment: Mapping[str, str], cwd: Path) -> Completed:
    """Run sbatch, but not for the minutes for which it waits at a full queue."""
    since: list[float] = []

    def too_long(stderr: str) -> bool:
        if SATURATED.search(stderr):
            since.append(time.monotonic())
        return bool(since) and time.monotonic() - since[0] > SATURATED_S

    return run(argv, timeout_s=SUBMIT_TIMEOUT_S, env=environment, cwd=cwd, give_up=too_long)


def _script_path(job: Job) -> Path:
    return job.log_directory / f"{job.index}.sh"


def write_script(job: Job, script: str) -> Path:
    """Write a job's script beside its logs, for its owner alone."""
    job.log_directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = _script_path(job)
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(path, flags, 0o600), "w", encoding="utf-8") as file:
        file.write(script)
    return path


def _refusal(
    kind: type[SubmissionError], job: Job, failure: CommandError, script: Path
) -> SubmissionError:
    words = failure.stderr + failure.stdout
    if failure.returncode is None:
        words += "sbatch did not end in time\n"
    refusal = kind(
        1 if failure.returncode is None else failure.returncode,
        list(failure.argv),
        words,
        script=script,
        advice=advice(words),
    )
    refusal.job_name = job.name
    return refusal
