"""The workers of one client: a launcher that gives each job to a process that waits for one.

One thread starts the workers and hears what they say; the queue's thread gives them jobs. What both
touch is under one lock.

A worker that dies takes its task along: that has failed, and whether it is repeated is decided
where all repetitions are, from the records. Its place is filled again ``restart_limit`` times. When
no worker is left and none is to come, every job fails at once, and says why there is none.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from multiprocessing.connection import wait
from typing import Any, Final, cast

from dask_batch.backends.base import Job, JobState
from dask_batch.backends.within.launcher import Ended, Launcher, Room
from dask_batch.backends.workers.staff import Staff
from dask_batch.backends.workers.worker import Assignment, State, Worker, how_it_ended
from dask_batch.errors import ResourceError
from dask_batch.job.channel import Channel, Message

__all__ = ["WorkerPool"]

logger = logging.getLogger(__name__)

_LOOK_S: Final = 1.0
_FAREWELL_S: Final = 10.0
_OF_A_TASK: Final = frozenset({"cwd", "error_log_file"})
"""Resources that each task on a worker may have its own of."""


class WorkerPool:
    """Gives jobs to workers.

    Parameters
    ----------
    starter
        Starts the workers' processes, and is this pool's from now on.
    like
        A job that is a worker: what each needs and runs.
    count
        How many workers there are to be.
    restart_limit
        How often the process in a worker's place may be replaced when it dies.

    Attributes
    ----------
    news
        Called, from any thread, when there may be room or a job may have ended.
    left
        Called when all workers have ended: what they met at may go.
    """

    def __init__(self, starter: Launcher, like: Job, *, count: int, restart_limit: int = 0) -> None:
        self.news: Callable[[], None] = lambda: None
        self.left: Callable[[], object] = lambda: None
        self._staff = Staff(starter, like, count=count, restart_limit=restart_limit)
        self._waiting: deque[Assignment] = deque()
        self._lock = threading.RLock()
        self._thread: threading.Thread | None = None
        self._bell, self._ring = os.pipe()
        for end in (self._bell, self._ring):
            os.set_blocking(end, False)

    # ---- the launcher ----------------------------------------------------------------------

    def room(self) -> Room:
        """Return how many jobs may run at a time: as many as there are workers that answer.

        Where none is left, there is room for all: each then fails in :meth:`start`.
        """
        with self._lock:
            self._begin()
            return Room() if self._staff.deserted else Room(jobs=self._staff.able)

    def check(self, job: Job) -> None:
        """Refuse what a worker does not have.

        Raises
        ------
        ConfigurationError
            The workers themselves cannot be had, or the job asks for something else.
        """
        like = self._staff.like
        self._staff.starter.check(like)
        for name, asked in job.resources.items():
            has = like.resources.get(name)
            if asked is None or name in _OF_A_TASK or asked == has:
                continue
            raise ResourceError(
                f"job {job.name}: resource {name!r} = {asked!r}: its worker has {has!r}. With "
                "block_allocation=True all calls have the resources of the executor: name "
                f"{name!r} in its resource_dict"
            )

    def script(self, job: Job) -> str:
        """Return the script that starts a worker."""
        return self._staff.starter.script(self._staff.like)

    def start(self, job: Job, job_id: str) -> Assignment:
        """Give a job to a worker.

        Raises
        ------
        NoWorkerError, SubmissionError
            There is none, and none will come; it says why.
        """
        with self._lock:
            self._begin()
            if self._staff.deserted:
                raise self._staff.why_none()
            assignment = Assignment(job, job_id, self._kill)
            self._waiting.append(assignment)
            self._assign()
            return assignment

    def close(self) -> None:
        """End all workers. May be called twice."""
        with self._lock:
            if self._staff.closing:
                return
            self._staff.closing = True
        self._wake()
        if self._thread is not None:
            self._thread.join()
        self._staff.starter.close()
        self.left()
        for end in (self._bell, self._ring):
            os.close(end)

    # ---- for the executor ------------------------------------------------------------------

    @property
    def count(self) -> int:
        """How many workers there are to be."""
        return self._staff.count

    def resize(self, count: int) -> None:
        """Have so many workers from now on: more are started, or some end.

        Those that have nothing to do end first; busy ones end after their task.
        """
        with self._lock:
            if self._thread is None:
                self._staff.count = count
            elif not self._staff.closing:
                self._staff.resize(count)
        self._wake()
        self.news()

    def admit(self, channel: Channel, hello: Message) -> None:
        """Take in a worker that has connected."""
        with self._lock:
            worker = self._staff.workers.get(hello.get("worker", -1))
            if worker is None or worker.channel is not None or self._staff.closing:
                channel.close()
                return
            worker.channel, worker.hello = channel, hello
            logger.debug("%s is here", worker)
            if worker.leaving:
                self._staff.dismiss(worker)
        self._wake()

    # ---- jobs ------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Have workers started when there is a first job."""
        if self._thread is None and not self._staff.closing:
            self._staff.begin()
            self._wake()
            self._thread = threading.Thread(
                target=self._serve, name="dask-batch-workers", daemon=True
            )
            self._thread.start()

    def _assign(self) -> None:
        """Give waiting jobs to idle workers; fail them where no worker is left."""
        if self._staff.deserted:
            while self._waiting:
                self._waiting.popleft().how = self._staff.unbegun()
        for worker in self._staff.workers.values():
            if not self._waiting:
                return
            if worker.state is State.IDLE:
                worker.task = self._waiting.popleft()
                worker.state = State.BUSY
                worker.tell(worker.task.order())

    def _kill(self, assignment: Assignment) -> None:
        with self._lock:
            if assignment in self._waiting:
                self._waiting.remove(assignment)
                assignment.how = Ended(JobState.CANCELLED, reason="it was cancelled")
            for worker in self._staff.workers.values():
                if worker.task is assignment:
                    worker.tell({"do": "kill", "job": assignment.job_id})

    # ---- the thread ------------------------------------------------------------------------

    def _serve(self) -> None:
        """Start workers and hear them, until all are to end; see them end.

        All in one thread: what it starts may end with it.
        """
        try:
            while not self._staff.closing:
                self._take_turn()
        except Exception as error:
            logger.exception("the workers cannot be gone on with; they are ended")
            self._break(error)
        with self._lock:
            workers = list(self._staff.workers.values())
            for worker in workers:
                self._staff.dismiss(worker)
        _bid_farewell(workers)

    def _take_turn(self) -> None:
        """Wait for news, and heed them."""
        with self._lock:
            channels = {w.channel: w for w in self._staff.workers.values() if w.channel}
        ready = _ready([self._bell, *channels], _LOOK_S)
        with self._lock:
            if self._bell in ready:
                os.read(self._bell, 4096)
            for channel in channels.keys() & set(ready):
                self._hear(channels[channel])
            changed = self._staff.look() or bool(ready)
            if not self._staff.closing:
                self._staff.launch()
                self._assign()
        if changed:
            self.news()

    def _break(self, error: Exception) -> None:
        """Fail all jobs: nobody must wait for a thread that has ended."""
        with self._lock:
            workers = self._staff.disband(f"{type(error).__name__}: {error}")
            for worker in workers:
                worker.finish(Ended(JobState.FAILED, reason=str(self._staff.why_none())))
            self._assign()
        self.news()
        _bid_farewell(workers)

    def _hear(self, worker: Worker) -> None:
        """Take in what a worker says, or that it says no more."""
        assert worker.channel is not None
        try:
            message = worker.channel.receive()
        except EOFError:
            worker.channel.close()
            worker.channel = None
            worker.state, worker.lost_at = State.LOST, time.monotonic()
            return
        told = message.get("told")
        if told == "ready" and not worker.leaving:
            worker.state = State.IDLE
        elif told == "ended":
            worker.finish(how_it_ended(message))
            worker.state = State.STARTING if message.get("killed") else State.IDLE
            if worker.leaving:
                self._staff.dismiss(worker)
        elif told == "died":
            self._hear_of_death(worker, message)

    def _hear_of_death(self, worker: Worker, message: Message) -> None:
        """Take in that a worker's process has ended; its keeper is there, and can fork another."""
        if message.get("killed") and not worker.leaving:
            worker.finish(how_it_ended(message))
            worker.state = State.STARTING
            worker.tell({"do": "renew"})
            return
        if message.get("job") is None and worker.task is not None:
            self._waiting.appendleft(worker.task)  # it came too late to be begun
            worker.task = None
        self._staff.died(worker, how_it_ended(message), connected=True)

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError, OSError):  # it rings already; or closed
            os.write(self._ring, b"w")


def _ready(ends: Iterable[Any], timeout_s: float) -> list[Any]:
    """Wait until one of some ends can be read."""
    return cast("list[Any]", wait(cast("Any", list(ends)), timeout_s))


def _bid_farewell(workers: list[Worker]) -> None:
    """Wait a moment for workers to end; end those that do not."""
    until = time.monotonic() + _FAREWELL_S
    channels = {w.channel: w for w in workers if w.channel}
    while channels and (left_s := until - time.monotonic()) > 0:
        for channel in _ready(channels, left_s):
            try:
                channel.receive()
            except EOFError:
                channels.pop(channel).channel = None
                channel.close()
    for channel, worker in channels.items():
        worker.started.kill()
        channel.close()
