"""A job that has ended is run once more, in its place.

``scontrol requeuehold`` makes it a held job again, under its own id, so that what depends on it may
go on waiting; but Slurm keeps a mark "failed" on the dependencies, which are therefore written
anew while the job is held. Then it gets its memory and its time, which a plain user may raise for a
job that has not begun, and is released last: a job that waits or runs has had all of this done to
it, and one that is held is a repetition that somebody did not finish.

It is released in a later second than that of its end. A node refuses the credentials of a job that
were made up to the second in which it was told to end it, a requeued job's among them ("Job
credential revoked"), and the job fails with exit code 1 without having begun (22.05). Slurm itself
would let it wait for as long as credentials are valid: 2 minutes by default.

Where Slurm has forgotten the job, or does not let it be requeued, a new one of the same name takes
its place; and so it does where a job can no longer be changed. (A controller that was killed may
come back with jobs that wait for a number from the accounting's database for good, and refuses
every change of theirs until they have it.)
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence

from dask_batch.backends import logs
from dask_batch.backends.base import Job, JobState, JobStatus
from dask_batch.backends.patience import Patience
from dask_batch.backends.slurm.commands import Commands, chunks
from dask_batch.backends.slurm.dependencies import afterok
from dask_batch.backends.slurm.inquiry import Inquiry
from dask_batch.backends.slurm.options import memory_mb, minutes
from dask_batch.backends.slurm.refusals import blames_parents, is_stuck, is_temporary
from dask_batch.errors import CommandError, JobEndingError, SubmissionError

__all__ = ["ANSWER_PATIENCE_S", "Rerun"]

logger = logging.getLogger(__name__)

ENDING_PATIENCE_S = 5.0
"""A job that leaves its nodes for longer (``KillWait``, an epilog, a node that is out of order for
``SlurmdTimeout``) is come back to: whoever repeats it follows others as well."""
LEAVING_PATIENCE_S = 3.0
"""A job that has just recorded its own end runs a moment longer; one that runs again, on and on."""
ANSWER_PATIENCE_S = 20.0
"""And an outage is waited out between two tries."""
CREDENTIAL_S = 1.1
"""How long a job must have been over when it is released: the next second has begun."""
_PENDING = "PENDING"


class Rerun:
    """Runs jobs once more.

    Parameters
    ----------
    commands, inquiry
        How to tell Slurm, and how to ask it.
    submit
        Submits a job anew, held, and returns its id.
    """

    def __init__(self, commands: Commands, inquiry: Inquiry, submit: Callable[[Job], str]) -> None:
        self._commands = commands
        self._inquiry = inquiry
        self._submit = submit

    def __call__(self, job: Job, job_id: str, dependents: Mapping[str, Sequence[str]]) -> str:
        """Run a job once more and return its id; see :meth:`Backend.rerun`.

        Raises
        ------
        SubmissionError
            What the job is to have this time is refused. It stays held.
        JobEndingError, CommandError, BackendUnavailableError
            It is not over yet, or Slurm does not answer: it may be tried again.
        """
        chosen, status = self._in_queue(job, job_id)
        held = status is None or _waits_for_us(status)
        if held or chosen != job_id:
            self._repoint(job_id, chosen, dependents)
        if held and not self._prepare(job, chosen):
            chosen = self._replaced(job, chosen, dependents)
        if held:
            self._await_credential(chosen)
            self._insist(["scontrol", "release", chosen])
        return chosen

    def _await_credential(self, job_id: str) -> None:
        """Wait until the job's next credential is younger than its end."""
        over_for_s = self._inquiry.over_for_s(job_id)
        if over_for_s is not None and over_for_s < CREDENTIAL_S:
            self._commands.waiting.pause(CREDENTIAL_S - over_for_s)

    def _insist(self, argv: Sequence[str]) -> None:
        self._commands.insist(argv, total_s=ANSWER_PATIENCE_S)

    # ---- the job ---------------------------------------------------------------------------

    def _in_queue(self, job: Job, job_id: str) -> tuple[str, JobStatus | None]:
        """Return a job that is held, waits or runs: this one, one of its name, or a new one."""
        for candidate in self._candidates(job, job_id):
            status = self._settled(candidate, job)
            if status is not None and not status.state.ended:
                return candidate, status
            if status is not None and self._requeued(job, candidate, status):
                return candidate, self._settled(candidate, job)
        logs.separate(job)
        new = self._submit(job)
        logger.info("Slurm cannot repeat job %s (%s): it is job %s now", job_id, job.name, new)
        return new, None

    def _candidates(self, job: Job, job_id: str) -> Iterator[str]:
        yield job_id
        latest = self._inquiry.find_queued([job.name]).get(job.name, job_id)
        if latest != job_id:
            yield latest

    def _settled(self, job_id: str, job: Job) -> JobStatus | None:
        """Return what the queue says of the job once it is not on its way out; None: unknown."""
        waiting, what = self._commands.waiting, f"repeating {job.name}"
        patience = {
            JobState.ENDING: Patience(waiting, what, total_s=ENDING_PATIENCE_S),
            JobState.RUNNING: Patience(waiting, what, total_s=LEAVING_PATIENCE_S),
        }
        while True:
            status = self._inquiry.queued(job_id)
            if status is None or status.name != job.name:  # ids are given out a second time
                return None
            if status.state in patience and patience[status.state].pause(status.word):
                continue
            if status.state is JobState.ENDING:
                raise JobEndingError(f"job {job_id} ({job.name}) has not left its nodes yet")
            return status

    def _requeued(self, job: Job, job_id: str, status: JobStatus) -> bool:
        """Make an ended job a held one; false where that cannot be."""
        if status.word == _PENDING:
            return True  # it never began: it need not be put back
        try:
            self._insist(["scontrol", "requeuehold", job_id])
        except CommandError as error:
            if "job is pending execution" in error.stderr.lower():
                return True  # somebody else was faster
            if is_temporary(error):
                raise
            logger.info("job %s cannot be requeued: %s", job_id, error.stderr.strip())
            return False
        logs.separate(job)  # of all who try to requeue it one comes here
        return True

    def _replaced(self, job: Job, old: str, dependents: Mapping[str, Sequence[str]]) -> str:
        """Let a new job take the place of one that cannot be changed, and return its id."""
        self._insist(["scancel", old])
        logs.separate(job)
        new = self._submit(job)
        logger.info("Slurm cannot change job %s (%s): it is job %s now", old, job.name, new)
        self._repoint(old, new, dependents)
        return new

    def _prepare(self, job: Job, job_id: str) -> bool:
        """Give a held job what it is to have this time; false if it cannot be changed."""
        changes = []
        if job.resources.get("memory_max") is not None:
            changes.append(f"MinMemoryNode={memory_mb(job.resources['memory_max'])}")
        if job.resources.get("run_time_max") is not None:
            changes.append(f"TimeLimit={minutes(job.resources['run_time_max'])}")
        # A requeued job would wait until its old credential has expired.
        changes.append("StartTime=now")
        try:
            self._set_parents([job_id], job.after, changes)
        except CommandError as error:
            if is_stuck(error):
                return False
            if is_temporary(error):
                raise
            status = self._inquiry.queued(job_id)
            if status is None or _waits_for_us(status):
                raise _refusal(job, job_id, error) from error
            # Else somebody else has repeated it in the meantime.
        return True

    # ---- what waits for it -----------------------------------------------------------------

    def _repoint(self, old: str, new: str, dependents: Mapping[str, Sequence[str]]) -> None:
        """Write anew what each dependent waits for: the mark "failed" goes away with that."""
        alike: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)
        for dependent, waits_for in dependents.items():
            ids = [new if job_id == old else job_id for job_id in waits_for]
            alike[tuple(dict.fromkeys(ids))].append(dependent)
        for parents, waiting in alike.items():
            for chunk in chunks(waiting):
                try:
                    self._set_parents(chunk, parents)
                except CommandError as error:
                    if not is_stuck(error):
                        raise
                    # They are replaced in their turn, when all that they wait for is there.
                    logger.info("Slurm cannot change what jobs %s wait for", ", ".join(chunk))

    def _set_parents(
        self, job_ids: Sequence[str], parents: Sequence[str], further: Sequence[str] = ()
    ) -> None:
        """Say what jobs wait for, and change more of them with that.

        Parents that Slurm has forgotten are over, and left out where it does not take them.
        """
        change = ["scontrol", "update", f"JobId={','.join(job_ids)}", *further]
        try:
            self._insist([*change, f"Dependency={_expression(parents)}"])
        except CommandError as error:
            forgotten = self._inquiry.forgotten(parents) if blames_parents(error.stderr) else []
            if not forgotten:
                raise
            left = [parent for parent in parents if parent not in forgotten]
            self._insist([*change, f"Dependency={_expression(left)}"])


def _expression(parents: Sequence[str]) -> str:
    return afterok(parents) if parents else ""


def _waits_for_us(status: JobStatus) -> bool:
    """Whether a queued job will not start unless something is done."""
    return status.state is JobState.HELD or (status.word == _PENDING and status.state.ended)


def _refusal(job: Job, job_id: str, error: CommandError) -> SubmissionError:
    advice = f"Job {job_id} stays held: `scancel {job_id}` removes it."
    argv, words = list(error.argv), error.stderr
    refusal = SubmissionError(error.returncode or 1, argv, words, advice=advice)
    refusal.job_name = job.name
    return refusal
