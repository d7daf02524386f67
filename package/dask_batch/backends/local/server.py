"""The queue's process: one thread, one loop, detached from whoever started it.

``python -P -m dask_batch.backends.local.server`` returns as soon as a queue listens, be it this
one or another; it fails if none can be had. The queue itself is a grandchild in a session of its
own, which holds none of the starter's files.

When it is killed, what it had goes on under another queue (:mod:`.recovery`), which a worker parent
starts if no client does.

It ends when it has had neither clients nor jobs for a while. By then it has taken away its socket,
so whoever comes later starts another queue, which waits until this one has let go of its lock. A
client that had just connected sees its greeting fail, and starts anew: nothing is taken from a
client that has not been greeted.
"""

from __future__ import annotations

import logging
import os
import selectors
import signal
import socket
import sys
import time
from typing import Any

from dask_batch.backends.local.entries import Entries
from dask_batch.backends.local.housing import Housing, TakenError
from dask_batch.backends.local.identity import QueueId
from dask_batch.backends.local.intake import Intake
from dask_batch.backends.local.journal import Journal
from dask_batch.backends.local.launch import DEFAULT_ENTRY
from dask_batch.backends.local.machine import Machine
from dask_batch.backends.local.protocol import Channel, ProtocolError
from dask_batch.backends.local.queue import WorkQueue
from dask_batch.backends.local.recovery import restore
from dask_batch.backends.local.runtime import DIRECTORY_VARIABLE, Runtime, peer_uid
from dask_batch.backends.local.service import Client, Service
from dask_batch.backends.local.supervisor import Supervisor
from dask_batch.backends.local.workers import Workers

__all__ = ["Server", "main"]

_LOG = logging.getLogger(__name__)

IDLE_VARIABLE = "DASK_BATCH_QUEUE_IDLE_S"
ENTRY_VARIABLE = "DASK_BATCH_QUEUE_ENTRY"
"""For tests: ``module:function`` that warm workers call in place of the job's body."""

_IDLE_S = 30.0
_KEEP_HELD_S = 600.0
"""How long the queue keeps jobs that nobody released when no client is left."""
_FIRST_CLIENT_S = 10.0
"""How long it waits at least for the client that has started it, however hasty it is else."""
_HOUSEKEEPING_S = 60.0
_READ_AT_ONCE_BYTES = 4 * 2**20
_MOST_UNSENT_BYTES = 64 * 2**20
_NO_DESCRIPTORS_S = 0.05
_ACCEPT_AT_ONCE = 100


class Server:
    """The loop: everything that reads, writes or knows the time."""

    def __init__(self, housing: Housing, *, idle_s: float, entry: str) -> None:
        self._housing, self._idle_s = housing, idle_s
        self._selector = selectors.DefaultSelector()
        self._clients: dict[Channel, Client] = {}
        self._journal = Journal(housing.runtime.path("journal"), QueueId.new())
        here, machine = self._journal.queue, Machine.here()
        self._queue = WorkQueue(cpus=machine.cpus, memory_bytes=machine.memory_bytes)
        entries = Entries(here)
        self._intake = Intake(self._queue, self._journal, entries)
        self._workers = Workers(
            entry=entry,
            journal_path=self._journal.path,
            successor=_successor(housing.runtime),
            watch=lambda channel: self._register(channel, "worker"),
            unwatch=self._selector.unregister,
        )
        self._supervisor = Supervisor(self._queue, self._workers, self._journal, here)
        self._service = Service(
            queue=self._queue,
            supervisor=self._supervisor,
            journal=self._journal,
            intake=self._intake,
            entries=entries,
            here=here,
            machine=machine,
        )
        restore(self._journal.former, self._queue, entries)
        self._supervisor.adopt(time.monotonic())
        self._register(housing.listener, "listener")
        self._idle_since: float | None = None
        self._visited = False
        self._housekeeping_at = 0.0
        _LOG.info("queue %s serves %s", here, machine)

    def _register(self, source: Any, role: str) -> None:
        self._selector.register(source, selectors.EVENT_READ, role)

    def run(self) -> None:
        """Serve until there is nothing to serve."""
        while not self._may_end(time.monotonic()):
            for key, events in self._selector.select(self._timeout_s()):
                self._react(key.fileobj, key.data, events)
            now = time.monotonic()
            self._supervisor.keep_limits(now)
            self._supervisor.start_due()
            self._workers.tidy()
            self._spread_news()
            self._journal.write()
            self._watch_unsent()
            if now >= self._housekeeping_at:
                self._keep_house(now)
        self._housing.leave()
        self._workers.close()
        _LOG.info("the queue ends")

    def leave(self) -> None:
        """End although jobs run: they go on, and so does the queue when a client needs it."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        self._workers.leave()
        self._housing.leave()
        _LOG.info("the queue was asked to end; its jobs go on")

    def _react(self, source: Any, role: str, events: int) -> None:
        """Deal with one file that is ready."""
        if role == "listener":
            self._accept()
        elif role == "worker":
            if events & selectors.EVENT_WRITE:
                self._flush(source)
            self._supervisor.hear(source, time.monotonic())
        elif source in self._clients:
            self._serve(self._clients[source])

    def _flush(self, channel: Channel) -> None:
        try:
            channel.flush()
        except OSError:  # reading it says that it is gone
            return

    # ---- clients ---------------------------------------------------------------------------

    def _accept(self) -> None:
        """Let clients in that knock."""
        for _ in range(_ACCEPT_AT_ONCE):
            try:
                connection, _address = self._housing.listener.accept()
            except BlockingIOError:
                return
            except OSError as error:  # the client has gone again, or no descriptors are left
                _LOG.warning("a connection was lost: %s", error)
                time.sleep(_NO_DESCRIPTORS_S)  # nobody is served faster by trying at once
                return
            self._admit(connection)

    def _admit(self, connection: socket.socket) -> None:
        """Let a client in, if it is this user's."""
        if peer_uid(connection) != os.getuid():
            _LOG.warning("a connection of user %d was refused", peer_uid(connection))
            connection.close()
            return
        channel = Channel(connection)
        self._clients[channel] = Client(channel)
        self._register(channel, "client")

    def _serve(self, client: Client) -> None:
        """Answer what a client has sent."""
        try:
            client.channel.flush()
            if client.channel.unsent_bytes > _MOST_UNSENT_BYTES:
                return  # it asks, and does not read the answers
            for message in client.channel.receive(_READ_AT_ONCE_BYTES):
                answer = self._service.answer(client, message, time.monotonic())
                if answer is not None:
                    client.channel.send(answer)
                self._visited |= client.greeted
        except (EOFError, OSError):
            self._drop(client)
        except ProtocolError as error:
            _LOG.warning("a client was sent away: %s", error)
            self._drop(client)
        except Exception:  # other clients' jobs must not end for it
            _LOG.exception("a client's request has failed")
            self._drop(client)

    def _drop(self, client: Client) -> None:
        self._selector.unregister(client.channel)
        del self._clients[client.channel]
        client.channel.close()

    def _spread_news(self) -> None:
        """Tell clients, and the journal, what has changed."""
        changed, self._queue.changed = self._queue.changed, set()
        self._intake.record_ends()
        for client in list(self._clients.values()):
            client.news |= changed & client.watched
            try:
                self._service.tell(client)
            except OSError:
                self._drop(client)

    def _watch_unsent(self) -> None:
        """Wait for room only where there is something to send, and read from who listens."""
        for key in list(self._selector.get_map().values()):
            if isinstance(key.fileobj, Channel):
                unsent = key.fileobj.unsent_bytes
                events = selectors.EVENT_READ if unsent <= _MOST_UNSENT_BYTES else 0
                if unsent:
                    events |= selectors.EVENT_WRITE
                if events != key.events:
                    self._selector.modify(key.fileobj, events, key.data)

    # ---- time ------------------------------------------------------------------------------

    def _may_end(self, now: float) -> bool:
        """Whether there has been nothing to do for long enough."""
        if self._service.stopping:
            return not self._queue.can_progress
        if self._clients or self._queue.can_progress:
            self._idle_since = None
            return False
        if self._idle_since is None:
            self._idle_since = now
        return now - self._idle_since >= self._patience_s()

    def _patience_s(self) -> float:
        """Return how long to wait for a client: longer for the first, or if jobs are held."""
        if self._queue.jobs.unfinished:
            return max(self._idle_s, _KEEP_HELD_S)
        return self._idle_s if self._visited else max(self._idle_s, _FIRST_CLIENT_S)

    def _timeout_s(self) -> float:
        """Return how long nothing will happen by itself."""
        now = time.monotonic()
        events = [self._housekeeping_at]
        if self._idle_since is not None:
            events.append(self._idle_since + self._patience_s())
        if (limit := self._supervisor.next_event()) is not None:
            events.append(limit)
        return max(0.0, min(events) - now)

    def _keep_house(self, now: float) -> None:
        """See now and then that the socket is where clients look for it."""
        self._housekeeping_at = now + _HOUSEKEEPING_S
        self._journal.compact_if_large()
        before = self._housing.listener
        if self._housing.check():
            self._selector.unregister(before)
            before.close()
            self._register(self._housing.listener, "listener")


def _successor(runtime: Runtime) -> dict[str, str]:
    """Return the variables that lead another queue to the same directory, with the same ways."""
    same = {
        name: os.environ[name] for name in (IDLE_VARIABLE, ENTRY_VARIABLE) if name in os.environ
    }
    return {**same, DIRECTORY_VARIABLE: str(runtime.directory)}


class _TerminatedError(BaseException):
    """The queue's process is asked to end (SIGTERM), whatever runs."""


def _terminate(*_: object) -> None:
    # Wherever this strikes: what counts is on record, as it must be for SIGKILL too.
    raise _TerminatedError


def _detach() -> None:
    """Go on in a child that no terminal, pipe or parent holds on to; the parent exits."""
    if os.fork() > 0:
        os._exit(0)
    os.chdir("/")


def main() -> int:
    """Start a queue, unless there is one."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.umask(0o077)
    runtime = Runtime.prepare()
    try:
        housing = Housing.enter(runtime)
    except TakenError:
        return 0
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(process)d %(message)s"
    )
    idle_s = float(os.environ.get(IDLE_VARIABLE) or _IDLE_S)
    entry = os.environ.get(ENTRY_VARIABLE) or DEFAULT_ENTRY
    _detach()
    try:
        server = Server(housing, idle_s=idle_s, entry=entry)
        signal.signal(signal.SIGTERM, _terminate)
        try:
            server.run()
        except _TerminatedError:
            server.leave()
    except Exception:
        _LOG.exception("the queue has failed")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
