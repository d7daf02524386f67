"""Repetitions that have been claimed, and are not known to be under way.

The batch system may be out of order for hours, and commands that nobody answers take their time:
so after one that failed for want of an answer no other is tried for a while, and whoever waits for
other tasks is not kept waiting.
"""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from dask_batch.backends.base import JobState, JobStatus
from dask_batch.backends.reach import ends_with_client
from dask_batch.cache import attempts
from dask_batch.cache.claims import Claim, Claims
from dask_batch.errors import BackendError, JobEndingError, QueueFullError, SubmissionError
from dask_batch.evidence.history import History
from dask_batch.following.entries import Entry
from dask_batch.following.repeating import Repeating
from dask_batch.following.resolving import Resolving
from dask_batch.following.tending import Tending

if TYPE_CHECKING:
    from dask_batch.following.watch import Watch

__all__ = ["Attending"]

logger = logging.getLogger(__name__)

_SIGN_S = 5.0
"""How often to look for a sign that another process has repeated a job."""
_GONE_S = 90.0
"""A job that has left its end record is gone by then."""
_TURN_S = 5.0
"""For how long jobs are run again, one by one, before the watch looks at the others."""
_FIRST_WAIT_S = 5.0
"""Between two tries to run a job again, doubling each time."""
_REFUSALS = 3
"""After so many refusals a job is not handed in again."""
_OUTAGE_S = 6 * 3600.0
"""Nor after so long without an answer."""


class Attending:
    """Sees to the attempts that follow failed ones.

    Parameters
    ----------
    watch
        Whose entries they are about.
    claims, history, tending
        What is on record, and what runs jobs again.
    repeating, resolving
        Act on what is found out.
    """

    def __init__(
        self,
        watch: Watch,
        claims: Claims,
        history: History,
        tending: Tending,
        repeating: Repeating,
        resolving: Resolving,
    ) -> None:
        self._watch = watch
        self._cache = watch.cache
        self._claims = claims
        self._history = history
        self._tending = tending
        self._repeating = repeating
        self._resolving = resolving
        self._silences = 0
        self._silent_until = 0.0

    def __call__(self, now: float) -> None:
        """See to what needs it now, for some seconds; the rest has its turn at the next look."""
        until = time.monotonic() + _TURN_S
        for entry in list(self._watch.entries.values()):
            nameless = self._is_nameless(entry)
            if entry.quiet_until > now or (entry.course.sure and not nameless):
                continue
            try:
                if nameless:
                    self._find_job(entry, now)
                else:
                    self._attend(entry, now)
            except Exception:
                logger.exception("repeating %s failed; again later", entry.function)
                entry.quiet_until = now + 2 * _SIGN_S
            if time.monotonic() > until:
                break

    def _is_nameless(self, entry: Entry) -> bool:
        """Whether a job is, or will be, in reach, and its id was not known when it was found."""
        standing = entry.standing
        if ends_with_client(standing.backend):
            return False  # of another client's it makes no difference
        return standing.job_id is None and standing.backend == self._watch.backend.name

    def _find_job(self, entry: Entry, now: float) -> None:
        """Look for the id of a job that another client is handing over."""
        if now < entry.sign_at:
            return
        entry.sign_at = now + _SIGN_S
        standing = entry.standing
        log = self._claims.log(standing.run_id)
        if standing.job_name in log.ids:
            entry.standing = replace(standing, job_id=log.ids[standing.job_name])
            self._watch.known[standing.key] = entry.standing
            self._watch.hasten()
        elif log.aborted:
            said = JobStatus("", JobState.LOST, source="its run", reason="it was taken back")
            entry.hear(said, now)

    def _attend(self, entry: Entry, now: float) -> None:
        claim = self._repeating.claim(entry)
        if claim.generation > entry.standing.generation:
            self._repeating.adopt(entry, claim)
        elif now >= entry.act_at and (entry.over or entry.held):
            # Only now: what the batch system still calls running would be left alone. What is held
            # is a repetition that somebody did not finish.
            self._rerun(entry, claim, now)
        elif entry.running and now >= entry.act_at + _GONE_S:
            # It left its end record and never left the books of a controller that was killed.
            entry.act_at = now
            self._resolving.end_job(entry)
        elif now >= entry.sign_at:
            entry.sign_at = now + _SIGN_S
            self._look_for_a_sign(entry, claim)

    def _look_for_a_sign(self, entry: Entry, claim: Claim) -> None:
        """See whether the job is that of this attempt: handed over for it, or repeated."""
        if self._history.is_first(claim):
            entry.course.sure = True
            return
        job_id = None if entry.outdated else self._tending.reran(claim)
        start = attempts.read_start(self._cache, claim.key, claim.generation)
        if job_id is not None or start is not None:
            self._under_way(entry, job_id or entry.standing.job_id or "")

    # ---- running a job again ---------------------------------------------------------------

    def _rerun(self, entry: Entry, claim: Claim, now: float) -> None:
        if now < self._silent_until:
            return
        try:
            job_id = self._tending.rerun(claim, entry.standing.job_id or "")
        except (QueueFullError, JobEndingError) as error:
            self._unanswered(entry, error)
        except SubmissionError as error:
            self._silences = 0
            self._refused(entry, error)
        except BackendError as error:
            self._silent_until = time.monotonic() + self._wait_s(self._silences)
            self._silences += 1
            self._unanswered(entry, error)
        else:
            self._silences = 0
            self._under_way(entry, job_id)

    def _under_way(self, entry: Entry, job_id: str) -> None:
        entry.under_way(job_id)
        self._watch.take_note(entry.standing)
        self._watch.hasten()

    def _refused(self, entry: Entry, error: SubmissionError) -> None:
        """Try again later, a few times."""
        entry.refusals += 1
        if entry.refusals >= _REFUSALS:
            self._repeating.not_repeated(
                entry, f"the batch system refuses to run it again: {error}"
            )
        else:
            self._later(entry, error)

    def _unanswered(self, entry: Entry, error: BackendError) -> None:
        """Try again later, for hours: an outage says nothing about the task."""
        now = time.monotonic()
        if not entry.unanswered:
            entry.unanswered_at = now
        entry.unanswered += 1
        silent_s = now - entry.unanswered_at
        if silent_s > _OUTAGE_S:
            self._repeating.not_repeated(
                entry,
                f"for {silent_s / 3600:.1f} hours it could not be run again: {error}",
            )
        else:
            self._later(entry, error)

    def _later(self, entry: Entry, error: BackendError) -> None:
        wait_s = self._wait_s(entry.refusals + entry.unanswered - 1)
        entry.act_at = entry.quiet_until = time.monotonic() + wait_s
        logger.warning(
            "%s cannot be run again now; again in %.0f s: %s", entry.function, wait_s, error
        )

    def _wait_s(self, tries: int) -> float:
        return min(_FIRST_WAIT_S * 2.0 ** min(tries, 10), self._watch.pace.longest_poll_s)
