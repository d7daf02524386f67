"""What a later queue must know of an earlier one, on disk: see :mod:`.chronicle` for the lines.

A file of JSON lines, only ever appended to while queues come and go. The queue writes what it has
taken, before it says so; each start, before it asks for the process; and each end. A job writes
which process it is. When a queue has been killed, the parents of its workers write how jobs ended.

From it the next queue goes on where the killed one stood: the same queue, under the same name,
with the same jobs. It is written for the death of processes, not of machines: nothing is synced.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dask_batch.backends.local.chronicle import FormerJobs, end_entry
from dask_batch.backends.local.identity import JobId, QueueId
from dask_batch.backends.local.processes import ProcessIdentity
from dask_batch.backends.local.protocol import Message
from dask_batch.backends.local.records import Cap, Outcome

__all__ = ["Journal", "append_exits", "append_orphaned", "append_process"]

_LOG = logging.getLogger(__name__)
_COMPACT_ABOVE_BYTES = 32 * 2**20
_KEEP_JOBS = 50_000
_KEEP_UNWRITTEN = 200_000
_FROM_OTHERS = (b'["process"', b'["exit"', b'["orphaned"')
"""What jobs and worker parents write, also of this queue's jobs."""


class Journal:
    """The queue's own writing in the journal, and what it found there.

    Parameters
    ----------
    fresh
        The id of the queue, if it is not the continuation of one that was killed.

    Attributes
    ----------
    former
        What was there, and what jobs and worker parents have added.
    queue
        The queue's id.
    """

    def __init__(self, path: Path, fresh: QueueId) -> None:
        self.path = path
        self.former = FormerJobs()
        self._unwritten: list[list[Any]] = []
        self._environments: set[str] = set()
        self._offset = 0
        self._descriptor = os.open(
            path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600
        )
        self._limit_bytes = _COMPACT_ABOVE_BYTES
        self.former.read(self._new_lines())
        self.queue = _continued(self.former, fresh)
        self.former.begin(str(self.queue))
        self._note("queue", str(self.queue))
        self.compact_if_large()
        self.write()

    def _new_lines(self) -> list[bytes]:
        """Read whole lines that have been added."""
        size = os.fstat(self._descriptor).st_size
        data = os.pread(self._descriptor, max(0, size - self._offset), self._offset)
        whole = data.rfind(b"\n") + 1
        self._offset += whole
        return data[:whole].splitlines()

    def read_new(self) -> None:
        """Take in what jobs and worker parents have added."""
        self.former.read(line for line in self._new_lines() if line.startswith(_FROM_OTHERS))

    # ---- what must be on record before it counts -------------------------------------------

    def taken(self, first: int, group: str | None, cap: Cap, parts: list[Message]) -> None:
        """Put a hand-over on record.

        Raises
        ------
        OSError
            It is not on record, and must not be taken.
        """
        self._commit("taken", str(self.queue), first, group, cap, parts)

    def again(self, number: int, group: str | None, cap: Cap, parts: list[Message]) -> None:
        """Put on record that a job is run once more.

        Raises
        ------
        OSError
            It is not on record, and must not be run.
        """
        self._commit("again", str(JobId(self.queue, number)), group, cap, parts)

    def _commit(self, *entry: Any) -> None:
        """Write a line with parts at its end, and everything that precedes it."""
        *first, parts = entry
        named = []
        fresh: dict[str, Any] = {}
        for part in parts:
            digests = {_digest(variables): variables for variables in part["environments"]}
            fresh |= {d: v for d, v in digests.items() if d not in self._environments}
            named.append({**part, "environments": list(map(_digest, part["environments"]))})
        lines = [["environment", digest, variables] for digest, variables in fresh.items()]
        _append(self._descriptor, [*self._unwritten, *lines, [*first, named]])
        self._unwritten = []
        self._environments |= fresh.keys()

    # ---- what is put on record as it happens -----------------------------------------------

    def released(self, numbers: list[int]) -> None:
        """Note that jobs are held no more."""
        self._note("release", str(self.queue), numbers)

    def repointed(self, number: int, parents: list[int]) -> None:
        """Note for which jobs a job waits from now on."""
        self._note("repoint", str(JobId(self.queue, number)), parents)

    def started(
        self, number: int, name: str, parent: ProcessIdentity, devices: Sequence[str] = ()
    ) -> None:
        """Note that a job is about to be started by ``parent``, and which devices it holds."""
        job_id = str(JobId(self.queue, number))
        self._note("start", job_id, name, parent.pid, parent.started, list(devices))

    def stopped(self, job_id: str, why: Outcome) -> None:
        """Note that a job is about to be ended."""
        self._note("stop", job_id, why.state.value, why.reason)

    def ended(self, number: int, name: str, how: Outcome) -> None:
        """Note how a job ended."""
        self._unwritten.append(end_entry(str(JobId(self.queue, number)), name, how))

    def _note(self, *entry: Any) -> None:
        self._unwritten.append(list(entry))

    def write(self) -> None:
        """Write what was noted: before any process is started on the strength of it."""
        if not self._unwritten:
            return
        try:
            _append(self._descriptor, self._unwritten)
            self._unwritten = []
        except OSError as error:  # a full disk: jobs matter more than what is said of them later
            _LOG.warning("the journal cannot be written for now: %s", error)
            del self._unwritten[:-_KEEP_UNWRITTEN]

    # ---- its size --------------------------------------------------------------------------

    def compact_if_large(self, limit_bytes: int | None = None) -> None:
        """Write a shorter journal in place of one that has grown."""
        limit = self._limit_bytes if limit_bytes is None else limit_bytes
        if os.fstat(self._descriptor).st_size <= limit:
            return
        self.write()
        try:
            self._compact()
        except OSError as error:  # the long one serves as well
            _LOG.warning("the journal cannot be shortened: %s", error)
        self._limit_bytes = max(_COMPACT_ABOVE_BYTES, 2 * os.fstat(self._descriptor).st_size)

    def _compact(self) -> None:
        fresh = self.path.with_suffix(".new")
        descriptor = os.open(fresh, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            with _locked(self._descriptor, fcntl.LOCK_EX):
                everything = FormerJobs()
                size = os.fstat(self._descriptor).st_size
                everything.read(os.pread(self._descriptor, size, 0).splitlines())
                _append(descriptor, everything.entries(_KEEP_JOBS))
                os.rename(fresh, self.path)
                self._descriptor, descriptor = descriptor, self._descriptor
        finally:
            os.close(descriptor)
        self._environments = set()
        self._offset = os.fstat(self._descriptor).st_size


def _continued(former: FormerJobs, fresh: QueueId) -> QueueId:
    """Return the id of the queue that goes on; ``fresh`` if there is none to go on."""
    latest = JobId.parse(f"{former.latest}-0")
    if latest is None or not former.unfinished:
        return fresh
    same = (latest.queue.host, latest.queue.boot) == (fresh.host, fresh.boot)
    return latest.queue if same else fresh


def _digest(variables: Message) -> str:
    text = json.dumps(variables, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@contextmanager
def _locked(descriptor: int, how: int) -> Iterator[None]:
    """Hold a lock on an open file while in the context."""
    fcntl.flock(descriptor, how)
    try:
        yield
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)


def _append(descriptor: int, entries: Iterable[list[Any]]) -> None:
    """Append lines, whole: several processes may write at the same time.

    They begin with a line's end, as whoever wrote before may have been killed within a line.
    """
    data = b"\n" + b"".join(json.dumps(entry).encode() + b"\n" for entry in entries)
    while data:
        data = data[os.write(descriptor, data) :]


def append_process(path: Path, job_id: str, process: ProcessIdentity) -> None:
    """Add which process a job is."""
    _append_to(path, [["process", job_id, process.pid, process.started]])


def append_orphaned(path: Path, parent: ProcessIdentity) -> None:
    """Add that a worker parent has lost its queue, and starts no more."""
    _append_to(path, [["orphaned", parent.pid, parent.started]])


def append_exits(path: Path, exits: Iterable[tuple[str, int, ProcessIdentity]]) -> None:
    """Add, for a queue that is gone, how jobs ended (as ``waitpid`` said)."""
    _append_to(path, [["exit", i, status, p.pid, p.started] for i, status, p in exits])


def _append_to(path: Path, entries: list[list[Any]]) -> None:
    """Append to the journal, or to the shorter one that takes its place just then."""
    while True:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            with _locked(descriptor, fcntl.LOCK_SH):
                if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                    _append(descriptor, entries)
                    return
        except FileNotFoundError:
            continue
        finally:
            os.close(descriptor)
