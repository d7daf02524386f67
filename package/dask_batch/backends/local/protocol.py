"""The wire format of the local queue: length-prefixed JSON, versioned, never pickle.

A frame is four bytes of length, big endian, and that many bytes of UTF-8 JSON: one object with a
``"type"``. The same frames run between client and queue, and between queue and worker parents.

The first frame of a connection is ``hello`` and names :data:`PROTOCOL_VERSION`; sockets are named
by it too, so that queues of different versions live side by side.
"""

from __future__ import annotations

import json
import select
import socket
from collections.abc import Iterator
from typing import Any, TypeAlias

__all__ = [
    "MAX_FRAME_BYTES",
    "PROTOCOL_VERSION",
    "Channel",
    "FrameReader",
    "Message",
    "ProtocolError",
    "encode",
]

PROTOCOL_VERSION = 3
"""Raised whenever a message changes its meaning or a client needs a new one."""

MAX_FRAME_BYTES = 16 * 2**20
_LENGTH_BYTES = 4
_RECEIVE_BYTES = 2**18

Message: TypeAlias = dict[str, Any]


class ProtocolError(Exception):
    """The peer sent something that is no message, or not one for this moment."""


def encode(message: Message) -> bytes:
    """Return a message as a frame.

    Strings that came from undecodable bytes (lone surrogates) survive: JSON escapes them.
    """
    body = json.dumps(message, separators=(",", ":")).encode("ascii")
    if len(body) > MAX_FRAME_BYTES:
        raise ProtocolError(f"a message of {len(body)} bytes is over {MAX_FRAME_BYTES}")
    return len(body).to_bytes(_LENGTH_BYTES, "big") + body


class FrameReader:
    """Bytes in, messages out; knows nothing of sockets."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Message]:
        """Add bytes and yield the messages that are complete.

        Raises
        ------
        ProtocolError
            The bytes are no messages. Nothing that follows can be trusted.
        """
        self._buffer += data
        while len(self._buffer) >= _LENGTH_BYTES:
            size = int.from_bytes(self._buffer[:_LENGTH_BYTES], "big")
            if size > MAX_FRAME_BYTES:
                raise ProtocolError(f"a message of {size} bytes is over {MAX_FRAME_BYTES}")
            if len(self._buffer) < _LENGTH_BYTES + size:
                return
            body = bytes(self._buffer[_LENGTH_BYTES : _LENGTH_BYTES + size])
            del self._buffer[: _LENGTH_BYTES + size]
            yield _decode(body)


def _decode(body: bytes) -> Message:
    """Parse the body of a frame."""
    try:
        message = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"a message is not JSON: {error}") from error
    if not isinstance(message, dict) or not isinstance(message.get("type"), str):
        raise ProtocolError("a message is not an object with a type")
    return message


class Channel:
    """Messages over a stream socket that never blocks.

    Attributes
    ----------
    socket
        The socket; the channel owns it.
    """

    def __init__(self, stream: socket.socket) -> None:
        stream.setblocking(False)
        self.socket = stream
        self._reader = FrameReader()
        self._unsent = bytearray()

    def fileno(self) -> int:
        """Return the socket's file descriptor (-1 once closed), for selectors."""
        return self.socket.fileno()

    @property
    def unsent(self) -> bool:
        """Whether :meth:`flush` has more to do."""
        return bool(self._unsent)

    def send(self, message: Message) -> None:
        """Send a message, or as much of it as the socket takes now.

        Raises
        ------
        OSError
            The peer is gone.
        """
        self._unsent += encode(message)
        self.flush()

    def flush(self) -> None:
        """Send what is left, as far as the socket takes it now."""
        while self._unsent:
            try:
                sent = self.socket.send(self._unsent)
            except (BlockingIOError, InterruptedError):
                return
            del self._unsent[:sent]

    def send_whole(self, message: Message) -> None:
        """Send a message and wait until the socket has taken it.

        Raises
        ------
        OSError
            The peer is gone.
        """
        self.send(message)
        while self._unsent:
            select.select([], [self.socket], [])
            self.flush()

    @property
    def unsent_bytes(self) -> int:
        """How much the peer has not taken yet."""
        return len(self._unsent)

    def receive(self, at_most_bytes: int | None = None) -> Iterator[Message]:
        """Yield the messages that have arrived; return when there are no more for now.

        Parameters
        ----------
        at_most_bytes
            About how much to read at once, so that nobody else has to wait.

        Raises
        ------
        EOFError
            The peer has closed the connection, or is gone.
        ProtocolError
            It sent what is no message.
        """
        read = 0
        while at_most_bytes is None or read < at_most_bytes:
            try:
                data = self.socket.recv(_RECEIVE_BYTES)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                raise EOFError(str(error)) from error
            if not data:
                raise EOFError("the connection was closed")
            read += len(data)
            yield from self._reader.feed(data)

    def close(self) -> None:
        """Close the socket; what is unsent is lost."""
        self.socket.close()
