"""``python -m dask_batch.steward DEFINITION NUMBER``: look after a run when nobody else does.

A steward is a small job that was handed over with a run. The batch system starts it when one of the
run's jobs has failed, or when half of a window has ended; it does once what a client's engine does
all the time, and ends:

1. it **looks** until nothing more can be concluded now: what is to be repeated has been, what has
   failed for good is on record, and what depended on that is swept away;
2. the steward of a full queue's rest **hands it over**, as a run with stewards of its own;
3. it hands over its **successor**, if jobs are left whose failure somebody will have to see to.

It shares the claims with all clients and other stewards, so it may run beside them, or twice, and
be killed at any time: what it did not come to do is done by whoever looks next.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from dask_batch.backends.base import Backend, Job
from dask_batch.backends.registry import open_backend
from dask_batch.cache import attempts
from dask_batch.cache.claims import Claim, Claims, Run, RunLog
from dask_batch.cache.definitions import read_definition
from dask_batch.cache.store import Cache
from dask_batch.entries import Entry
from dask_batch.errors import BackendError, QueueFullError
from dask_batch.follow import Outcome
from dask_batch.handover import HandOver
from dask_batch.job.surroundings import job_id
from dask_batch.lanes import RUN_TIME_S, Lanes, steward_job
from dask_batch.preparation import PreparedJob
from dask_batch.reread import definition_path, job_of, reread_jobs
from dask_batch.standing import Standings
from dask_batch.watch import Pace, Watch

__all__ = ["Steward", "main"]

logger = logging.getLogger(__name__)

_BUDGET_S: Final = RUN_TIME_S * 2 / 3
"""For how long it looks and tries; the rest of its time is for what it is at just then."""
_LEASE_S: Final = 20.0
"""Its own time is short, so it waits less long for others to finish what they began."""
_SUCCESSORS: Final = 50
"""So many stewards in a row may wait for room, each for its whole time."""
_PAUSES_S: Final = (5.0, 10.0, 20.0, 40.0, 80.0, 160.0)
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
        )
        self._own_id = own_id
        self._clock = clock
        self._deadline = clock() + _BUDGET_S

    def __call__(self) -> None:
        """Do what is to be done now."""
        log = self.standings.settled(self.run)
        if log.aborted:
            logger.info("run %s was taken back: there is nothing to do", self.run.id)
            return
        jobs = reread_jobs(self.cache, self.run)
        lanes = self._lanes(jobs, log)
        self._take_up(jobs, log)
        self._look()
        rest_open = lanes.hands_over(self.number) and not self._hand_over_rest(jobs)
        self._hand_over_successor(lanes, rest_open=rest_open)

    def _lanes(self, jobs: Sequence[PreparedJob], log: RunLog) -> Lanes:
        named = zip(self.run.jobs, jobs, strict=True)
        repeatable = (name for (name, _), job in named if job.repeatable and name not in log.left)
        return Lanes(tuple(repeatable), left=bool(log.left))

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
        before = set(self.watch.entries)
        while self.watch.entries and self._clock() < self._deadline:
            self.watch.look()
            if all(self._rests(entry) for entry in self.watch.entries.values()):
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

    # ---- the rest of the run ---------------------------------------------------------------

    def _hand_over_rest(self, jobs: Sequence[PreparedJob]) -> bool:
        """Hand over what a full queue left; return whether somebody else looks after it now."""
        for pause_s in (*_PAUSES_S, *[_PAUSES_S[-1]] * RUN_TIME_S):
            waiting, ready = self._rest(jobs)
            if ready and not self._handed_over(ready):
                waiting = ready
            if not waiting:
                return True
            if self._clock() + pause_s > self._deadline:
                break
            logger.info("%d task(s) wait; again in %.0f s", len(waiting), pause_s)
            self._pause(pause_s)
        return False

    def _handed_over(self, jobs: Sequence[PreparedJob]) -> bool:
        """Hand tasks over; return whether all of them are, or will be by another steward."""
        pending = {key: entry.standing for key, entry in self.watch.entries.items()}
        handed = self._hand_over(jobs, pending)
        if handed.submitted:
            logger.info(
                "%d task(s) were handed over as run %s, %d still wait for room",
                len(handed.submitted), handed.run_id, len(handed.left),
            )  # fmt: skip
        return not handed.left or handed.heir is not None

    def _pause(self, seconds: float) -> None:
        """Wait, and look meanwhile."""
        until = self._clock() + seconds
        while (left_s := until - self._clock()) > 0:
            if self.watch.entries:
                self.watch.look()
            self.backend.wait(min(left_s, max(self.watch.look_s, 1.0)))

    def _rest(self, jobs: Sequence[PreparedJob]) -> tuple[list[PreparedJob], list[PreparedJob]]:
        """Return the tasks that nobody has handed over, and those of them that can be now.

        One whose inputs have failed is put on record as failed.
        """
        left = self.claims.log(self.run.id).left
        names = {key: name for name, key in self.run.jobs}
        there = self.cache.present({key for job in jobs for key in (job.key, *job.inputs)})
        waiting: list[PreparedJob] = []
        ready: dict[str, PreparedJob] = {}
        for job in jobs:
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
        """Whether nobody else has taken a task over, or has given it back."""
        return claim.run.id == self.run.id or self.claims.log(claim.run.id).aborted

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

    # ---- the next one ----------------------------------------------------------------------

    def _hand_over_successor(self, lanes: Lanes, *, rest_open: bool) -> None:
        """See to it that somebody looks again when that is needed."""
        if lanes.hands_over(self.number):
            enough = self.number >= _SUCCESSORS * lanes.count
            after_failure: list[str] = []
            after_end = [self._own_id] if rest_open and self._own_id and not enough else []
        else:
            after_failure, after_end = list(self._may_fail(lanes)), []
        if not after_failure and not after_end:
            logger.info("nothing is left that would need another steward")
            return
        number = self.number + lanes.count
        like = job_of(self.cache, self.claims, self.run, self.run.jobs[0][0])
        job = steward_job(
            self.run.id, like, number, after_failure=after_failure, after_end=after_end
        )
        for pause_s in (*_PAUSES_S, *[_PAUSES_S[-1]] * RUN_TIME_S):
            if self.backend.find([job.name]):
                logger.info("steward %d is there already", number)
                return
            if self._submitted(job):
                return
            if self._clock() + pause_s > self._deadline:
                logger.error("there is no room for steward %d: nobody looks after this run", number)
                return
            self._pause(pause_s)

    def _submitted(self, job: Job) -> bool:
        def accepted(name: str, job_id: str) -> None:
            self.claims.record(self.run.id, {"event": "steward", "name": name, "id": job_id})
            logger.info("job %s looks next, as %s", job_id, name)

        try:
            self.backend.submit([job], accepted)
        except QueueFullError as full:
            logger.info("no room for the next steward: %s", str(full.output).strip())
            return False
        return True

    def _may_fail(self, lanes: Lanes) -> Iterable[str]:
        """Return the ids of the jobs of this lane that are under way."""
        members = set(lanes.members(self.number))
        for entry in self.watch.entries.values():
            if entry.standing.job_name in members and entry.standing.job_id is not None:
                yield entry.standing.job_id

    def close(self) -> None:
        """Let go of the backends."""
        self.standings.close()
        self.backend.close()


def _pace(backend: Backend, common: Mapping[str, Any]) -> Pace:
    if not backend.shared:
        return Pace(0.0, 0.0, output_grace_s=1.0, failure_grace_s=0.0, lease_s=_LEASE_S)
    return Pace(
        2.0,
        10.0,
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


if __name__ == "__main__":
    if len(sys.argv) != 3 or not sys.argv[2].isdecimal():
        sys.exit("usage: python -m dask_batch.steward DEFINITION NUMBER")
    logging.basicConfig(
        level=logging.INFO, stream=sys.stdout, format="%(asctime)s %(name)s: %(message)s"
    )
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
