"""The local queue as a batch system: :class:`LocalBackend`."""

from __future__ import annotations

import os
import secrets
import select
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from dask_batch.backends.base import Job, JobStatus
from dask_batch.backends.gpus import Declared, Devices, visible
from dask_batch.backends.jobs import noted, refuse_beyond
from dask_batch.backends.local.connection import Connection, LostConnectionError
from dask_batch.backends.local.known import SOURCE, Known, status_of
from dask_batch.backends.local.machine import thread_variables
from dask_batch.backends.local.profiles import Profiles, check_resources, profile
from dask_batch.backends.local.protocol import Message
from dask_batch.backends.local.script import command, shell_script
from dask_batch.backends.local.submission import parts
from dask_batch.errors import ConfigurationError, SubmissionError

__all__ = ["LocalBackend"]

_IDS_PER_REQUEST = 20_000


class LocalBackend:
    """The queue on this machine that all clients of a user share.

    It is started when it is first needed, outlives its clients, and ends when it has been idle
    for a while.

    Parameters
    ----------
    max_workers
        How many jobs of this backend may run at a time; None: as many as the machine has room
        for. Jobs of other clients do not count.
    max_cores
        On how many CPUs they may run together; None: on all there are.
    gpus
        What is declared of the machine's GPUs; None: what the client's environment lists, else
        what is found.

    Notes
    -----
    Of a job that was handed over here, or asked for once, the queue tells every change; so
    :meth:`status` costs one small request, however many jobs it asks for.

    Jobs live as long as the machine and, where ``logind`` is configured with
    ``KillUserProcesses=yes``, no longer than the login session.
    """

    name = "local"
    shared = False
    default_max_jobs: int | None = None

    def __init__(
        self,
        *,
        max_workers: int | None = None,
        max_cores: int | None = None,
        gpus: Declared | None = None,
    ) -> None:
        for name, most in (("max_workers", max_workers), ("max_cores", max_cores)):
            if most is not None and most < 1:
                raise ConfigurationError(f"{name} must be greater than 0")
        self._cap = max_workers if max_cores is None else [max_workers, max_cores]
        self._max_cores, self._gpus = max_cores, gpus
        self._group = secrets.token_hex(8)
        self._connection: Connection | None = None
        self._known = Known()
        self._fresh: set[str | None] = set()
        """The ids of jobs of which there are news that nobody has asked for yet."""
        self._lock = threading.RLock()
        self._woken, self._waker = os.pipe()
        os.set_blocking(self._woken, False)
        os.set_blocking(self._waker, False)

    # ---- before ----------------------------------------------------------------------------

    def check(self, jobs: Sequence[Job]) -> None:
        """Find what is wrong with jobs before any is submitted; see :class:`.base.Backend`."""
        with self._lock:
            queue = self._connected()
            for job in jobs:
                refuse_beyond(job, self._max_cores)
                check_resources(
                    job,
                    machine_cpus=queue.cpus,
                    machine_memory_bytes=queue.memory_bytes,
                    devices=self._devices(job.environment),
                )

    def _devices(self, environment: Mapping[str, str]) -> Devices:
        """Return the GPUs that jobs with an environment may have."""
        return visible(environment, self._gpus)

    def script(self, job: Job, dependency: Sequence[str] = ()) -> str:
        """Return the shell script that does what the queue does to start a job."""
        how = profile(job, job.environment, self._devices(job.environment))
        text = shell_script(
            command(how.python, how.definition, job.index, how.program),
            prologue=how.prologue,
            working_directory=how.working_directory,
            variables=thread_variables(how.cpus) | {"DASK_BATCH_BACKEND": self.name},
        )
        return noted(text, *(f"starts when {job_id} has completed" for job_id in dependency))

    # ---- hand-over -------------------------------------------------------------------------

    def submit(self, jobs: Sequence[Job], accepted: Callable[[str, str], None]) -> None:
        """Hand over jobs, all or none; those without parents among them are held.

        Raises
        ------
        SubmissionError
            The queue refused: none was taken.
        BackendUnavailableError
            The queue went away meanwhile. What it had taken went with it, and was still held.
        """
        with self._lock:
            try:
                first = self._hand_over(jobs)
            except LostConnectionError:
                # If it lives, it has taken either all or nothing.
                found = self.find([job.name for job in jobs])
                if len(found) == len(jobs):
                    for job in jobs:
                        accepted(job.name, found[job.name])
                    return
                first = self._hand_over(jobs)
            queue = self._connected().queue
        for number, job in enumerate(jobs, first):
            accepted(job.name, f"{queue}-{number}")

    def _hand_over(self, jobs: Sequence[Job]) -> int:
        """Send a hand-over and return the number of its first job."""
        queue = self._connected()
        members = Profiles(self._devices).members(jobs)
        last = {"type": "submit", "group": self._group, "cap": self._cap}
        answer = queue.request([*parts(members), last])
        if answer["type"] == "taken":
            return int(answer["first"])
        raise _refusal(answer)

    def rerun(self, job: Job, job_id: str, dependents: Mapping[str, Sequence[str]]) -> str:
        """Run an ended job once more; see :class:`.base.Backend`.

        Raises
        ------
        SubmissionError
            The queue refused.
        BackendUnavailableError
            There is no queue, and none can be started.
        """
        request = {"type": "rerun", "job": job_id, "group": self._group, "cap": self._cap}
        members = [Profiles(self._devices).member(job)]
        with self._lock:
            answer = self._twice([*parts(members), request])
            if answer["type"] == "refused":
                raise _refusal(answer)
            now_id: str = answer["job"]
            self._known.forget(now_id)
            if now_id != job_id:
                self._repoint(dependents, job_id, now_id)
            return now_id

    def _repoint(self, dependents: Mapping[str, Sequence[str]], gone: str, new: str) -> None:
        """Have jobs wait for the one that has taken another's place."""
        for dependent, parents in dependents.items():
            ids = [new if parent == gone else parent for parent in parents]
            self._twice([{"type": "repoint", "job": dependent, "parents": ids}])

    def release(self, job_ids: Sequence[str]) -> None:
        """Let held jobs go."""
        self._repeatable("release", "jobs", job_ids)

    def cancel(self, job_ids: Collection[str]) -> None:
        """End jobs, waiting or running. Unknown and ended ids are no error."""
        self._repeatable("cancel", "jobs", list(job_ids))

    # ---- looking ---------------------------------------------------------------------------

    def status(self, job_ids: Collection[str]) -> dict[str, JobStatus]:
        """Report jobs. An id that is missing in the answer is not known.

        Raises
        ------
        BackendUnavailableError
            There is no queue, and none can be started.
        """
        with self._lock:
            while (found := self._ask(job_ids)) is None:
                continue
            self._fresh.difference_update(job_ids)
            return found

    def _ask(self, job_ids: Collection[str]) -> dict[str, JobStatus] | None:
        """Ask for what is not known; None if what was known belongs to a lost connection."""
        connection = self._connected()
        unknown = [job_id for job_id in job_ids if job_id not in self._known]
        # Also without ids: the answer comes behind all news that precede it.
        answers = self._repeatable("status", "jobs", unknown)
        if self._connection is not connection:
            return None
        others: dict[str, JobStatus] = {}
        for status in (status_of(record) for answer in answers for record in answer["jobs"]):
            if not status.job_id.startswith(f"{connection.queue}-"):
                others[status.job_id] = status  # an earlier queue's: there will be no news
            elif status.job_id not in self._known:
                # News that were read together with the answer may be younger, never older.
                self._known.take(status)
        found = ((job_id, self._known.get(job_id) or others.get(job_id)) for job_id in job_ids)
        answer = {job_id: status for job_id, status in found if status is not None}
        self._known.shrink()
        return answer

    def find(self, names: Collection[str]) -> dict[str, str]:
        """Look up job ids by unique job names; those of ended jobs as far as they are known."""
        found: dict[str, str] = {}
        for answer in self._repeatable("find", "names", list(names)):
            found |= answer["jobs"]
        return found

    def wait(self, timeout_s: float) -> None:
        """Return after ``timeout_s``, or earlier on news of a job or a call of :meth:`wake`."""
        deadline = time.monotonic() + timeout_s
        while not self._take_news():
            poll = select.poll()
            poll.register(self._woken, select.POLLIN)
            connection = self._connection
            if connection is not None and connection.fileno() >= 0:
                poll.register(connection, select.POLLIN)
            ready = poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
            if not ready or any(descriptor == self._woken for descriptor, _ in ready):
                break
            self._listen()
        self._forget_wake()

    def wake(self) -> None:
        """End a :meth:`wait` of another thread, or the next one."""
        try:
            os.write(self._waker, b"w")
        except (BlockingIOError, OSError):  # it is woken many times already; or closed
            return

    def close(self) -> None:
        """Let go of the queue. Jobs go on."""
        with self._lock:
            self._disconnect()
            for descriptor in (self._woken, self._waker):
                if descriptor >= 0:
                    os.close(descriptor)
            self._woken = self._waker = -1

    # ---- the connection --------------------------------------------------------------------

    def _connected(self) -> Connection:
        """Return a connection to the queue, which is started if there is none."""
        connection = self._connection
        if connection is not None and connection.owner_pid != os.getpid():
            connection.close()  # a fork's copy: the connection stays the other process's
            connection = None
        if connection is None or connection.fileno() < 0:
            self._disconnect()
            self._connection = connection = Connection(self._told)
        return connection

    def _disconnect(self) -> None:
        """Close the connection, and forget what nobody will tell changes of."""
        self._known.clear()
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _repeatable(self, kind: str, field: str, items: Sequence[str]) -> list[Message]:
        """Make a request that may be made twice; in pieces, if it is large."""
        answers = []
        with self._lock:
            for piece in _pieces(items):
                answers.append(self._twice([{"type": kind, field: piece}]))
        return answers

    def _twice(self, messages: Sequence[Message]) -> Message:
        """Make a request that may be made twice."""
        try:
            return self._connected().request(messages)
        except LostConnectionError:
            return self._connected().request(messages)

    def _told(self, message: Message) -> None:
        """Take in news."""
        for record in message["jobs"]:
            self._known.take(status_of(record))
            self._fresh.add(record[0])

    def _listen(self) -> None:
        with self._lock:
            connection = self._connection
            if connection is None or connection.fileno() < 0:
                return
            try:
                connection.listen()
            except LostConnectionError:
                self._disconnect()
                self._fresh.add(None)  # what became of the jobs is to be asked of a new queue

    def _take_news(self) -> bool:
        """Whether there have been news since this was asked last."""
        with self._lock:
            fresh, self._fresh = self._fresh, set()
        return bool(fresh)

    def _forget_wake(self) -> None:
        try:
            os.read(self._woken, 4096)
        except (BlockingIOError, OSError):  # nobody has called; or closed
            return


def _refusal(answer: Message) -> SubmissionError:
    """Return the error for what the queue did not take."""
    refusal = SubmissionError(1, [SOURCE], str(answer.get("message", "it gave no reason")))
    refusal.job_name = str(answer.get("name", ""))
    return refusal


def _pieces(items: Sequence[str]) -> Iterator[Sequence[str]]:
    """Cut a list into pieces that fit into a message; one empty piece if there is nothing."""
    for start in range(0, max(1, len(items)), _IDS_PER_REQUEST):
        yield list(items[start : start + _IDS_PER_REQUEST])
