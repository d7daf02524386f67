"""A client's connection to the queue: it starts the queue if there is none."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable

from dask_batch.backends.local.interpreter import package_environment
from dask_batch.backends.local.protocol import PROTOCOL_VERSION, Channel, Message, ProtocolError
from dask_batch.backends.local.runtime import Runtime, lock, peer_uid
from dask_batch.errors import BackendUnavailableError

__all__ = ["Connection", "LostConnectionError"]

_ANSWER_S = 120.0
"""The queue answers in milliseconds; a hand-over of 100,000 jobs takes it seconds."""
_GREETING_S = 30.0
_START_S = 60.0
_KNOCK_AGAIN_S = 0.02
_ATTEMPTS = 20
_LOG_TAIL_BYTES = 2000


class LostConnectionError(BackendUnavailableError):
    """The queue went away in the middle of a request; it is not known whether it was done."""


class Connection:
    """One greeted connection to a living queue.

    Parameters
    ----------
    start
        Whether to start a queue if there is none.
    told
        Called with each message of news.

    Raises
    ------
    BackendUnavailableError
        There is no queue, and none can be started.

    Attributes
    ----------
    queue, pid, cpus, memory_bytes
        What the queue said of itself.
    owner_pid
        The process that opened it: it must not be used in a fork of that.
    """

    def __init__(self, told: Callable[[Message], None], *, start: bool = True) -> None:
        self._told = told
        self.owner_pid = os.getpid()
        self._channel, welcome = _open(Runtime.prepare(), start=start)
        self.queue: str = welcome["queue"]
        self.pid: int = welcome["pid"]
        self.cpus: int = welcome["cpus"]
        self.memory_bytes: int = welcome["memory_bytes"]

    def fileno(self) -> int:
        """Return the file descriptor, to wait for news with."""
        return self._channel.fileno()

    def request(self, messages: Iterable[Message]) -> Message:
        """Send messages of which the last has an answer, and return that.

        Raises
        ------
        LostConnectionError
            The queue went away, or does not answer.
        """
        try:
            for message in messages:
                self._channel.send_whole(message)
            deadline = time.monotonic() + _ANSWER_S
            while (answer := self._take()) is None:
                _await_input(self._channel, deadline)
        except (OSError, EOFError, ProtocolError) as error:
            self.close()
            raise LostConnectionError(f"the local queue went away: {error}") from error
        return answer

    def listen(self) -> None:
        """Take in the news that have come.

        Raises
        ------
        LostConnectionError
            The queue went away.
        """
        try:
            self._take()
        except (EOFError, ProtocolError) as error:
            self.close()
            raise LostConnectionError(f"the local queue went away: {error}") from error

    def _take(self) -> Message | None:
        """Pass on news and return the answer, if it has come."""
        answer = None
        try:
            for message in self._channel.receive():
                if message["type"] == "news":
                    self._told(message)
                else:
                    answer = message
        except EOFError:  # the answer to a request to end may be the last that comes
            if answer is None:
                raise
        return answer

    def await_end(self) -> None:
        """Wait until the queue closes the connection: it does so when it ends."""
        try:
            while True:
                _await_input(self._channel, None)
                self._take()
        except (EOFError, ProtocolError):
            self.close()

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()


def _await_input(channel: Channel, deadline: float | None) -> None:
    """Wait until there is something to read.

    Raises
    ------
    TimeoutError
        There was nothing until the deadline.
    """
    timeout = None if deadline is None else max(0.0, deadline - time.monotonic())
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    if not poll.poll(None if timeout is None else timeout * 1000):
        raise TimeoutError("it does not answer")


def _open(runtime: Runtime, *, start: bool) -> tuple[Channel, Message]:
    """Connect and be greeted, by a queue started for it if need be."""
    for _ in range(_ATTEMPTS):
        stream = _connect(runtime)
        if stream is None:
            if not start:
                raise BackendUnavailableError("no local queue is running")
            _start_queue(runtime)
            continue
        channel = Channel(stream)
        welcome = _greet(channel)
        if welcome is not None:
            return channel, welcome
        # It was about to end just then. The next attempt finds no socket, or a new queue's.
        channel.close()
    raise BackendUnavailableError(
        f"the local queue ends as soon as it has started{_log_tail(runtime)}"
    )


def _connect(runtime: Runtime) -> socket.socket | None:
    """Connect to the queue; None if there is none."""
    stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        stream.settimeout(_GREETING_S)
        with runtime.socket_address() as address:
            _knock(stream, address)
    except (FileNotFoundError, ConnectionError):
        stream.close()
        return None
    except OSError as error:
        stream.close()
        raise BackendUnavailableError(f"the local queue does not answer: {error}") from error
    if peer_uid(stream) != os.getuid():
        stream.close()
        raise BackendUnavailableError(f"the queue in {runtime.directory} is another user's")
    return stream


def _knock(stream: socket.socket, address: str) -> None:
    """Connect, when many do so at the same time as well: the kernel turns some away at first."""
    deadline = time.monotonic() + _GREETING_S
    while True:
        try:
            return stream.connect(address)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_KNOCK_AGAIN_S)


def _greet(channel: Channel) -> Message | None:
    """Exchange greetings; None if the other side is ending."""
    try:
        channel.send_whole({"type": "hello", "version": PROTOCOL_VERSION})
        deadline = time.monotonic() + _GREETING_S
        while True:
            for message in channel.receive():
                return message if message["type"] == "welcome" else None
            _await_input(channel, deadline)
    except TimeoutError as error:
        channel.close()
        raise BackendUnavailableError("the local queue does not answer") from error
    except (OSError, EOFError, ProtocolError):
        return None


def _start_queue(runtime: Runtime) -> None:
    """Start a queue, one client at a time, unless another client has just done so."""
    descriptor = runtime.open_private("start", os.O_RDWR)
    try:
        with lock(descriptor, timeout_s=_START_S):
            stream = _connect(runtime)
            if stream is None:
                _run_server(runtime)
            else:
                stream.close()
    except TimeoutError as error:
        raise BackendUnavailableError("another client keeps starting the local queue") from error
    finally:
        os.close(descriptor)


def _run_server(runtime: Runtime) -> None:
    """Run the starter, which returns as soon as a queue listens."""
    log = runtime.open_private("log", os.O_WRONLY | os.O_APPEND)
    try:
        starter = subprocess.run(
            [sys.executable, "-P", "-m", "dask_batch.backends.local.server"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            env=package_environment(os.environ),
            cwd="/",
            start_new_session=True,
            timeout=_START_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BackendUnavailableError(f"the local queue cannot be started: {error}") from error
    finally:
        os.close(log)
    if starter.returncode != 0:
        raise BackendUnavailableError(f"the local queue did not start{_log_tail(runtime)}")


def _log_tail(runtime: Runtime) -> str:
    """Return the end of the queue's log, for an error."""
    try:
        data = runtime.path("log").read_bytes()[-_LOG_TAIL_BYTES:]
    except OSError:
        return ""
    return f"; the end of {runtime.path('log')}:\n{data.decode(errors='replace')}"
