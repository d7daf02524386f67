"""The chain of stewards: who stands by for whom, and who comes next.

A steward may be killed at any moment. So each has a second, which begins when it begins, and waits
while the first is at work. What one of them has done whole is marked in the log of the run; where
the mark is missing, the second does what is left. Successors are handed over in pairs as well.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Collection
from typing import Final

from dask_batch.backends.base import Backend, Job, JobState
from dask_batch.cache.claims import Claims, Run
from dask_batch.cache.store import Cache
from dask_batch.errors import BackendError, QueueFullError
from dask_batch.evidence.standing import Standing
from dask_batch.steward.leftover import PAUSES_S
from dask_batch.submitting.lanes import Lanes, steward_job, steward_name
from dask_batch.submitting.reread import job_of

__all__ = ["Succession"]

logger = logging.getLogger(__name__)

_GENERATIONS: Final = 50
"""So many stewards in a row may wait for room, each for its whole time."""
_LOOKS_S: Final = (1.0, 2.0, 4.0, 8.0, 15.0)
"""Between looks at the one who is stood by for; the last one is kept."""
_AT_WORK: Final = frozenset({JobState.RUNNING, JobState.ENDING})


class Succession:
    """The place of one steward among those of its run.

    Parameters
    ----------
    cache, claims, backend
        Where the run's records are, and where its jobs are.
    run, lanes, number
        The run, its lanes, and which of its stewards this is.
    own_id
        The id of this steward's own job; empty if it is not known.
    clock, pause
        Tells the time in seconds, and lets some pass.
    """

    def __init__(
        self,
        cache: Cache,
        claims: Claims,
        backend: Backend,
        run: Run,
        lanes: Lanes,
        number: int,
        *,
        own_id: str,
        clock: Callable[[], float],
        pause: Callable[[float], None],
    ) -> None:
        self.cache = cache
        self.claims = claims
        self.backend = backend
        self.run = run
        self.lanes = lanes
        self.number = number
        self._own_id = own_id
        self._clock = clock
        self._pause = pause

    # ---- the second ------------------------------------------------------------------------

    def stand_by(self, until: float) -> bool:
        """Wait while the first of the lane is at work; return whether all has been done."""
        pair = {self._name(self.number), self._name(self.lanes.other(self.number))}
        for pause_s in itertools.chain(_LOOKS_S, itertools.repeat(_LOOKS_S[-1])):
            if self._done(pair):
                return True
            first = self.claims.log(self.run.id).ids.get(self._name(self.lanes.other(self.number)))
            if first is None or not self.lanes.is_second(self.number) or self._clock() >= until:
                return False
            if not self._at_work(first):
                return self._done(pair)  # it may have ended since
            self.backend.wait(pause_s)
        raise AssertionError("time goes on")

    def _done(self, pair: Collection[str]) -> bool:
        events = self.claims.log(self.run.id).events
        return any(e["event"] == "looked" and e.get("name") in pair for e in events)

    def mark(self) -> None:
        """Note that this steward has done all that was to be done."""
        name = self._name(self.number)
        self.claims.record(self.run.id, {"event": "looked", "name": name})

    def _at_work(self, job_id: str) -> bool:
        try:
            status = self.backend.status([job_id]).get(job_id)
        except BackendError as error:
            logger.info("what the first steward does cannot be told now: %s", error)
            return True
        return status is not None and status.state in _AT_WORK

    def _name(self, number: int) -> str:
        return steward_name(self.run.id, number)

    # ---- the next --------------------------------------------------------------------------

    def hand_over(self, under_way: Collection[Standing], until: float, *, rest_open: bool) -> bool:
        """See to it that somebody looks again when that is needed.

        Parameters
        ----------
        under_way
            The jobs that may still fail.
        until
            By when, by the clock, there must be room for it.
        rest_open
            Whether something that a full queue left is still to be handed over.

        Returns
        -------
        bool
            False if it was needed and there was no room.
        """
        first = self._next(under_way, rest_open=rest_open)
        if first is None:
            logger.info("nothing is left that would need another steward")
            return True
        for pause_s in itertools.chain(PAUSES_S, itertools.repeat(PAUSES_S[-1])):
            if self._is_there(first) or self._submitted(first):
                break
            if self._clock() + pause_s > until:
                logger.error("there is no room for %s: nobody looks after this run", first.name)
                return False
            self._pause(pause_s)
        (second,) = self.lanes.seconds(self.run.id, [first])
        if not self._is_there(second):
            self._submitted(second)
        return True

    def _next(self, under_way: Collection[Standing], *, rest_open: bool) -> Job | None:
        """Return the successor; None if there is nothing for one to do."""
        after_end: list[str] = []
        after_failure: list[str] = []
        if rest_open:
            enough = self.number >= 2 * _GENERATIONS * self.lanes.count
            after_end = [self._own_id] if self._own_id and not enough else []
        else:
            members = set(self.lanes.members(self.number))
            mine = (each for each in under_way if each.job_name in members)
            after_failure = sorted(each.job_id for each in mine if each.job_id is not None)
        if not after_end and not after_failure:
            return None
        return steward_job(
            self.run.id,
            job_of(self.cache, self.claims, self.run, self.run.jobs[0][0]),
            self.lanes.successor(self.number),
            after_failure=after_failure,
            after_end=after_end,
        )

    def _is_there(self, job: Job) -> bool:
        if not self.backend.find([job.name]):
            return False
        logger.info("%s is there already", job.name)
        return True

    def _submitted(self, job: Job) -> bool:
        def accepted(name: str, job_id: str) -> None:
            self.claims.record(self.run.id, {"event": "steward", "name": name, "id": job_id})
            logger.info("job %s looks next, as %s", job_id, name)

        try:
            self.backend.submit([job], accepted)
        except QueueFullError as full:
            logger.info("no room for %s: %s", job.name, str(full.output).strip())
            return False
        return True
