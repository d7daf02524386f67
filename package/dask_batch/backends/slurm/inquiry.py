"""What became of jobs: one ``squeue`` for all, ``sacct`` for what that no longer knows.

Three answers are told apart. A job that is *known* has a status. A job that ``squeue`` answered
without, and that the accounting does not know either, or still calls unfinished, is
:attr:`~dask_batch.backends.base.JobState.LOST`: true of the moment, and no verdict, because
accounting lags by seconds. Where one of the two did not answer the job is *missing* in ours.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from dask_batch.backends.base import JobState, JobStatus
from dask_batch.backends.command import Completed
from dask_batch.backends.slurm import parse
from dask_batch.backends.slurm.commands import chunks
from dask_batch.errors import BackendUnavailableError, CommandError

__all__ = ["Inquiry"]

logger = logging.getLogger(__name__)

NAMES_PER_CALL = 200
HISTORY = "now-60days"
"""How far back ``sacct`` looks for a name; without it, today only."""
FIRST_PAUSE_S = 2.0
LONGEST_PAUSE_S = 300.0
"""Between two questions to the accounting about the same job, doubling each time."""


@dataclass(slots=True)
class _Gone:
    """A job that the queue does not know."""

    ask_again_at: float
    pause_s: float = FIRST_PAUSE_S / 2
    end: JobStatus | None = None
    """What the accounting said of its end."""


class Inquiry:
    """Asks ``squeue`` and ``sacct``.

    Parameters
    ----------
    ask
        Runs a command once.
    clock
        Tells the time in seconds.
    """

    def __init__(
        self,
        ask: Callable[[Sequence[str]], Completed],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ask = ask
        self._clock = clock
        self._accounting = True
        self._gone: dict[str, _Gone] = {}
        self._over_since: dict[str, float] = {}

    # ---- by id -----------------------------------------------------------------------------

    def status(self, job_ids: Collection[str]) -> dict[str, JobStatus]:
        """Return what is known of jobs; see the module for what is missing in the answer.

        Raises
        ------
        CommandError, BackendUnavailableError
            ``squeue`` does not answer.
        """
        # By user, not by id: an unknown id alone is an error, among others it is silence.
        text = self._queue(parse.SQUEUE_FORMAT)
        queued = parse.parse_squeue(text)
        self._over_since = {
            job_id: self._over_since.get(job_id, self._clock())
            for job_id, status in queued.items()
            if status.state.ended
        }
        found = {job_id: queued[job_id] for job_id in job_ids if job_id in queued}
        for job_id in found:
            self._gone.pop(job_id, None)
        gone = set(job_ids) - found.keys()
        past = {i: end for i in gone & self._gone.keys() if (end := self._gone[i].end)}
        for chunk in chunks(self._due(gone)):
            past.update(self._past(chunk))
        if not parse.is_whole(text):
            logger.info("an answer of squeue has broken lines: what is missing in it is not gone")
            past = {i: status for i, status in past.items() if status.state is not JobState.LOST}
        return {**past, **found}

    def _queue(self, fields: str) -> str:
        argv = ["squeue", "-h", "-r", "-t", "all", "-u", str(os.getuid()), "-O", fields]
        return self._ask(argv).stdout

    def _due(self, gone: set[str]) -> list[str]:
        """Choose those of the jobs that the queue does not know about which to ask now."""
        now = self._clock()
        return sorted(i for i in gone if i not in self._gone or now >= self._gone[i].ask_again_at)

    def _past(self, job_ids: Sequence[str]) -> dict[str, JobStatus]:
        """Return what the accounting says; without one, all are lost."""
        argv = ["sacct", "-X", "-n", "-P", "-j", ",".join(job_ids), "--format", parse.SACCT_FIELDS]
        text = self._account(argv)
        self._put_off(job_ids)
        if text is None:
            return {}
        past = parse.parse_sacct(text)
        found = {}
        for job_id in job_ids:
            known = past.get(job_id)
            if known is not None and known.state.ended:
                found[job_id] = known
                self._gone[job_id].end = known if known.state is not JobState.LOST else None
            else:
                word = "" if known is None else known.word
                source = "sacct" if self._accounting else "squeue"
                found[job_id] = JobStatus(job_id, JobState.LOST, word, source=source)
        return found

    def accounts(self, job_ids: Sequence[str]) -> dict[str, JobStatus]:
        """Return what the accounting says of jobs, whatever the queue does; nothing without one.

        Raises
        ------
        CommandError, BackendUnavailableError
            It does not answer.
        """
        found: dict[str, JobStatus] = {}
        for chunk in chunks(job_ids):
            argv = ["sacct", "-X", "-n", "-P", "-j", ",".join(chunk)]
            text = self._account([*argv, "--format", parse.SACCT_FIELDS], must_answer=True)
            found.update(parse.parse_sacct(text or ""))
        return found

    def _put_off(self, job_ids: Sequence[str]) -> None:
        now = self._clock()
        for job_id in job_ids:
            gone = self._gone.setdefault(job_id, _Gone(now))
            gone.pause_s = min(gone.pause_s * 2, LONGEST_PAUSE_S)
            gone.ask_again_at = now + gone.pause_s

    def queued(self, job_id: str) -> JobStatus | None:
        """Return what the queue says of one job; None if it does not know it.

        Raises
        ------
        CommandError, BackendUnavailableError
            There is no answer.
        """
        argv = ["squeue", "-h", "-r", "-t", "all", "-j", job_id, "-O", parse.SQUEUE_FORMAT]
        try:
            status = parse.parse_squeue(self._ask(argv).stdout).get(job_id)
        except CommandError as error:
            if "Invalid job id" in error.stderr:
                return None
            raise
        if status is not None and status.state.ended:
            self._over_since.setdefault(job_id, self._clock())
        return status

    def forgotten(self, job_ids: Sequence[str]) -> list[str]:
        """Return those jobs, anybody's, that the queue does not know any more.

        Raises
        ------
        CommandError, BackendUnavailableError
            There is no answer.
        """
        known: set[str] = set()
        for chunk in chunks(job_ids):
            argv = ["squeue", "-h", "-r", "-t", "all", "-j", ",".join(chunk), "-o", "%A"]
            try:
                known.update(self._ask(argv).stdout.split())
            except CommandError as error:
                if "Invalid job id" not in error.stderr:  # as it says of an only one
                    raise
        return [job_id for job_id in job_ids if job_id not in known]

    def over_for_s(self, job_id: str) -> float | None:
        """Return for how long a job is known here to have ended; None: it is not, in the queue."""
        since = self._over_since.get(job_id)
        return None if since is None else self._clock() - since

    # ---- by name ---------------------------------------------------------------------------

    def find(self, names: Collection[str]) -> dict[str, str]:
        """Look up job ids by unique job names, in the queue and in the accounting.

        Raises
        ------
        CommandError, BackendUnavailableError
            One of them does not answer: a name that is missing would be no evidence.
        """
        found = self.find_queued(names)
        for chunk in chunks(sorted(set(names) - set(found)), NAMES_PER_CALL):
            argv = ["sacct", "-X", "-n", "-P", "-S", HISTORY, "-u", str(os.getuid())]
            argv += ["--name", ",".join(chunk), "--format", parse.SACCT_NAME_FIELDS]
            text = self._account(argv, must_answer=True)
            past = parse.parse_names(text or "")
            found.update({name: past[name] for name in chunk if name in past})
        return found

    def find_queued(self, names: Collection[str]) -> dict[str, str]:
        """Look up job ids by unique job names in the queue alone.

        Raises
        ------
        CommandError, BackendUnavailableError
            It does not answer.
        """
        if not names:
            return {}
        queued = parse.parse_names(self._queue(parse.SQUEUE_NAME_FORMAT))
        return {name: queued[name] for name in names if name in queued}

    def busy(self) -> bool:
        """Whether the user has jobs in the queue that have not ended."""
        argv = ["squeue", "-h", "-u", str(os.getuid()), "-o", "%A"]
        return bool(self._ask(argv).stdout.strip())

    # ---- accounting ------------------------------------------------------------------------

    def _account(self, argv: Sequence[str], *, must_answer: bool = False) -> str | None:
        """Run ``sacct``: return its answer, nothing where there is no accounting, None for none."""
        if not self._accounting:
            return ""
        try:
            return self._ask(argv).stdout
        except BackendUnavailableError:
            self._accounting = False
        except CommandError as error:
            if "accounting storage is disabled" not in error.stderr:
                if must_answer:
                    raise
                logger.info("no accounting for now: %s", error)
                return None
            self._accounting = False
        logger.info("Slurm keeps no accounts here: ended jobs are known for some minutes only")
        return ""
