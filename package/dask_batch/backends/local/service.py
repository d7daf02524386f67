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
``list``                        ``jobs``: records of those that have not ended
``stop``    ``kill``            ``stopping``
=========== =================== ==================================================================

A record is ``[id, state, exit code, signal, reason, name]``. Of every job that a connection has
handed over or asked for, it is told the changes, in messages ``news`` with ``jobs``. What is told
is the state at that moment, so a client that does not read for a while misses nothing but steps.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from dask_batch.backends.base import JobState
from dask_batch.backends.local import processes
from dask_batch.backends.local.identity import JobId, QueueId
from dask_batch.backends.local.journal import Journal
from dask_batch.backends.local.machine import Machine
from dask_batch.backends.local.protocol import PROTOCOL_VERSION, Channel, Message, ProtocolError
from dask_batch.backends.local.queue import WorkQueue
from dask_batch.backends.local.records import Entry, Outcome, QueuedJob, RefusedError
from dask_batch.backends.local.submission import Member, Staged
from dask_batch.backends.local.supervisor import Supervisor

__all__ = ["Client", "Service"]

_NEWS_PER_MESSAGE = 20_000
_CANCELLED = Outcome(JobState.CANCELLED, reason="it was cancelled")
_STOPPING: Message = {
    "type": "refused",
    "message": "the local queue is being stopped",
    "name": "",
}
_NO_NUMBER = -1


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
        here: QueueId,
        machine: Machine,
    ) -> None:
        self._queue, self._supervisor, self._journal = queue, supervisor, journal
        self._here, self._machine = here, machine
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
            numbers = self._queue.hand_over(
                [self._entry(member, group) for member in staged.members], cap=cap
            )
        except RefusedError as error:
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
        entry = self._entry(staged.members[0], group)
        number = self._meant(_string(message, "job"), entry.name)
        try:
            if number is None:
                (number,) = self._queue.hand_over([self._without_ended(entry)], cap=cap)
                self._queue.release([number])
            else:
                self._queue.rerun(number, entry, cap=cap)
        except RefusedError as error:
            return _refused(error)
        client.watched.add(number)
        return {"type": "rerun", "job": str(JobId(self._here, number))}

    def _without_ended(self, entry: Entry) -> Entry:
        """Leave it to the job to find out how those ended that it should follow."""
        known = [job for number in entry.after if (job := self._queue.get(number)) is not None]
        return replace(entry, after=tuple(job.number for job in known if not job.state.ended))

    def _meant(self, text: str, name: str) -> int | None:
        """Return which job is to run again; None if it is forgotten."""
        there = self._queue.find(name)
        if there is not None and (job := self._queue.get(there)) and not job.state.ended:
            return there  # it was run again before, perhaps as another job
        for number in self._numbers([text]):
            if self._queue.get(number) is not None:
                return number
        return there

    def _repoint(self, client: Client, message: Message, now: float) -> Message:
        """Have a queued job wait for other jobs than before."""
        parents = list(self._numbers(_strings(message, "parents")))
        for number in self._numbers([_string(message, "job")]):
            self._queue.repoint(number, parents)
        return {"type": "done"}

    def _entry(self, member: Member, group: str | None) -> Entry:
        return Entry(
            name=member.name,
            demand=member.profile.demand(group),
            parents=member.parents,
            after=tuple(self._numbers(member.after)),
            payload=(member.profile, member.index),
            repeatable=member.repeatable,
            patient=member.patient,
            after_failure=tuple(self._numbers_or_unknown(member.after_failure)),
            after_end=tuple(self._numbers(member.after_end)),
        )

    def _numbers_or_unknown(self, job_ids: Iterable[str]) -> Iterable[int]:
        """Yield the numbers of ids; for those of other queues one that no job has."""
        for job_id in job_ids:
            yield next(iter(self._numbers([job_id])), _NO_NUMBER)

    def _numbers(self, job_ids: Iterable[str]) -> Iterable[int]:
        """Yield the numbers of those ids that are this queue's."""
        for text in job_ids:
            job_id = JobId.parse(text)
            if job_id is not None and job_id.queue == self._here:
                yield job_id.number

    def _release(self, client: Client, message: Message, now: float) -> Message:
        self._queue.release(self._numbers(_strings(message, "jobs")))
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
            job_id = JobId.parse(text)
            if job_id is None or job_id.queue != self._here:
                former.append(text)
            elif (job := self._queue.get(job_id.number)) is not None:
                client.watched.add(job.number)
                client.news.discard(job.number)
                records.append(self._record(job))
        return {"type": "jobs", "jobs": records + self._former(former)}

    def _former(self, job_ids: list[str]) -> list[list[Any]]:
        """Report jobs of earlier queues, as far as the journal tells."""
        if job_ids:
            self._journal.read_new()
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
            number = self._queue.find(name)
            if number is None:
                former.append(name)
            else:
                found[name] = str(JobId(self._here, number))
        found |= self._journal.former.find(former)
        return {"type": "found", "jobs": found}

    def _list(self, client: Client, message: Message, now: float) -> Message:
        return {"type": "jobs", "jobs": [self._record(j) for j in self._queue if not j.state.ended]}

    def tell(self, client: Client) -> None:
        """Send a client the latest of its jobs, if it has read what was sent before."""
        if client.news and not client.channel.unsent:
            self._tell_some(client)

    def _tell_some(self, client: Client) -> None:
        told = [client.news.pop() for _ in range(min(len(client.news), _NEWS_PER_MESSAGE))]
        jobs = [job for number in told if (job := self._queue.get(number)) is not None]
        client.channel.send({"type": "news", "jobs": [self._record(job) for job in jobs]})

    # ---- ending ----------------------------------------------------------------------------

    def _cancel(self, client: Client, message: Message, now: float) -> Message:
        job_ids = _strings(message, "jobs")
        for number in self._numbers(job_ids):
            self._cancel_one(number, now)
        self._cancel_former([text for text in job_ids if not text.startswith(f"{self._here}-")])
        return {"type": "done"}

    def _cancel_former(self, job_ids: list[str]) -> None:
        """Kill what still runs of an earlier queue."""
        if job_ids:
            self._journal.read_new()
        for text in job_ids:
            former = self._journal.former.jobs.get(text)
            if former is None or former.outcome is not None or former.process is None:
                continue
            if former.process.alive():
                processes.kill_session(former.process.pid)

    def _cancel_one(self, number: int, now: float) -> None:
        if self._queue.cancel(number, _CANCELLED.reason):
            self._supervisor.stop(number, _CANCELLED, now)

    def _stop(self, client: Client, message: Message, now: float) -> Message:
        """Make this queue end."""
        self.stopping = True
        if message.get("kill") is True:
            self.killing = True
            for job in [job for job in self._queue if not job.state.ended]:
                self._cancel_one(job.number, now)
        return {"type": "stopping"}


def _record(job_id: str, state: JobState, how: Outcome | None, name: str) -> list[Any]:
    if how is None:
        return [job_id, state.value, None, None, "", name]
    return [job_id, state.value, how.exit_code, how.signal, how.reason, name]


def _refused(error: RefusedError) -> Message:
    return {"type": "refused", "message": str(error), "name": error.name}


def _group(message: Message) -> tuple[str | None, int | None]:
    """Return whose jobs are handed over, and how many of them may run at a time."""
    group, cap = message.get("group"), message.get("cap")
    if not (group is None or isinstance(group, str)) or not (
        cap is None or (type(cap) is int and cap > 0)
    ):
        raise ProtocolError("a group is a string, a cap a positive number")
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
