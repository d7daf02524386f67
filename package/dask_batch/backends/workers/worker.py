"""One worker as its client sees it, and the job that it has been given."""

from __future__ import annotations

import enum
import signal
from collections.abc import Callable
from dataclasses import dataclass, field

from dask_batch.backends.base import Job, JobState
from dask_batch.backends.within.launcher import Ended, Started
from dask_batch.job.channel import Channel, Message
from dask_batch.job.exit_codes import MEANINGS

__all__ = ["Assignment", "State", "Worker", "how_it_ended", "words_of"]


class State(enum.Enum):
    """What a worker is at."""

    STARTING = "starting"
    """Its process is on the way, or begins anew."""
    IDLE = "idle"
    BUSY = "busy"
    LOST = "lost"
    """The connection has ended; how its process has is not known yet."""


@dataclass(eq=False, slots=True)
class Assignment:
    """A job that is, or is to be, on a worker: see :class:`..within.launcher.Started`."""

    job: Job
    job_id: str
    killer: Callable[[Assignment], None]
    how: Ended | None = None

    def ended(self) -> Ended | None:
        """Return how it has ended; None while it runs."""
        return self.how

    def kill(self) -> None:
        """End it. The worker goes on, with a new process."""
        self.killer(self)

    def order(self) -> Message:
        """Return what the worker is told."""
        job = self.job
        return {
            "do": "run",
            "job": self.job_id,
            "definition": str(job.definition),
            "index": job.index,
            "logs": str(job.log_directory),
        }


@dataclass(eq=False, slots=True)
class Worker:
    """A worker.

    Attributes
    ----------
    number
        Of this process of a keeper: no other ever has it.
    place
        Where it stands among the workers: the lowest that none of the others has.
    restarts
        How often the process in its place has died before.
    started
        Its process, or job; None while it is being started.
    leaving
        Whether it is to end when it has nothing to do.
    killed
        Whether whoever has started it was told to end it.
    """

    number: int
    place: int = 0
    restarts: int = 0
    started: Started | None = None
    state: State = State.STARTING
    channel: Channel | None = None
    task: Assignment | None = None
    leaving: bool = False
    killed: bool = False
    lost_at: float = 0.0
    hello: Message = field(default_factory=dict)

    def tell(self, message: Message) -> None:
        """Send a message; if the worker is gone, that is noticed elsewhere."""
        if self.channel is None:
            return
        try:
            self.channel.send(message)
        except OSError:
            return

    def kill(self) -> None:
        """End its process, or job, if it has been started."""
        if self.started is not None:
            self.killed = True
            self.started.kill()

    def finish(self, how: Ended) -> None:
        """End its task, if it has one."""
        if self.task is not None:
            self.task.how = how
            self.task = None

    def __str__(self) -> str:
        where = f" (process {self.hello['pid']} on {self.hello['host']})" if self.hello else ""
        return f"worker {self.number}{where}"


def how_it_ended(message: Message) -> Ended:
    """Return how a process has ended, of which a keeper tells."""
    code, number = message.get("exit_code"), message.get("signal")
    if message.get("killed"):
        return Ended(JobState.CANCELLED, exit_code=code, signal=number, reason="it was cancelled")
    if code == 0:
        return Ended(JobState.COMPLETED, exit_code=0)
    return Ended(JobState.FAILED, exit_code=code, signal=number)


def words_of(how: Ended) -> str:
    """Say how a process has ended."""
    if how.signal is not None:
        try:
            name = signal.Signals(how.signal).name
        except ValueError:
            name = "an unknown signal"
        why = ", often for want of memory" if how.signal == signal.SIGKILL else ""
        return f"was killed by signal {how.signal} ({name}{why})"
    said = how.reason or how.state.value
    if how.exit_code is None:
        return f"ended: {said}"
    meaning = MEANINGS.get(how.exit_code, how.reason)
    return f"ended with exit code {how.exit_code}" + (f": {meaning}" if meaning else "")
