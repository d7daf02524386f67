"""When to ask and when to look: politely, quickly for what is young, and never giving up."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Collection, Sequence

from dask_batch.backends.base import Backend, JobStatus
from dask_batch.errors import BackendError
from dask_batch.following.entries import Entry, Pace
from dask_batch.verdicts.follow import poll_interval_s

__all__ = ["Polling", "Rhythm"]

logger = logging.getLogger(__name__)

_FIRST_RETRY_S = 5.0
_SAY_S = 300.0
"""How often a long outage is mentioned."""


class Polling:
    """Asks the batch system about jobs, once for all of them.

    Parameters
    ----------
    backend
        Whom to ask.
    pace
        How often.

    Notes
    -----
    No answer is no evidence: a failing call changes nothing but when the next one is made.
    """

    def __init__(self, backend: Backend, pace: Pace) -> None:
        self._backend = backend
        self._pace = pace
        self._next = 0.0
        self._failures = 0
        self._failing_since = 0.0
        self._said = 0.0
        self.outages = 0
        """How many times it has answered again after it had not."""

    def due(self, now: float) -> bool:
        """Whether it is time to ask."""
        return now >= self._next

    def hasten(self, now: float) -> None:
        """Ask soon: something young has come in."""
        if not self._failures:
            self._next = min(self._next, now + self._pace.shortest_poll_s)

    def poll(
        self, entries: Collection[Entry], now: float, others: Sequence[str] = ()
    ) -> dict[str, JobStatus]:
        """Ask about all jobs that this batch system has; return what it says of some others."""
        # A controller that was killed gives ids out again: two entries may have the same one.
        ids: defaultdict[str, list[Entry]] = defaultdict(list)
        for entry in entries:
            job_id = entry.standing.job_id
            if job_id is not None and entry.standing.backend == self._backend.name:
                ids[job_id].append(entry)
        youngest = max((entry.since for entry in entries), default=now)
        interval_s = poll_interval_s(
            now - youngest,
            shortest_s=self._pace.shortest_poll_s,
            longest_s=self._pace.longest_poll_s,
        )
        self._next = now + interval_s
        if not ids:
            return {}
        try:
            statuses = self._backend.status([*ids, *others])
        except Exception as error:
            # A mistake in reading the answer is no more evidence than no answer.
            self._failed(error, now, interval_s)
            return {}
        self._answered(now)
        for job_id, alike in ids.items():
            status = statuses.get(job_id)
            for entry in alike:
                if status is not None:
                    entry.hear(status, now)
                elif self._backend.shared:
                    entry.miss(now, self._backend.name)
        return {job_id: statuses[job_id] for job_id in others if job_id in statuses}

    def _failed(self, error: Exception, now: float, interval_s: float) -> None:
        wait_s = _FIRST_RETRY_S * 2.0**self._failures
        longest_s = max(interval_s, self._pace.longest_poll_s)
        self._next = now + min(wait_s, max(_FIRST_RETRY_S, longest_s))
        if not self._failures:
            self._failing_since = now
        self._failures += 1
        if self._failures == 1 or now - self._said > _SAY_S:
            self._said = now
            logger.warning(
                "%s gives no answer now; nothing is concluded from that, and it is asked again: %s",
                self._backend.name, error,
                exc_info=None if isinstance(error, (BackendError, OSError)) else error,
            )  # fmt: skip

    def _answered(self, now: float) -> None:
        if self._failures:
            gone_s = now - self._failing_since
            logger.info("%s answers again, after %.0f s", self._backend.name, gone_s)
            self.outages += 1
        self._failures = 0


class Rhythm:
    """How long to rest between two looks at the store: pure, but for what it remembers.

    The more a look costs, and the longer nothing has changed, the rarer it is: what is young and
    small is told at once, and a thousand jobs that wait overnight cost next to nothing. Who asks
    for a fixed time gets it.
    """

    FIRST_S = 0.02
    LONGEST_S = 5.0
    YOUNG_SHARE = 0.05
    """At most this share of the time goes into looks while things change ..."""
    QUIET_SHARE = 0.004
    """... and this one when nothing has changed for long."""
    QUIET_AFTER_S = 4.0
    LONGEST_REST_S = 10.0
    """What a file system that hangs, or a command that does, cannot lengthen the rest beyond."""

    def __init__(self, now: float, fixed_s: float | None = None) -> None:
        self._changed_at = now
        self._fixed_s = fixed_s
        self.look_s = fixed_s or self.FIRST_S
        """How long to wait for news before the next look."""
        self.not_before = 0.0
        """Until when not to look, whatever the news."""

    def changed(self, now: float) -> None:
        """Look often again."""
        self._changed_at = now
        self.look_s = self._fixed_s or self.FIRST_S

    def hasten(self, now: float) -> None:
        """Look at once: something has come in."""
        self.changed(now)
        self.not_before = 0.0

    def looked(self, began: float, ended: float, *, soon: bool) -> None:
        """Note what a look has cost.

        Parameters
        ----------
        began, ended
            When the look was.
        soon
            Whether something is known to come within moments.
        """
        if self._fixed_s is not None:
            self.not_before = ended + self._fixed_s
            return
        quiet_s = ended - self._changed_at
        share = self.YOUNG_SHARE * min(1.0, self.QUIET_AFTER_S / max(quiet_s, 1e-9))
        rest_s = min((ended - began) / max(share, self.QUIET_SHARE), self.LONGEST_REST_S)
        self.not_before = ended + rest_s
        longest_s = 0.5 if soon else self.LONGEST_S
        eager_s = min(max(quiet_s / 8, self.FIRST_S), longest_s)
        self.look_s = max(eager_s, rest_s)
