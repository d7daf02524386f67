"""A job that has ended is run once more: a new job of the same name, for which its gates open.

What waits behind a gate need not be told (:mod:`.gates`). What waited for the success of the old
job itself has fallen with it; whoever follows it runs it again in its turn.
"""

from __future__ import annotations

import logging
import time
from typing import Final

from dask_batch.backends import logs
from dask_batch.backends.base import Job
from dask_batch.backends.flux.gates import Gates, newest
from dask_batch.backends.flux.instance import HOLD, Instance, Phase, Row
from dask_batch.backends.flux.journal import Journal
from dask_batch.backends.flux.requests import urgency_of
from dask_batch.backends.flux.submission import Submitter

__all__ = ["Rerun"]

logger = logging.getLogger(__name__)

_LEAVING_S: Final = 60.0
"""How long a job may take from its end until Flux is done with it."""
_LOOK_S: Final = 0.1


class Rerun:
    """Runs jobs once more.

    Parameters
    ----------
    instance, journal
        Where they are, and what is known of them.
    submitter, gates
        Hand over the new job and what opens its gates.
    """

    def __init__(
        self, instance: Instance, journal: Journal, submitter: Submitter, gates: Gates
    ) -> None:
        self._instance = instance
        self._journal = journal
        self._submitter = submitter
        self._gates = gates

    def __call__(self, job: Job, job_id: str) -> str:
        """Run a job once more and return its id; see :meth:`Backend.rerun`.

        One that is queued or running again is left alone; one that is held is a repetition that
        somebody did not finish.
        """
        latest = self._latest(job, job_id)
        if latest is not None and latest.phase < Phase.CLEANUP:
            chosen = latest.job_id
            if latest.urgency != HOLD:
                return chosen
        else:
            logs.separate(job)
            chosen = self._submitter.again(job)
            logger.info("job %s (%s) runs once more, as %s", job_id, job.name, chosen)
        self._gates.open_with(job, chosen)
        self._instance.set_urgency({chosen: urgency_of(job.resources)})
        return chosen

    def _latest(self, job: Job, job_id: str) -> Row | None:
        """Return the last job of the name, once it is not between running and its end."""
        until = time.monotonic() + _LEAVING_S
        while True:
            listed = self._journal.newest(self._instance.named([job.name]))
            rows = [*listed, *self._journal.rows([job_id]).values()]
            latest = newest(row for row in rows if row.name == job.name)
            leaving = latest is not None and latest.phase is Phase.CLEANUP
            if not leaving or time.monotonic() > until:
                return latest
            time.sleep(_LOOK_S)
