"""The workers of one client: a launcher that gives each job to a process that waits for one.

One thread starts the workers, another one hears what they say; the queue's thread gives them jobs.
What all touch is under one lock, which nobody holds while a batch system is asked for something.

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
import weakref
from collections import deque
from collections.abc import Callable
from typing import Final

from dask_batch.backends.base import Job, JobState
from dask_batch.backends.within.launcher import Ended, Launcher, Room
from dask_batch.backends.workers.farewell import bid_farewell, ready_of
from dask_batch.backends.workers.forks import let_go_in_forks
from dask_batch.backends.workers.staff import Staff
from dask_batch.backends.workers.worker import Assignment, State, Worker, how_it_ended
from dask_batch.errors import BackendError, ResourceError
from dask_batch.job.channel import Channel, Message

__all__ = ["WorkerPool"]

logger = logging.getLogger(__name__)

_LOOK_S: Final = 1.0
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
        self._to_do = threading.Event()
        self._broken = False
        self._disbanded: list[Worker] = []
        self._bell, self._ring = os.pipe()
        for end in (self._bell, self._ring):
            os.set_blocking(end, False)
        self._hang_up = weakref.finalize(self, _close, os.getpid(), self._bell, self._ring)
        let_go_in_forks(self)

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
        self._hang_up()

    def abandon(self) -> None:
        """Let go of all descriptors, in a fork of the client.

        The workers learn by the end of their connection that their client is gone; a fork that has
        a copy of it would keep them.
        """
        self._staff.closing = True
        if self._hang_up.detach() is not None:
            os.close(self._bell)
            os.close(self._ring)
        for worker in self._staff.workers.values():
            if worker.channel is not None:
                worker.channel.close()

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
            elif not (self._staff.closing or self._broken):
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
        if self._staff.closing:
            return
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
        """Start workers and see them end, until all are to.

        All in one thread: what it starts may end with it. What the workers say is heard in another
        one, as starting may take as long as a batch system does.
        """
        listener = threading.Thread(
            target=self._go_on, args=(self._listen,), name="dask-batch-workers", daemon=True
        )
        listener.start()
        self._go_on(self._tend)
        listener.join()
        with self._lock:
            workers = list(self._staff.workers.values())
            for worker in workers:
                self._staff.dismiss(worker)
        bid_farewell([*self._disbanded, *workers])

    def _go_on(self, turn: Callable[[], None]) -> None:
        """Do something again and again, until all workers are to end."""
        try:
            while not (self._staff.closing or self._broken):
                turn()
        except Exception as error:
            logger.exception("the workers cannot be gone on with; they are ended")
            self._break(error)

    def _listen(self) -> None:
        """Wait for news, and heed them."""
        with self._lock:
            channels = {w.channel: w for w in self._staff.workers.values() if w.channel}
        ready = ready_of([self._bell, *channels], _LOOK_S)
        if not ready:
            return
        with self._lock:
            if self._bell in ready:
                os.read(self._bell, 4096)
            for channel in channels.keys() & set(ready):
                self._hear(channels[channel])
            self._assign()
        self._to_do.set()
        self.news()

    def _tend(self) -> None:
        """Look for workers that have ended, and start those that are due."""
        self._to_do.wait(_LOOK_S)
        self._to_do.clear()
        with self._lock:
            absent = self._staff.absent()
        found = self._staff.look(absent)
        with self._lock:
            self._staff.bury(found)
        failed = not self._launch()
        with self._lock:
            self._assign()
        if found or failed:
            self.news()

    def _launch(self) -> bool:
        """Start the workers that are due, without the lock; return whether that could be done."""
        while True:
            with self._lock:
                worker = self._staff.next()
            if worker is None:
                return True
            try:
                started = self._staff.start(worker)
            except Exception as error:
                with self._lock:
                    self._staff.failed(worker, error)
                if not isinstance(error, BackendError):
                    raise
                return False
            with self._lock:
                self._staff.launched(worker, started)

    def _break(self, error: Exception) -> None:
        """Fail all jobs: nobody must wait for a thread that has ended."""
        with self._lock:
            self._broken = True
            workers = self._staff.disband(f"{type(error).__name__}: {error}")
            self._disbanded += workers
            for worker in workers:
                worker.finish(Ended(JobState.FAILED, reason=str(self._staff.why_none())))
            self._assign()
        self._wake()
        self.news()

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
        self._to_do.set()
        with contextlib.suppress(BlockingIOError, OSError):  # it rings already; or closed
            os.write(self._ring, b"w")


def _close(pid: int, *ends: int) -> None:
    if os.getpid() == pid:
        for end in ends:
            os.close(end)
