"""What befalls jobs: nodes that fail, a controller that forgets, jobs that run twice."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping
from typing import Any

from . import launch
from .queue import Queue
from .records import JobRecord
from .requests import Refusal

__all__ = ["happen", "kill_all"]


def happen(queue: Queue, request: Mapping[str, Any]) -> dict[str, Any]:
    """Let something happen to one job, or look at all.

    Raises
    ------
    Refusal
        There is no such job, or it is in no state for that.
    """
    kind, *rest = request["arguments"]
    if kind == "states":
        return {"states": {str(job.job_id): job.word for job in queue.jobs.values()}}
    if kind == "names":
        return {"names": {str(job.job_id): job.name for job in queue.jobs.values()}}
    if kind == "kill-all":
        kill_all(queue)
        return {}
    job = queue.jobs.get(int(rest[0]))
    if job is None:
        raise Refusal(f"no job {rest[0]}", prefix="")
    if kind in _NEEDS_RUNNING and job.state != "RUNNING":
        raise Refusal(f"job {rest[0]} does not run: it is {job.state}", prefix="")
    _INCIDENTS[kind](queue, job, *rest[1:])
    queue.changed = True
    return {}


def kill_all(queue: Queue) -> None:
    """End all that runs, at once, and let nothing begin in its place."""
    queue.closed = True
    for job in queue.jobs.values():
        if job.state == "RUNNING":
            launch.send(job, signal.SIGKILL, step_too=True)


def _purge(queue: Queue, job: JobRecord) -> None:
    if job.active:
        raise Refusal(f"job {job.job_id} has not ended: it is {job.state}", prefix="")
    queue.forget(job)


def _fail_node(queue: Queue, job: JobRecord, again: str) -> None:
    """All processes are gone at once, and nobody says how they ended."""
    job.again = "requeue" if again == "requeue" and job.requeue else ""
    job.ending, job.kill_at = "NODE_FAIL", time.time()
    launch.send(job, signal.SIGKILL, step_too=True)


def _preempt(queue: Queue, job: JobRecord, again: str) -> None:
    job.again = "requeue" if again == "requeue" and job.requeue else ""
    queue.terminate(job, "PREEMPTED")


def _exhaust(queue: Queue, job: JobRecord) -> None:
    job.ending, job.kill_at = "OUT_OF_MEMORY", time.time()
    launch.send(job, signal.SIGKILL)


def _kill(queue: Queue, job: JobRecord, number: str) -> None:
    launch.send(job, signal.Signals(int(number)))


def _lose(queue: Queue, job: JobRecord) -> None:
    """As after a SIGKILL of slurmctld: unknown to it, cancelled in the accounts, its id free."""
    if job.state == "RUNNING":
        launch.send(job, signal.SIGKILL, step_too=True)
    # The accounts are closed when the controller is back, never in the second of the start.
    job.state, job.cancelled_by, job.ended = "CANCELLED", None, time.time() + 1
    queue.account(job)
    queue.forget(job)
    queue.next_id = job.job_id


def _run_twice(queue: Queue, job: JobRecord, first: str) -> None:
    """The controller has forgotten that the job was started, and starts it anew."""
    if job.state == "PENDING":
        raise Refusal(f"job {job.job_id} has not run yet", prefix="")
    if first == "killed" and job.state == "RUNNING":
        launch.send(job, signal.SIGKILL, step_too=True)
    job.state, job.reason, job.ending, job.again = "PENDING", "None", "", ""
    job.started = job.ended = 0.0
    job.allocation = {}
    queue.account(job)


def _haunt(queue: Queue, job: JobRecord) -> None:
    """The controller has come up with what it had saved before the job ended; its node is silent.

    What the job held it holds again; the accounts were told of its end, and are not told otherwise.
    """
    if job.state == "PENDING":
        raise Refusal(f"job {job.job_id} has not run yet", prefix="")
    job.state, job.reason, job.ending, job.again = "RUNNING", "None", "", ""
    job.ended, job.ghost = 0.0, True


def _requeue(queue: Queue, job: JobRecord) -> None:
    if job.state == "RUNNING":
        job.again = "requeue"
        queue.terminate(job, "REQUEUED")
    elif not job.active:
        queue.requeue(job, hold=False)


def _say(queue: Queue, job: JobRecord, word: str) -> None:
    job.state = word
    job.ended = job.ended or time.time()


_NEEDS_RUNNING = frozenset({"node-failure", "preempt", "out-of-memory", "kill"})
_INCIDENTS: Mapping[str, Callable[..., None]] = {
    "haunt": _haunt,
    "kill": _kill,
    "lose": _lose,
    "node-failure": _fail_node,
    "out-of-memory": _exhaust,
    "preempt": _preempt,
    "purge": _purge,
    "requeue": _requeue,
    "run-twice": _run_twice,
    "say": _say,
}
