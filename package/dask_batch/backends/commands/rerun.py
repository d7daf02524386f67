"""A job that has ended is run once more, under its own name: as a new job.

None of these systems lets a user put an ended job back. What waits for the old one is told to wait
for the new one, where the system can do that and it waits still; PBS, Torque and Moab delete what
depends on a failure, and Grid Engine starts it, so that it falls by itself: the engine repeats such
jobs in their turn, once what they depend on is there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

from dask_batch.backends import logs
from dask_batch.backends.base import Job, JobState, JobStatus
from dask_batch.backends.commands.asking import Asking
from dask_batch.backends.commands.inquiry import Inquiry
from dask_batch.backends.commands.system import System, Waits
from dask_batch.backends.patience import Patience

__all__ = ["Rerun"]

logger = logging.getLogger(__name__)

ENDING_PATIENCE_S = 60.0
"""How long a job may take to leave its nodes."""
LEAVING_PATIENCE_S = 10.0
"""A job that has just recorded its own end runs a moment longer; one that runs again, on and on."""
ANSWER_PATIENCE_S = 20.0
"""Whoever repeats a job follows others as well: an outage is waited out between two tries."""


class Rerun:
    """Runs jobs once more.

    Parameters
    ----------
    system, asking, inquiry
        The batch system, and how to tell and ask it.
    submit
        Submits a job anew, held, and returns its id.
    """

    def __init__(
        self, system: System, asking: Asking, inquiry: Inquiry, submit: Callable[[Job], str]
    ) -> None:
        self._system = system
        self._asking = asking
        self._inquiry = inquiry
        self._submit = submit

    def __call__(self, job: Job, job_id: str, dependents: Mapping[str, Sequence[str]]) -> str:
        """Run a job once more and return its id; see :meth:`Backend.rerun`.

        Raises
        ------
        SubmissionError, CommandError, BackendUnavailableError
            It could not be done; it may be tried again.
        """
        chosen, status = self._in_queue(job, job_id)
        if status is None:
            logs.separate(job)
            chosen = self._submit(job)
            logger.info("job %s (%s) is run again as job %s", job_id, job.name, chosen)
        if status is None or status.state is JobState.HELD:
            self._repoint(job_id, chosen, dependents)
            self._insist(self._system.release, [chosen])
        return chosen

    def _in_queue(self, job: Job, job_id: str) -> tuple[str, JobStatus | None]:
        """Return the job of that name that is held, waits or runs, if there is one."""
        waiting, what = self._asking.waiting, f"repeating {job.name}"
        patience = {
            JobState.ENDING: Patience(waiting, what, total_s=ENDING_PATIENCE_S),
            JobState.RUNNING: Patience(waiting, what, total_s=LEAVING_PATIENCE_S),
        }
        while True:
            queued = self._inquiry.find_queued([job.name]).get(job.name)
            if queued is None:
                return job_id, None
            status = self._inquiry.status([queued]).get(queued)
            if status is None or status.state.ended:
                return job_id, None
            leaving = queued == job_id and status.state in patience
            if not leaving or not patience[status.state].pause(status.word):
                return queued, status

    def _insist(self, command: Callable[[Sequence[str]], list[str]], ids: Sequence[str]) -> None:
        self._asking.insist(command, ids, self._system.ids_per_call, total_s=ANSWER_PATIENCE_S)

    def _repoint(self, old: str, new: str, dependents: Mapping[str, Sequence[str]]) -> None:
        """Let each dependent that is queued still wait for the new job in place of the old one."""
        repoint = self._system.repoint
        if repoint is None or not dependents:
            return
        known = self._inquiry.status(list(dependents))
        for dependent, waits_for in dependents.items():
            status = known.get(dependent)
            if status is None or status.state not in (JobState.WAITING, JobState.HELD):
                continue
            ids = tuple(dict.fromkeys(new if job_id == old else job_id for job_id in waits_for))
            what = Waits(successes=ids, patient=True)
            self._asking.insist_on(repoint(dependent, what), total_s=ANSWER_PATIENCE_S)
