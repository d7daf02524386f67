"""One job through a batch system's submit command: what is looked up first, what is refused."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from dask_batch.backends import logs
from dask_batch.backends.base import Job
from dask_batch.backends.command import run
from dask_batch.backends.commands.asking import is_temporary
from dask_batch.backends.commands.script import arguments, script_text, write_environment
from dask_batch.backends.commands.system import System, Waits
from dask_batch.backends.patience import Patience, Waiting
from dask_batch.backends.slurm.submission import write_script
from dask_batch.errors import BackendError, CommandError, QueueFullError, SubmissionError

__all__ = ["Submitter"]

logger = logging.getLogger(__name__)

SUBMIT_TIMEOUT_S = 150.0


class Submitter:
    """Submits jobs one by one; safe to call from several threads.

    Parameters
    ----------
    system
        Where to.
    command
        The command that runs a job's task.
    find
        Looks up the ids of jobs by their unique names.
    ended
        Tells which of some jobs have ended, or are not known.
    waiting
        How to wait when the system does not answer.
    """

    def __init__(
        self,
        system: System,
        command: Callable[[Job], Sequence[str]],
        find: Callable[[Collection[str]], Mapping[str, str]],
        ended: Callable[[Collection[str]], Collection[str]],
        waiting: Waiting,
    ) -> None:
        self._system = system
        self._command = command
        self._find = find
        self._ended = ended
        self._waiting = waiting

    def __call__(self, job: Job, waits: Waits, *, hold: bool) -> str:
        """Submit one job and return its id.

        A failure that leaves open whether the job was taken is cleared up by its unique name
        before anything is repeated; as long as the look-up fails as well, nothing is.

        Raises
        ------
        SubmissionError
            The job was refused, or the system does not answer; ``job_name`` names the job.
        QueueFullError
            It takes no more jobs for now.
        """
        script = script_text(self._system, job, self._command(job))
        path = write_script(job, script)
        write_environment(job)
        logs.prepare(job)
        patience = Patience(self._waiting, f"submitting job {job.name}")
        words = self._system.words
        while True:
            argv = self._argv(job, waits, script, path, hold=hold)
            outcome = self._once(argv, script, path)
            if isinstance(outcome, str):
                return outcome
            said = outcome.stderr + outcome.stdout
            if words.full.search(said):
                raise self._refusal(QueueFullError, job, outcome, path)
            if outcome.returncode == 0 or is_temporary(words, outcome):
                found = self._cleared_up(job, outcome, patience, path)
                if found is not None:
                    return found
                if outcome.returncode == 0:  # a wrapper that hides ids, and perhaps names
                    raise self._refusal(SubmissionError, job, outcome, path)
                continue
            fewer = self._without_ended(job, waits, said)
            if fewer == waits:
                raise self._refusal(SubmissionError, job, outcome, path)
            waits = fewer

    def _argv(self, job: Job, waits: Waits, script: str, path: Path, *, hold: bool) -> list[str]:
        said = arguments(self._system, job, waits, script, hold=hold)
        return [*self._system.submit, *said, *([] if self._system.by_stdin else [str(path)])]

    def _once(self, argv: Sequence[str], script: str, path: Path) -> str | CommandError:
        """Submit once: return the id, or what went wrong."""
        text = script if self._system.by_stdin else None
        try:
            done = run(argv, timeout_s=SUBMIT_TIMEOUT_S, input=text, cwd=path.parent)
        except CommandError as error:
            return error
        ids = self._system.job_id.findall(done.stdout)
        return ids[-1] if ids else CommandError(tuple(argv), 0, done.stdout, done.stderr)

    def _without_ended(self, job: Job, waits: Waits, said: str) -> Waits:
        """Leave out jobs of earlier hand-overs that have ended since: not to be waited for.

        The job looks itself whether what it needs is there.
        """
        earlier = {*job.after, *job.after_end, *job.after_failure}
        if not earlier or not self._system.words.dependency.search(said):
            return waits
        gone = set(self._ended(earlier))
        logger.info("job %s need not wait for %s any more", job.name, ", ".join(sorted(gone)))

        def left(ids: Sequence[str]) -> tuple[str, ...]:
            return tuple(job_id for job_id in ids if job_id not in gone)

        return replace(
            waits,
            successes=left(waits.successes),
            ends=left(waits.ends),
            failures=left(waits.failures),
        )

    def _cleared_up(
        self, job: Job, failure: CommandError, patience: Patience, path: Path
    ) -> str | None:
        """Return the id of a job that was taken after all; None if it was not, for certain.

        Raises
        ------
        SubmissionError
            There is no more time to find out, or to submit it again.
        """
        while True:
            if not patience.pause(failure.stderr):
                raise self._refusal(SubmissionError, job, failure, path)
            try:
                return self._find([job.name]).get(job.name)
            except BackendError as error:
                logger.debug("the look-up of %s failed as well: %s", job.name, error)

    def _refusal(
        self, kind: type[SubmissionError], job: Job, failure: CommandError, script: Path
    ) -> SubmissionError:
        words = failure.stderr + failure.stdout
        if failure.returncode is None:
            words += f"{failure.argv[0]} did not end in time\n"
        advice = (
            text
            for sign, text in self._system.words.advice
            if re.search(sign, words, re.IGNORECASE)
        )
        refusal = kind(
            1 if failure.returncode is None else failure.returncode,
            list(failure.argv),
            words,
            script=script,
            advice=next(advice, ""),
        )
        refusal.job_name = job.name
        return refusal
