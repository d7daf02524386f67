"""Workers come and go: started, counted, dismissed, and replaced when they die.

All of it happens under the lock of the pool that they belong to, but for what asks whoever starts
them: that may take as long as a batch system does, and is for the pool's one thread.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections import deque
from dataclasses import replace
from typing import Final

from dask_batch.backends.base import Job, JobState
from dask_batch.backends.within.launcher import Ended, Launcher, Started
from dask_batch.backends.workers.worker import State, Worker, words_of
from dask_batch.errors import BackendError, NoWorkerError, SubmissionError
from dask_batch.job.surroundings import WORKER_VARIABLE

__all__ = ["Staff"]

logger = logging.getLogger(__name__)

_PATIENCE_S: Final = 30.0
"""How long what starts workers may take to tell how one has ended whose connection has."""


class Staff:
    """The workers of one pool.

    Parameters
    ----------
    starter
        Starts their processes.
    like
        A job that is a worker: what each needs and runs.
    count
        How many there are to be.
    restart_limit
        How often the process in a worker's place may be replaced when it dies.

    Attributes
    ----------
    workers
        By number.
    closing
        Whether all end.
    """

    def __init__(self, starter: Launcher, like: Job, *, count: int, restart_limit: int) -> None:
        self.starter = starter
        self.like = like
        self.count = count
        self.workers: dict[int, Worker] = {}
        self.closing = False
        self._restart_limit = restart_limit
        self._numbers = itertools.count()
        self._due: deque[int] = deque()
        """Workers to be started: for each, how often the process in its place has died."""
        self._why = ""
        """Why the last one is gone that has not been replaced."""
        self._refusal: SubmissionError | None = None
        """The refusal that this was, if the batch system has taken none."""

    # ---- how many there are ----------------------------------------------------------------

    @property
    def deserted(self) -> bool:
        """Whether there is no worker, and none is to come."""
        return not (self.workers or self._due)

    @property
    def able(self) -> int:
        """How many have a task, or could have one."""
        return sum(w.state in (State.IDLE, State.BUSY) for w in self.workers.values())

    def begin(self) -> None:
        """Have as many started as there are to be."""
        self._due.extend([0] * self.count)

    def resize(self, count: int) -> None:
        """Have more started, or some end: first those with nothing to do, others after theirs."""
        self.count = count
        staying = [w for w in self.workers.values() if not w.leaving]
        missing = count - len(staying) - len(self._due)
        self._due.extend([0] * missing)
        while self._due and missing < 0:
            self._due.pop()
            missing += 1
        for worker in sorted(staying, key=_worth)[: max(-missing, 0)]:
            worker.leaving = True
            if worker.task is None:
                self.dismiss(worker)

    def why_none(self) -> NoWorkerError | SubmissionError:
        """Return why there is no worker, and what to try: a refusal in the words it was made in."""
        if self._refusal is not None:
            return self._refusal
        logs = f"what the workers said is in {self.like.log_directory}"
        return NoWorkerError(
            f"no worker is left: {self._why or 'all have been dismissed'}",
            f"Raise restart_limit (it is {self._restart_limit}) if a worker died by accident; if "
            f"memory was short, ask for more; {logs}.",
        )

    def unbegun(self) -> Ended:
        """Return the end of a job that no worker has begun, or ever will."""
        why = self.why_none()
        return Ended(JobState.FAILED, reason=str(why), unbegun=why)

    # ---- they come -------------------------------------------------------------------------

    def next(self) -> Worker | None:
        """Return the next one that is to be started; None if there is none, or all end.

        It is counted from now on: it may be here before whoever starts it has come back.
        """
        if self.closing or not self._due:
            return None
        number = next(self._numbers)
        taken = {worker.place for worker in self.workers.values()}
        place = next(place for place in itertools.count() if place not in taken)
        worker = self.workers[number] = Worker(number, place, self._due.popleft())
        return worker

    def start(self, worker: Worker) -> Started:
        """Start a worker's process; to be called without the lock.

        Raises
        ------
        BackendError
            It cannot be started.
        """
        number = worker.number
        job = replace(
            self.like,
            index=number,
            name=f"{self.like.name}-{number}",
            environment={**self.like.environment, WORKER_VARIABLE: str(worker.place)},
        )
        return self.starter.start(job, job.name)

    def launched(self, worker: Worker, started: Started) -> None:
        """Take in that a worker's process has been started."""
        self._refusal = None
        worker.started = started

    def failed(self, worker: Worker, error: Exception) -> None:
        """Take in that a worker could not be started: no other will be, either."""
        self.workers.pop(worker.number, None)
        if isinstance(error, BackendError):
            self._why = f"worker {worker.number} could not be started: {error}"
            self._refusal = error if isinstance(error, SubmissionError) else None
            logger.warning(self._why)
            self._due.clear()
        else:  # a fault of our own: who looks before it is told knows why
            self._why = f"{type(error).__name__}: {error}"

    # ---- and go ----------------------------------------------------------------------------

    def dismiss(self, worker: Worker) -> None:
        """Have a worker end; one that is not connected is ended by who looks for it next."""
        worker.leaving = True
        if worker.state is State.IDLE:
            worker.state = State.STARTING  # no task for it any more
        if worker.channel is not None:
            worker.tell({"do": "end"})

    def disband(self, why: str) -> list[Worker]:
        """Have all workers end, and none started any more; return those that there were."""
        self._why = why
        self._due.clear()
        workers = list(self.workers.values())
        for worker in workers:
            self.dismiss(worker)
        self.workers.clear()
        return workers

    def died(self, worker: Worker, how: Ended, *, connected: bool) -> None:
        """Fill the place of a worker whose process has ended by itself, if that may be."""
        again = worker.restarts < self._restart_limit
        worker.restarts += 1
        limit = f"restart_limit={self._restart_limit}"
        next_ = f"it is replaced ({worker.restarts} of {limit})" if again else f"{limit} is used up"
        said = f"{worker} {words_of(how)}{_task_of(worker)}; {next_}"
        expected = self.closing or worker.leaving
        worker.finish(how if expected else replace(how, reason=said))
        worker.state = State.STARTING
        if expected:
            if connected:
                self.dismiss(worker)
            return
        logger.warning(said)
        if again and connected:
            worker.tell({"do": "renew"})
        elif again:
            self._due.append(worker.restarts)
        else:
            self._why = said
            self._let_go(worker)

    def _let_go(self, worker: Worker) -> None:
        """Forget a worker that has no place any more."""
        self.workers.pop(worker.number, None)
        if worker.channel is not None:
            worker.tell({"do": "end"})
            worker.channel.close()
            worker.channel = None

    def absent(self) -> list[Worker]:
        """Return the workers that are not connected, and have been started."""
        return [w for w in self.workers.values() if w.channel is None and w.started is not None]

    def look(self, absent: list[Worker]) -> dict[int, Ended]:
        """Return how the processes of some workers have ended; to be called without the lock."""
        found: dict[int, Ended] = {}
        now = time.monotonic()
        for worker in absent:
            how = worker.started.ended() if worker.started is not None else None
            if how is None and worker.leaving and not worker.killed:
                worker.kill()
            if how is None and worker.state is State.LOST and now - worker.lost_at > _PATIENCE_S:
                worker.kill()
                how = Ended(JobState.FAILED, reason="its connection has ended")
            if how is not None:
                found[worker.number] = how
        return found

    def bury(self, found: dict[int, Ended]) -> None:
        """Take in how processes have ended; of those that are connected by now, later."""
        for number, how in found.items():
            worker = self.workers.get(number)
            if worker is not None and worker.channel is None:
                del self.workers[number]
                self.died(worker, how, connected=False)


def _worth(worker: Worker) -> tuple[int, int]:
    """Order workers by what is lost with them: the least first."""
    order = (State.LOST, State.STARTING, State.IDLE, State.BUSY)
    return order.index(worker.state), -worker.number


def _task_of(worker: Worker) -> str:
    return f" while it ran {worker.task.job.name}" if worker.task is not None else ""
