"""Stewards: they look after a run when nobody else does.

A steward is a small job that was handed over with a run. The batch system starts it when one of the
run's jobs has failed, or when half of a window has ended; it does once what a client's engine does
all the time, and ends:

1. a second one **stands by** while the first of its lane is at work, and goes on from there if that
   is killed;
2. it **looks** until nothing more can be concluded now: what is to be repeated has been, what has
   failed for good is on record, and what depended on that is swept away;
3. the steward of a full queue's rest **hands it over**, as a run with stewards of its own;
4. it hands over its **successor**, if jobs are left whose failure somebody will have to see to.

It shares the claims with all clients and other stewards, so it may run beside them, or twice, and
be killed at any time: what it did not come to do is done by whoever looks next.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from dask_batch.backends.base import Backend, tells_at_once
from dask_batch.backends.registry import open_backend
from dask_batch.cache.claims import Claims, Run, RunLog
from dask_batch.cache.definitions import read_definition
from dask_batch.cache.store import Cache
from dask_batch.errors import BackendError
from dask_batch.evidence.standing import Standings
from dask_batch.following.entries import Entry
from dask_batch.following.watch import Pace, Watch
from dask_batch.job.surroundings import job_id
from dask_batch.preparing.preparation import PreparedJob
from dask_batch.steward.leftover import Leftover
from dask_batch.steward.succession import Succession
from dask_batch.submitting.handover import HandOver
from dask_batch.submitting.lanes import RUN_TIME_S, Lanes
from dask_batch.submitting.reread import definition_path, reread_jobs

__all__ = ["Steward", "main"]

logger = logging.getLogger(__name__)

_BUDGET_S: Final = RUN_TIME_S * 2 / 3
"""For how long it looks and tries; the rest of its time is for what it is at just then."""
_LEAST_S: Final = 120.0
"""What one has that has stood by for long."""
_LEASE_S: Final = 20.0
"""Its own time is short, so it waits less long for others to finish what they began."""
_OF_THE_RUN: Final = frozenset({"backend", "resources", "run", "surroundings"})


class Steward:
    """What is done for one run, once.

    Parameters
    ----------
    cache, backend
        Where the run's records are, and where its jobs are.
    run
        The run.
    number
        Which of its stewards this is.
    own_id
        The id of this steward's own job; empty if it is not known.
    clock
        Tells the time in seconds.
    """

    def __init__(
        self,
        cache: Cache,
        backend: Backend,
        run: Run,
        number: int,
        *,
        own_id: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.cache = cache
        self.backend = backend
        self.run = run
        self.number = number
        self.claims = Claims(cache)
        self.standings = Standings(cache, self.claims, backend, open_backend)
        common = read_definition(definition_path(cache, run.id), 0).common
        pace = _pace(backend, common)
        self.watch = Watch(cache, backend, pace, self.standings)
        self._hand_over = HandOver(
            self.standings,
            common={name: value for name, value in common.items() if name not in _OF_THE_RUN},
            attended=False,
        )
        self._own_id = own_id
        self._clock = clock
        self._deadline = clock() + _BUDGET_S

    def __call__(self) -> None:
        """Do what is to be done now."""
        if self.standings.settled(self.run).aborted:
            logger.info("run %s was taken back: there is nothing to do", self.run.id)
            return
        jobs = reread_jobs(self.cache, self.run)
        lanes = self._lanes(jobs, self.claims.log(self.run.id))
        succession = self._succession(lanes)
        if succession.stand_by(self._deadline):
            logger.info("all that is to be done now has been done by the other steward")
            return
        self._deadline = max(self._deadline, self._clock() + _LEAST_S)
        self._take_up(jobs, self.claims.log(self.run.id))
        self._look()
        rest_open = lanes.hands_over(self.number) and not self._leftover(jobs).hand_over()
        under_way = {entry.standing for entry in self.watch.entries.values()}
        if succession.hand_over(under_way, self._deadline, rest_open=rest_open):
            succession.mark()

    def _succession(self, lanes: Lanes) -> Succession:
        return Succession(
            self.cache,
            self.claims,
            self.backend,
            self.run,
            lanes,
            self.number,
            own_id=self._own_id,
            clock=self._clock,
            pause=lambda seconds: self._pause(seconds),
        )

    def _leftover(self, jobs: Sequence[PreparedJob]) -> Leftover:
        return Leftover(
            self.run,
            jobs,
            self.watch,
            self.standings,
            self._hand_over,
            deadline=self._deadline,
            clock=self._clock,
            pause=lambda seconds: self._pause(seconds),
        )

    def _lanes(self, jobs: Sequence[PreparedJob], log: RunLog) -> Lanes:
        named = zip(self.run.jobs, jobs, strict=True)
        repeatable = (name for (name, _), job in named if job.repeatable and name not in log.left)
        return Lanes(tuple(repeatable), left=bool(log.left), accepted=len(jobs) - len(log.left))

    # ---- looking ---------------------------------------------------------------------------

    def _take_up(self, jobs: Sequence[PreparedJob], log: RunLog) -> None:
        """Watch the jobs of the run that have no result and are not another run's by now."""
        there = self.cache.present([job.key for job in jobs])
        for (name, key), job in zip(self.run.jobs, jobs, strict=True):
            claim = self.claims.current(key)
            ours = claim is not None and claim.run.id == self.run.id
            if claim is not None and ours and key not in there and name in log.ids:
                standing = self.standings.standing(claim, log.ids[name])
                self.watch.add(standing, job.function, ours=False)
        for job in jobs:
            self.watch.link(job.key, job.inputs)
        logger.info(
            "steward %d of run %s: %d of %d task(s) have results, %d are under way",
            self.number, self.run.id, len(there), len(jobs), len(self.watch.entries),
        )  # fmt: skip

    def _look(self) -> None:
        """Look until nothing more can be concluded now."""
        self.watch.guarded.add(self.run.id)
        before = set(self.watch.entries)
        while self.watch.entries and self._clock() < self._deadline:
            self.watch.look()
            resting = all(self._rests(entry) for entry in self.watch.entries.values())
            if resting and not self.watch.ghosts.suspected:
                break
            self.backend.wait(max(self.watch.look_s, self.watch.not_before - time.monotonic()))
        ended = before - self.watch.entries.keys()
        there = self.cache.present(ended)
        logger.info(
            "%d task(s) have finished, %d have failed for good, %d are under way",
            len(there), len(ended) - len(there), len(self.watch.entries),
        )  # fmt: skip

    def _rests(self, entry: Entry) -> bool:
        """Whether there is nothing to conclude about a job before something happens to it."""
        if entry.status is None or not entry.course.sure:
            return False
        return not entry.over or bool(entry.parents & self.watch.entries.keys())

    def _pause(self, seconds: float) -> None:
        """Wait, and look meanwhile."""
        until = self._clock() + seconds
        while (left_s := until - self._clock()) > 0:
            if self.watch.entries:
                self.watch.look()
            self.backend.wait(min(left_s, max(self.watch.look_s, 1.0)))

    def close(self) -> None:
        """Let go of the backends."""
        self.standings.close()
        self.backend.close()


def _pace(backend: Backend, common: Mapping[str, Any]) -> Pace:
    if not backend.shared:
        return Pace(0.0, 0.0, output_grace_s=1.0, failure_grace_s=0.0, lease_s=_LEASE_S)
    prompt = tells_at_once(backend)
    return Pace(
        0.0 if prompt else 2.0,
        0.0 if prompt else 10.0,
        output_grace_s=float(common.get("output_grace_s", 30.0)),
        failure_grace_s=float(common.get("failure_grace_s", 5.0)),
        lease_s=_LEASE_S,
    )


def main(definition: str, number: int) -> int:
    """Look after the run whose definitions these are.

    Parameters
    ----------
    definition
        The task-definition file of a run, in a cache directory.
    number
        Which of the run's stewards this is.

    Returns
    -------
    int
        The exit code: 0 if everything was done that could be done now.
    """
    path = Path(definition)
    cache = Cache(path.parent.parent, create=False)
    run = Claims(cache).run(path.stem)
    steward = Steward(cache, open_backend(run.backend), run, number, own_id=job_id())
    try:
        steward()
    except BackendError:
        logger.exception("%s does not answer: the rest is left to the next who looks", run.backend)
        return 1
    finally:
        steward.close()
    return 0
