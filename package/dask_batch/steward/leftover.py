"""What a full queue has left of a run, as a steward sees to it: handed over as there is room."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from dask_batch.cache import attempts
from dask_batch.cache.claims import Claim, Run
from dask_batch.evidence.standing import Standings
from dask_batch.following.watch import Watch
from dask_batch.preparing.preparation import PreparedJob
from dask_batch.submitting.handover import HandOver
from dask_batch.verdicts.follow import Outcome

__all__ = ["PAUSES_S", "Leftover"]

logger = logging.getLogger(__name__)

PAUSES_S: Final = (5.0, 10.0, 20.0, 40.0, 80.0, 160.0)
"""Between tries to hand something over to a queue without room; the last one is kept."""


class Leftover:
    """The tasks of a run that a full queue has left.

    Parameters
    ----------
    run, jobs
        The run, and all its jobs.
    watch, standings
        What is under way, and where the claims are.
    hand_over
        Hands jobs over.
    deadline
        Until when to try, by the clock.
    clock, pause
        Tells the time in seconds, and lets some pass.
    """

    def __init__(
        self,
        run: Run,
        jobs: Sequence[PreparedJob],
        watch: Watch,
        standings: Standings,
        hand_over: HandOver,
        *,
        deadline: float,
        clock: Callable[[], float],
        pause: Callable[[float], None],
    ) -> None:
        self.run = run
        self.jobs = jobs
        self.watch = watch
        self.cache = standings.cache
        self.claims = standings.claims
        self.standings = standings
        self._hand_over = hand_over
        self._deadline = deadline
        self._clock = clock
        self._pause = pause

    def hand_over(self) -> bool:
        """Hand it over; return whether somebody else looks after it now."""
        for pause_s in itertools.chain(PAUSES_S, itertools.repeat(PAUSES_S[-1])):
            waiting, ready = self._rest()
            if ready and not self._handed_over(ready):
                waiting = ready
            if not waiting:
                return True
            if self._clock() + pause_s > self._deadline:
                return False
            logger.info("%d task(s) wait; again in %.0f s", len(waiting), pause_s)
            self._pause(pause_s)
        raise AssertionError("time goes on")

    def _handed_over(self, jobs: Sequence[PreparedJob]) -> bool:
        """Hand tasks over; return whether all of them are, or will be by another steward."""
        pending = {key: entry.standing for key, entry in self.watch.entries.items()}
        handed = self._hand_over(jobs, pending)
        if handed.submitted:
            logger.info(
                "%d task(s) were handed over as run %s, %d still wait for room",
                len(handed.submitted), handed.run_id, len(handed.left),
            )  # fmt: skip
        return not handed.left or bool(handed.heirs)

    def _rest(self) -> tuple[list[PreparedJob], list[PreparedJob]]:
        """Return the tasks that nobody has handed over, and those of them that can be now.

        One whose inputs have failed is put on record as failed.
        """
        left = self.claims.log(self.run.id).left
        names = {key: name for name, key in self.run.jobs}
        there = self.cache.present({key for job in self.jobs for key in (job.key, *job.inputs)})
        waiting: list[PreparedJob] = []
        ready: dict[str, PreparedJob] = {}
        for job in self.jobs:
            claim = self.claims.current(job.key)
            if claim is None or job.key in there or not self._is_ours(claim):
                continue
            if names[job.key] not in left or self._has_failed(job, claim):
                continue
            missing = job.inputs - there - ready.keys() - self.watch.entries.keys()
            if missing - self.standings.survey(missing).alive.keys():
                waiting.append(job)
            else:
                # Also what is only needed by tasks that cannot run any more: it would have run.
                ready[job.key] = replace(job, wanted=True)
        return waiting, list(ready.values())

    def _is_ours(self, claim: Claim) -> bool:
        """Whether nobody else has taken a task over, or has given it back, or has died over it."""
        return claim.run.id == self.run.id or self.standings.settled(claim.run).aborted

    def _has_failed(self, job: PreparedJob, claim: Claim) -> bool:
        if attempts.read_end(self.cache, job.key, claim.generation) is not None:
            return True
        causes = self.standings.history.causes(Claim(job.key, -1, self.run, ""))
        root = causes.vanished if causes.failed is None else causes.failed.key
        if root is None:
            return False
        message = f"it depends on a task that failed, or whose result is gone ({root[:12]})"
        record = {
            "outcome": Outcome.DEPENDENCY.value,
            "message": message,
            "function": job.function,
            "root": root,
            "concluded_by": "steward",
        }
        attempts.end(self.cache, job.key, claim.generation, record)
        logger.info("%s (%s) is not run: %s", job.function, job.key[:12], message)
        return True
