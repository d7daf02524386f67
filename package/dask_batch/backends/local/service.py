"""What clients may ask of the queue, and how they are told of news.

Requests and their answers (a refusal is ``{"type": "refused", "message", "name"}``):

=========== =================== ==================================================================
request     fields              answer
=========== =================== ==================================================================
``hello``   ``version``         ``welcome``: ``queue``, ``pid``, ``cpus``, ``memory_bytes``
``part``    see :mod:`.submission`; no answer
``submit``  ``group``, ``cap``  ``taken``: ``first``, ``count`` (job numbers)
``rerun``   as ``submit``, and  ``rerun``: ``job`` (id); one ``part`` precedes it, with one job
            ``job`` (id)
``repoint`` ``job``,            ``done``
            ``parents`` (ids)
``release`` ``jobs`` (ids)      ``done``
``status``  ``jobs``            ``jobs``: records of those that are known
``find``    ``names``           ``found``: ``jobs``, name to id
``cancel``  ``jobs``            ``done``
``list``    ``from`` (number)   ``jobs``: records of those that have not ended, from there on;
                                ``next``: the number from which there are more, or None
``stop``    ``kill``            ``stopping``
=========== =================== ==================================================================

A record is ``[id, state, exit code, signal, reason, name]``. Of every job that a connection has
handed over or asked for, it is told the changes, in messages ``news`` with ``jobs``. What is told
is the state at that moment, so a client that does not read for a while misses nothing but steps.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from dask_batch.backends.base import JobState
from dask_batch.backends.local.entries import Entries
from dask_batch.backends.local.identity import JobId, QueueId
from dask_batch.backends.local.intake import Intake
from dask_batch.backends.local.journal import Journal
from dask_batch.backends.local.machine import Machine
from dask_batch.backends.local.protocol import PROTOCOL_VERSION, Channel, Message, ProtocolError
from dask_batch.backends.local.queue import WorkQueue
from dask_batch.backends.local.records import Cap, Outcome, QueuedJob, RefusedError
from dask_batch.backends.local.submission import Staged
from dask_batch.backends.local.supervisor import Supervisor

__all__ = ["Client", "Service"]

_NEWS_PER_MESSAGE = 20_000
_WATCH_AT_LEAST = 10_000
_CANCELLED = Outcome(JobState.CANCELLED, reason="it was cancelled")
_STOPPING: Message = {
    "type": "refused",
    "message": "the local queue is being stopped",
    "name": "",
}


@dataclass(eq=False, slots=True)
class Client:
    """One connection of a client."""

    channel: Channel
    greeted: bool = False
    staged: Staged = field(default_factory=Staged)
    watched: set[int] = field(default_factory=set)
    news: set[int] = field(default_factory=set)
    """Watched jobs of which it has not been told the latest."""


class Service:
    """Answers requests; the loop around it does the input and output."""

    def __init__(
        self,
        *,
        queue: WorkQueue,
        supervisor: Supervisor,
        journal: Journal,
        intake: Intake,
        entries: Entries,
        here: QueueId,
        machine: Machine,
    ) -> None:
        self._queue, self._supervisor, self._journal = queue, supervisor, journal
        self._here, self._machine = here, machine
        self._intake, self._entries = intake, entries
        self.stopping = False
        """A client has asked for the end: as soon as nothing runs or can start."""
        self.killing = False
        """... and everything has been cancelled; no more is taken."""
        self._answers: dict[str, Callable[[Client, Message, float], Message | None]] = {
            "part": self._part,
            "submit": self._submit,
            "rerun": self._rerun,
            "repoint": self._repoint,
            "release": self._release,
            "status": self._status,
            "find": self._find,
            "cancel": self._cancel,
            "list": self._list,
            "stop": self._stop,
        }

    def answer(self, client: Client, message: Message, now: float) -> Message | None:
        """Do what a message asks for.

        Raises
        ------
        ProtocolError
            It makes no sense: the connection should be closed.
        """
        if message["type"] == "hello" and message.get("version") == PROTOCOL_VERSION:
            client.greeted = True
            return {
                "type": "welcome",
                "queue": str(self._here),
                "pid": os.getpid(),
                "cpus": self._machine.cpus,
                "memory_bytes": self._machine.memory_bytes,
            }
        answer = self._answers.get(message["type"])
        if answer is None or not client.greeted:
            raise ProtocolError(f"an unexpected message of type {message['type']!r:.80}")
        return answer(client, message, now)

    # ---- hand-over -------------------------------------------------------------------------

    def _part(self, client: Client, message: Message, now: float) -> None:
        client.staged.add(message)

    def _submit(self, client: Client, message: Message, now: float) -> Message:
        """Take a hand-over as a whole."""
        staged, client.staged = client.staged, Staged()
        group, cap = _group(message)
        if self.killing:
            return _STOPPING
        try:
            numbers = self._intake.hand_over(staged.members, group, cap)
        except (RefusedError, OSError) as error:
            return _refused(error)
        client.watched.update(numbers)
        self._supervisor.expect(staged.profiles[:1])
        return {"type": "taken", "first": numbers.start, "count": len(numbers)}

    def _rerun(self, client: Client, message: Message, now: float) -> Message:
        """Run a job again; one that is forgotten is taken anew, and let go."""
        staged, client.staged = client.staged, Staged()
        group, cap = _group(message)
        if len(staged.members) != 1:
            raise ProtocolError("not one job, to be run again")
        if self.killing:
            return _STOPPING
        try:
            number = self._intake.run_again(_string(message, "job"), staged.members[0], group, cap)
        except (RefusedError, OSError) as error:
            return _refused(error)
        client.watched.add(number)
        return {"type": "rerun", "job": str(JobId(self._here, number))}

    def _repoint(self, client: Client, message: Message, now: float) -> Message:
        """Have a queued job wait for other jobs than before."""
        parents = list(self._entries.numbers(_strings(message, "parents")))
        self._intake.repoint(self._entries.numbers([_string(message, "job")]), parents)
        return {"type": "done"}

    def _release(self, client: Client, message: Message, now: float) -> Message:
        self._intake.release(self._entries.numbers(_strings(message, "jobs")))
        return {"type": "done"}

    # ---- looking ---------------------------------------------------------------------------

    def _status(self, client: Client, message: Message, now: float) -> Message:
        """Report jobs, and watch those that are this queue's; first tell all news there are."""
        client.news |= self._queue.changed & client.watched
        while client.news:
            self._tell_some(client)
        records = []
        former = []
        for text in _strings(message, "jobs"):
            job = next(map(self._queue.jobs.get, self._entries.numbers([text])), None)
            if job is None:
                former.append(text)
                continue
            client.watched.add(job.number)
            client.news.discard(job.number)
            records.append(self._record(job))
        return {"type": "jobs", "jobs": records + self._former(former)}

    def _former(self, job_ids: list[str]) -> list[list[Any]]:
        """Report jobs of earlier queues, as far as the journal tells."""
        found = []
        for job_id in job_ids:
            how = self._journal.former.now(job_id, self._here)
            if how is not None:
                job = self._journal.former.jobs.get(job_id)
                found.append(_record(job_id, how.state, how, "" if job is None else job.name))
        return found

    def _record(self, job: QueuedJob) -> list[Any]:
        job_id = str(JobId(self._here, job.number))
        return _record(job_id, job.reported_state, job.reported_outcome, job.name)

    def _find(self, client: Client, message: Message, now: float) -> Message:
        """Look up jobs by name, here and in the journal."""
        names = _strings(message, "names")
        found = {}
        former = []
        for name in names:
            number = self._queue.jobs.find(name)
            if number is None:
                former.append(name)
            else:
                found[name] = str(JobId(self._here, number))
        found |= self._journal.former.find(former)
        return {"type": "found", "jobs": found}

    def _list(self, client: Client, message: Message, now: float) -> Message:
        first = message.get("from")
        if type(first) is not int:
            raise ProtocolError("from is not a number")
        rest = (job for job in self._queue.jobs if job.number >= first and not job.state.ended)
        found = list(islice(rest, _NEWS_PER_MESSAGE + 1))
        records = [self._record(job) for job in found[:_NEWS_PER_MESSAGE]]
        more = found[_NEWS_PER_MESSAGE:]
        return {"type": "jobs", "jobs": records, "next": more[0].number if more else None}

    def tell(self, client: Client) -> None:
        """Send a client the latest of its jobs, if it has read what was sent before."""
        if client.news and not client.channel.unsent:
            self._tell_some(client)

    def _tell_some(self, client: Client) -> None:
        self._prune(client)
        told = [client.news.pop() for _ in range(min(len(client.news), _NEWS_PER_MESSAGE))]
        jobs = [job for number in told if (job := self._queue.jobs.get(number)) is not None]
        client.channel.send({"type": "news", "jobs": [self._record(job) for job in jobs]})

    def _prune(self, client: Client) -> None:
        """Watch nothing that is forgotten."""
        if len(client.watched) > 2 * len(self._queue.jobs) + _WATCH_AT_LEAST:
            client.watched = {n for n in client.watched if self._queue.jobs.get(n) is not None}

    # ---- ending ----------------------------------------------------------------------------

    def _cancel(self, client: Client, message: Message, now: float) -> Message:
        for number in self._entries.numbers(_strings(message, "jobs")):
            self._cancel_one(number, now)
        self._intake.record_ends()
        return {"type": "done"}

    def _cancel_one(self, number: int, now: float) -> None:
        if self._queue.cancel(number, _CANCELLED.reason):
            self._supervisor.stop(number, _CANCELLED, now)

    def _stop(self, client: Client, message: Message, now: float) -> Message:
        """Make this queue end."""
        self.stopping = True
        if message.get("kill") is True:
            self.killing = True
            for job in [job for job in self._queue.jobs if not job.state.ended]:
                self._cancel_one(job.number, now)
        return {"type": "stopping"}


def _record(job_id: str, state: JobState, how: Outcome | None, name: str) -> list[Any]:
    if how is None:
        return [job_id, state.value, None, None, "", name]
    return [job_id, state.value, how.exit_code, how.signal, how.reason, name]


def _refused(error: RefusedError | OSError) -> Message:
    if isinstance(error, RefusedError):
        return {"type": "refused", "message": str(error), "name": error.name}
    message = f"the local queue cannot put it on record: {error}; make room in its directory"
    return {"type": "refused", "message": message, "name": ""}


def _group(message: Message) -> tuple[str | None, Cap]:
    """Return whose jobs are handed over, and how many of them may run at a time."""
    group, cap = message.get("group"), message.get("cap")
    caps = cap if isinstance(cap, list) and len(cap) == 2 else [cap]
    if not (group is None or isinstance(group, str)) or not all(
        each is None or (type(each) is int and each > 0) for each in caps
    ):
        raise ProtocolError("a group is a string, a cap a positive number, or one each for CPUs")
    return group, cap


def _string(message: Message, name: str) -> str:
    """Return a string of a message."""
    value = message.get(name)
    if not isinstance(value, str):
        raise ProtocolError(f"{name} is not a string")
    return value


def _strings(message: Message, name: str) -> list[str]:
    """Return a list of strings of a message."""
    value = message.get(name)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ProtocolError(f"{name} is not a list of strings")
    return value
