"""What a controller that was killed leaves behind: looked after in one place.

It comes back with what it had last saved, some seconds or minutes old, and believes that: jobs that
have ended run (:mod:`.ghosts`, :mod:`.vanished`), jobs that were let go are held
(:mod:`.letting_go`), and a job that was run again stands where its attempt before stood
(:mod:`.outdated`). Whatever was concluded before that about jobs which had left, or were let go,
may not be true any more: an answer after an outage makes all of it be forgotten. (Of a crash that
fell between two polls nobody knows: there, it is forgotten after a while.)
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from dask_batch.backends.base import JobState, JobStatus
from dask_batch.evidence.history import History
from dask_batch.following.ghosts import Ghosts
from dask_batch.following.letting_go import LettingGo
from dask_batch.following.outdated import Outdated
from dask_batch.following.resolving import Resolving
from dask_batch.following.sweep import Sweep
from dask_batch.following.tending import Tending
from dask_batch.following.unbegun import Unbegun
from dask_batch.following.vanished import Vanished
from dask_batch.verdicts.follow import Outcome, Verdict

if TYPE_CHECKING:
    from dask_batch.following.watch import Watch

__all__ = ["Aftermath"]

logger = logging.getLogger(__name__)

_VANISHED = Verdict(
    Outcome.DIED,
    "its process is gone and left no record, though the batch system says that it runs",
    "the processes of the machine on which it ran",
)
_ENDING_S = 180.0
"""A job that takes longer to leave its node than this is worth a line in the log."""


class Aftermath:
    """Sets right what a batch system believes of jobs of ours.

    Parameters
    ----------
    watch
        Whose entries they are.
    history, tending
        What is on record, and who has been run again.
    resolving, sweep
        Record what is concluded, and end jobs.
    """

    def __init__(
        self, watch: Watch, history: History, tending: Tending, resolving: Resolving, sweep: Sweep
    ) -> None:
        self._watch = watch
        self._resolving = resolving
        self._sweep = sweep
        self.ghosts = Ghosts(history, watch.backend)
        self._vanished = Vanished(watch.cache, watch.backend)
        self._unbegun = Unbegun(watch.cache, watch.backend)
        self._outdated = Outdated(watch.cache)
        self._letting_go = LettingGo(history.claims, watch.backend, tending)
        self._outages = 0
        self._said: set[str] = set()

    def heard(self, told: Mapping[str, JobStatus], outages: int, now: float) -> None:
        """See to what an answer shows.

        Parameters
        ----------
        told
            What the batch system says of the suspects among jobs that are over.
        outages
            How many outages have been survived so far.
        now
            The monotonic clock.
        """
        if outages > self._outages:
            self._outages = outages
            self.ghosts.forget()
            self._letting_go.forget()
        entries = self._watch.entries
        for entry in self._outdated.found(entries.values()):
            # Whoever sees to repetitions ends it if it does not end, and repeats it.
            entry.doubt(act_at=time.monotonic(), outdated=True)
        self._sweep.add_ids(self.ghosts.haunting(told, now))
        self.ghosts.gather(entries, self._watch.known.values(), now)
        for entry in self._vanished.found(entries, now):
            # The record leads on: it is repeated if it may be, once the books say that it is over.
            self._resolving.end_job(entry)
            self._resolving.record(entry, _VANISHED)
        for entry, verdict in self._unbegun.found(entries, now):
            self._resolving.end_job(entry)
            self._resolving.record(entry, verdict)
        for job_id in self._long_ending(now):
            logger.warning(
                "job %s has been ending for minutes: its node may be out of order. Nothing is "
                "concluded from that before %s gives the node up.",
                job_id, self._watch.backend.name,
            )  # fmt: skip

    def tend(self, now: float) -> None:
        """Let go what should not be held."""
        self._letting_go.tend(self._watch.entries.values(), now)

    def _long_ending(self, now: float) -> Iterator[str]:
        """Yield the jobs, each once, that have been at their end for long."""
        for entry in self._watch.entries.values():
            status = entry.status
            if status is None or status.state is not JobState.ENDING or status.job_id in self._said:
                continue
            if now - entry.state_since > _ENDING_S:
                self._said.add(status.job_id)
                yield status.job_id
