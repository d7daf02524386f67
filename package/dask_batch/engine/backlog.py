"""What waits for room in the batch system's queue: requests of which some jobs were left.

The rest of a graph is handed over when half of the window before it has ended, and when there was
no room at all, after pauses that grow. A steward does the same when nobody is there. The two may
meet: each key has one claim, so whoever comes second finds the jobs of the first, and follows them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import CancelledError
from typing import Final

from dask_batch.backends.base import JobState
from dask_batch.cache import attempts
from dask_batch.cache.claims import Claim
from dask_batch.engine.request import Request, still_wanted
from dask_batch.errors import BackendError, GivenUpTaskError
from dask_batch.evidence.standing import Standings
from dask_batch.following.watch import Watch
from dask_batch.future import BatchFuture
from dask_batch.preparing.preparation import PreparedJob
from dask_batch.submitting.handover import Handed
from dask_batch.submitting.lanes import may_be_steward
from dask_batch.verdicts.failures import dependency_failure
from dask_batch.verdicts.follow import Outcome

__all__ = ["Backlog"]

logger = logging.getLogger(__name__)

_PAUSES_S: Final = (5.0, 10.0, 20.0, 40.0, 60.0, 120.0, 300.0)
"""Between tries to hand something over to a queue that took nothing; the last one is kept."""


class Backlog:
    """The requests that wait for room; belongs to the engine's thread.

    Parameters
    ----------
    watch
        What is under way.
    standings
        Where claims and their runs are.
    clock
        Tells the time in seconds.

    Attributes
    ----------
    requests
        The parts of requests that were left.
    guarded
        Whether a steward will hand them over if this process does not.
    """

    def __init__(
        self, watch: Watch, standings: Standings, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.requests: list[Request] = []
        self.guarded = False
        self._watch = watch
        self._standings = standings
        self._clock = clock
        self._window: frozenset[str] = frozenset()
        self._heirs: list[str] = []
        self._fruitless = 0
        self._not_before = 0.0
        self._tried_at = 0.0
        self._fresh = False
        self._inputs: dict[str, BatchFuture] = {}
        self._claims: dict[str, Claim] = {}

    def __bool__(self) -> bool:
        return bool(self.requests)

    # ---- coming in -------------------------------------------------------------------------

    def put(self, requests: Iterable[Request], handed: Handed) -> None:
        """Take in what a hand-over left of requests; what it did not leave is under way."""
        left = set(handed.left)
        self._fresh = False
        self._tried_at = self._clock()
        parts = (request.part(left) for request in requests)
        self.requests = [part for part in parts if part.jobs]
        self.guarded = bool(handed.heirs) or (self.guarded and not handed.submitted)
        if handed.submitted:
            # Whoever hands over the rest, it is a later steward's to go on from there.
            self.dismiss(self._heirs)
            self._heirs = list(handed.heirs)
            self._window = frozenset(
                key
                for key, standing in handed.under_way.items()
                if standing.run_id == handed.run_id
            )
            self._fruitless = 0
            self._not_before = 0.0
        elif left:
            logger.warning(
                "%s takes no more jobs for now: %d job(s) wait for room, next try in %.0f s",
                self._watch.backend.name, len(left), self._pause(),
            )  # fmt: skip
        if left and handed.submitted:
            logger.warning(
                "the queue of %s is full: %d job(s) are handed over, %d wait for room%s",
                self._watch.backend.name, len(handed.submitted), len(left),
                "" if self.guarded else "; they are handed over only while this process lives",
            )  # fmt: skip
        self._claims = self._current(left)
        self._await_inputs()

    def join(self, requests: Iterable[Request]) -> None:
        """Take in new requests: they wait behind those for which there was no room."""
        self.requests += requests
        self.guarded = False
        self._fresh = True

    def dismiss(self, stewards: Sequence[str]) -> None:
        """Cancel stewards that have not begun: there is nothing for them to do any more."""
        backend = self._watch.backend
        try:
            states = backend.status(stewards) if stewards else {}
            waiting = {i: s for i, s in states.items() if s.state is JobState.WAITING}
            backend.cancel([i for i, found in waiting.items() if may_be_steward(found.name)])
        except BackendError as error:
            # They would find out by themselves.
            logger.info("the stewards %s could not be cancelled: %s", ", ".join(stewards), error)

    def put_back(self, requests: Sequence[Request], error: BaseException) -> None:
        """Take requests back in that could not be handed over now."""
        logger.warning(
            "the rest of the graph cannot be handed over to %s now; again later: %s",
            self._watch.backend.name, error,
        )  # fmt: skip
        self.requests = list(requests)
        self._pause()

    def _pause(self) -> float:
        pause_s = _PAUSES_S[min(self._fruitless, len(_PAUSES_S) - 1)]
        self._fruitless += 1
        self._not_before = self._clock() + pause_s
        return pause_s

    def _current(self, keys: Iterable[str]) -> dict[str, Claim]:
        claims = ((key, self._standings.claims.current(key)) for key in keys)
        return {key: claim for key, claim in claims if claim is not None}

    def _await_inputs(self) -> None:
        """Hear of the failure of what is under way and needed here; let go of what no longer is."""
        needed = {key for request in self.requests for job in request.jobs for key in job.inputs}
        for key in needed & self._watch.entries.keys() - self._inputs.keys():
            self._inputs[key] = BatchFuture(key=key)
            self._watch.attach(self._inputs[key])
        for key in self._inputs.keys() - needed:
            self._watch.forget(self._inputs.pop(key))

    # ---- going on --------------------------------------------------------------------------

    @property
    def due_in_s(self) -> float:
        """How long until the next try to hand the rest over is due; 0 if it is."""
        if self._fresh:
            return max(0.0, self._tried_at + _PAUSES_S[0] - self._clock())
        open_keys = self._window & self._watch.entries.keys()
        if 2 * len(open_keys) > len(self._window):
            return _PAUSES_S[-1]
        return max(0.0, self._not_before - self._clock())

    def take(self) -> list[Request]:
        """Return what is to be handed over now, and forget it.

        What somebody else has handed over in the meantime is followed from here on.
        """
        self.sweep()
        requests, self.requests = still_wanted(self.requests), []
        self._follow_others(requests)
        return requests

    def sweep(self) -> None:
        """Fail what depends on a task that has failed since."""
        failed = {key: error for key, future in self._inputs.items() if (error := _failure(future))}
        if not failed:
            return
        self._fail_dependents(self.requests, failed)
        parts = (
            request.part({job.key for job in request.jobs} - failed.keys())
            for request in self.requests
        )
        self.requests = [part for part in parts if part.jobs]
        self._await_inputs()

    def _fail_dependents(
        self, requests: Sequence[Request], failed: dict[str, BaseException]
    ) -> None:
        """Fail what depends on failures, and enter it among them."""
        for request in requests:
            for job in request.jobs:
                cause = next((failed[key] for key in sorted(job.inputs) if key in failed), None)
                if cause is None:
                    continue
                root = str(getattr(cause, "root", "")) or str(getattr(cause, "key", ""))
                root = root or next(key for key in sorted(job.inputs) if key in failed)
                function = str(getattr(cause, "function", ""))
                error = dependency_failure(
                    cause, key=job.key, function=job.function, root=root, root_function=function
                )
                failed[job.key] = error
                self._record(job, Outcome.DEPENDENCY, error, root)
                for future in request.futures:
                    if future.key == job.key:
                        future._fail(error)

    def _record(self, job: PreparedJob, outcome: Outcome, error: BaseException, root: str) -> None:
        """Leave word for others that a job is not to be handed over."""
        claim = self._claims.get(job.key)
        if claim is not None:
            record = {
                "outcome": outcome.value,
                "message": str(error).partition("\n")[0],
                "function": job.function,
                "root": root,
                "concluded_by": "client",
            }
            attempts.end(self._watch.cache, job.key, claim.generation, record)

    def _follow_others(self, requests: Sequence[Request]) -> None:
        """Follow the jobs that somebody else has handed over, whatever has become of them."""
        functions = {job.key: job.function for request in requests for job in request.jobs}
        open_keys = functions.keys() - self._watch.entries.keys()
        open_keys -= self._watch.cache.present(open_keys)
        for key, claim in self._current(open_keys).items():
            before = self._claims.get(key)
            if before is None or claim.generation == before.generation:
                continue
            log = self._standings.settled(claim.run)
            job_id = log.ids.get(claim.job_name)
            if job_id is not None and not log.aborted:
                self._watch.follow(self._standings.standing(claim, job_id), functions[key])

    def give_up(self, run_id: str, cause: BaseException) -> None:
        """Fail what was left of a run whose first jobs have all died of one cause."""
        given_up = {key for key, claim in self._claims.items() if claim.run.id == run_id}
        kept = []
        for request in self.requests:
            if not given_up & {job.key for job in request.jobs}:
                kept.append(request)
                continue
            for job in request.jobs:
                error = GivenUpTaskError(
                    f"{job.function} was not handed over: the first jobs of its graph all died of "
                    f"one cause before they began: {str(cause).partition(chr(10))[0]}",
                    key=job.key,
                    function=job.function,
                )
                error.__cause__ = cause
                self._record(job, Outcome.GIVEN_UP, error, "")
                request.part({job.key}).fail(error)
        self.requests = kept
        self.dismiss(self._heirs)
        self._await_inputs()

    # ---- the end ---------------------------------------------------------------------------

    def cancel(self) -> None:
        """Cancel all that waits."""
        requests, self.requests = self.requests, []
        for request in requests:
            request.cancel()
        self._await_inputs()

    def fail(self, error: BaseException) -> None:
        """Fail all that waits."""
        requests, self.requests = self.requests, []
        for request in requests:
            request.fail(error)
        self._await_inputs()

    def forget(self) -> None:
        """Let go of requests that nobody wants any more."""
        self.requests = still_wanted(self.requests)
        self._await_inputs()


def _failure(future: BatchFuture) -> BaseException | None:
    """Return why what a future stands for has failed; None if it has not."""
    if not future.done():
        return None
    return CancelledError() if future.cancelled() else future.exception()
