"""The thread that starts the jobs of a queue in the client's process, and sees them end.

All that a launcher does is done in this one thread, which lives as long as the queue: what it
starts is told by the kernel when it ends, and ends then, too.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from dask_batch.backends.base import Job, JobState
from dask_batch.backends.local.outcomes import under_verdict
from dask_batch.backends.local.records import Outcome, QueuedJob
from dask_batch.backends.within.entries import ClientQueue
from dask_batch.backends.within.launcher import Ended, Launcher, Room, Started
from dask_batch.errors import BackendError

__all__ = ["Keeper"]

logger = logging.getLogger(__name__)

_LOOK_S: Final = 1.0
"""How long news that nobody told may stay unknown."""
_GRACE_S: Final = 3.0
"""Between one try to end a job and the next, harder one."""
_LAST_S: Final = 10.0
"""How long a queue that is closed waits for the ends of its jobs."""


@dataclass(slots=True)
class _Running:
    """A job at work, and when it is to be ended."""

    started: Started
    limit_s: float | None
    deadline: float | None
    verdict: Outcome | None = None
    """Why it is being ended."""
    kill_at: float = 0.0


class Keeper:
    """Starts what is due, ends what is over its time or cancelled, and notes what has ended.

    Parameters
    ----------
    queue, launcher
        What is to run, and who runs it.
    job_id
        Gives the id of the job of a number.
    bound
        What of the launcher's room may be used.
    told
        Called without the lock after states have changed.

    Attributes
    ----------
    lock
        Held by whoever looks at the queue or changes it; notified after changes.
    failure
        What the thread has failed with: nothing will be started any more.
    """

    def __init__(
        self,
        queue: ClientQueue,
        launcher: Launcher,
        job_id: Callable[[int], str],
        bound: Callable[[Room], Room],
        told: Callable[[], None],
    ) -> None:
        self.lock = threading.Condition()
        self._queue = queue
        self._launcher = launcher
        self._job_id = job_id
        self._bound = bound
        self._told = told
        self.failure: BaseException | None = None
        self._over = Outcome(JobState.CANCELLED, reason="its client has closed the queue")
        self._running: dict[int, _Running] = {}
        self._to_end: dict[int, Outcome] = {}
        self._news = False
        self._closing = False
        self._thread: threading.Thread | None = None
        launcher.news = self.news

    # ---- for any thread --------------------------------------------------------------------

    def news(self) -> None:
        """Look soon: something has changed."""
        with self.lock:
            self._news = True
            self.lock.notify_all()

    def ensure(self) -> None:
        """Begin, if that has not been done; with the lock."""
        if self._thread is None and not self._closing:
            # A daemon: an interpreter that ends waits for jobs elsewhere, if at all.
            self._thread = threading.Thread(target=self._run, name="dask-batch-jobs", daemon=True)
            self._thread.start()

    def end(self, number: int, verdict: Outcome) -> None:
        """Have a job ended that is at work; with the lock."""
        self._to_end[number] = verdict
        self._news = True
        self.lock.notify_all()

    def close(self) -> None:
        """End all that runs, and this thread."""
        with self.lock:
            self._closing = self._news = True
            self.lock.notify_all()
            thread = self._thread
        if thread is None:
            self._launcher.close()
        elif thread is not threading.current_thread():
            thread.join()

    # ---- the thread ------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._await():
                self._take_turn()
        except BaseException as error:
            logger.exception("the queue in this process failed; its jobs are ended")
            self._fail(error)
        finally:
            try:
                self._end_all()
                self._launcher.close()
            finally:
                self._let_go()

    def _await(self) -> bool:
        """Wait until there is something to do; False at the end."""
        with self.lock:
            if not self._news:
                self.lock.wait(self._rest_s())
            self._news = False
            return not self._closing

    def _rest_s(self) -> float:
        now = time.monotonic()
        times = [run.deadline for run in self._running.values() if run.deadline is not None]
        times += [run.kill_at for run in self._running.values() if run.verdict is not None]
        return max(0.0, min([_LOOK_S, *(at - now for at in times)]))

    def _take_turn(self) -> None:
        now = time.monotonic()
        ended = {n: how for n, run in self._running.items() if (how := run.started.ended())}
        room = self._bound(self._launcher.room())
        with self.lock:
            for number, how in ended.items():
                self._note(number, how)
            self._queue.room.resize(room)
            due = self._queue.start_due()
            orders, self._to_end = self._to_end, {}
        for job in due:
            self._start(job, now)
        for number, verdict in orders.items():
            self._order(number, verdict, now)
        self._keep_limits(now)
        self._tell()

    def _tell(self) -> None:
        with self.lock:
            changed, self._queue.changed = bool(self._queue.changed), set()
            self._queue.ended.clear()
        if changed:
            self._told()

    # ---- beginnings ------------------------------------------------------------------------

    def _start(self, job: QueuedJob, now: float) -> None:
        """Start a job; what cannot be started has failed."""
        order: Job = job.payload
        try:
            started = self._launcher.start(order, self._job_id(job.number))
        except BackendError as error:
            self._failed(job.number, str(error), error)
        except Exception as error:
            logger.exception("job %s cannot be started", job.name)
            self._failed(job.number, f"it could not be started: {error!r}")
        else:
            limit_s = order.resources.get("run_time_max")
            deadline = None if limit_s is None else now + float(limit_s)
            self._running[job.number] = _Running(started, limit_s, deadline)

    def _failed(self, number: int, reason: str, error: Exception | None = None) -> None:
        with self.lock:
            self._queue.end(number, Outcome(JobState.FAILED, reason=reason, unbegun=error))
            self._news = True  # there is room again

    # ---- ends ------------------------------------------------------------------------------

    def _note(self, number: int, how: Ended) -> None:
        """Note how a job has ended; with the lock."""
        run = self._running.pop(number)
        outcome = Outcome(how.state, how.exit_code, how.signal, how.reason, how.unbegun)
        self._queue.end(number, under_verdict(outcome, run.verdict))

    def _order(self, number: int, verdict: Outcome, now: float) -> None:
        """Begin to end a job."""
        run = self._running.get(number)
        if run is not None and run.verdict is None:
            run.verdict, run.kill_at = verdict, now

    def _keep_limits(self, now: float) -> None:
        for number, run in self._running.items():
            if run.verdict is None and run.deadline is not None and now >= run.deadline:
                reason = f"it ran longer than run_time_max = {run.limit_s:g} s"
                self._order(number, Outcome(JobState.TIMEOUT, reason=reason), now)
            if run.verdict is not None and now >= run.kill_at:
                run.kill_at = now + _GRACE_S
                run.started.kill()

    def _end_all(self) -> None:
        """End what runs, and wait for that, but not for ever."""
        until = time.monotonic() + _LAST_S
        while self._running:
            now = time.monotonic()
            if now > until:
                logger.warning("%d job(s) do not end", len(self._running))
                return
            for number in list(self._running):
                self._order(number, self._over, now)
            self._keep_limits(now)
            ended = {n: how for n, run in self._running.items() if (how := run.started.ended())}
            with self.lock:
                for number, how in ended.items():
                    self._note(number, how)
                if not self._news and self._running:
                    self.lock.wait(0.1)
                self._news = False

    def _let_go(self) -> None:
        """Call over what has not ended in time: nobody will look after it again."""
        said = f"{self._over.reason}, and it was not seen to end"
        with self.lock:
            self._running.clear()
            for job in list(self._queue.jobs):
                if job.state is JobState.RUNNING:
                    self._queue.end(job.number, replace(self._over, reason=said))
        self._told()

    def _fail(self, error: BaseException) -> None:
        """Let nobody wait for what will never start."""
        self._over = Outcome(JobState.FAILED, reason=f"its queue has failed: {error!r}")
        with self.lock:
            self._closing = True
            self.failure = error
            for job in list(self._queue.jobs):
                if not job.state.ended and job.state is not JobState.RUNNING:
                    self._queue.end_unstarted(job.number, self._over)
        self._told()
