"""Messages between a worker, its keeper and its client: JSON over a socket, and who may speak.

Nothing is ever unpickled of what comes over a socket. Both sides prove, before anything else is
said, that they know the secret of the meeting place, without telling it: whoever listens at an
address that the client has left, or knocks at its door, learns and gets nothing.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import os
import secrets
import socket
import struct
from multiprocessing.connection import Connection
from typing import Any, Final, TypeAlias

__all__ = ["Channel", "DroppedError", "Message", "StrangerError", "connect", "prove"]

Message: TypeAlias = dict[str, Any]

_GREETING: Final = b"dask-batch worker 1"
_NONCE_BYTES: Final = 32
_LONGEST: Final = 1 << 20
"""Bytes: a message is a few paths."""
_PROOF_S: Final = 10
_IDLE_S: Final = 30
_PROBE_S: Final = 10
_PROBES: Final = 6
"""A machine that vanished is noticed by the kernel after ``_IDLE_S + _PROBES * _PROBE_S``."""


class StrangerError(Exception):
    """Whoever is at the other end does not know the secret."""


class DroppedError(StrangerError):
    """The other side has not let this one finish."""


class Channel:
    """One end of a connection.

    Parameters
    ----------
    end
        A connected socket, which the channel takes over.
    """

    def __init__(self, end: socket.socket) -> None:
        self._connection = Connection(end.detach())

    def send(self, message: Message) -> None:
        """Send a message.

        Raises
        ------
        OSError
            The other side is gone.
        """
        self._connection.send_bytes(json.dumps(message).encode("ascii"))

    def receive(self) -> Message:
        """Wait for a message and return it.

        Raises
        ------
        EOFError
            The other side is gone, or speaks another language.
        """
        try:
            message = json.loads(self._connection.recv_bytes(_LONGEST))
        except (OSError, ValueError) as error:
            raise EOFError(str(error)) from error
        if not isinstance(message, dict):
            raise EOFError("what came is no message")
        return message

    def send_raw(self, data: bytes) -> None:
        """Send some bytes."""
        self._connection.send_bytes(data)

    def receive_raw(self, longest: int) -> bytes:
        """Wait for some bytes and return them.

        Raises
        ------
        EOFError
            The other side is gone, or has sent more than was expected.
        """
        try:
            return self._connection.recv_bytes(longest)
        except OSError as error:
            raise EOFError(str(error)) from error

    def speaks(self) -> bool:
        """Whether there is a message, or an end, to be received at this moment."""
        return self._connection.poll()

    def fileno(self) -> int:
        """Return the descriptor, to wait for messages with."""
        return self._connection.fileno()

    def limit(self, wait_s: int) -> None:
        """Wait no longer than so many seconds for the other side; 0: for ever."""
        limit = struct.pack("ll", wait_s, 0)
        with socket.socket(fileno=os.dup(self.fileno())) as same:
            same.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
            same.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)

    def close(self) -> None:
        """Close this end. May be called twice."""
        self._connection.close()


def prove(channel: Channel, secret: str, *, client: bool) -> None:
    """Prove to the other side that this one knows the secret, and have it prove as much.

    Each proof is an HMAC over what both sides have chosen at random and who gives it, so none can
    be used a second time, nor sent back.

    Raises
    ------
    StrangerError
        The other side does not know it, or says nothing for a while.
    """
    key = bytes.fromhex(secret)
    mine = secrets.token_bytes(_NONCE_BYTES)
    channel.limit(_PROOF_S)
    try:
        channel.send_raw(_GREETING + mine)
        theirs = channel.receive_raw(len(_GREETING) + _NONCE_BYTES)
        if not theirs.startswith(_GREETING) or len(theirs) != len(_GREETING) + _NONCE_BYTES:
            raise StrangerError("it does not greet as one of ours")
        theirs = theirs[len(_GREETING) :]
        nonces = mine + theirs if client else theirs + mine
        mac = {role: hmac.digest(key, role + nonces, "sha256") for role in (b"client", b"worker")}
        own, other = (b"client", b"worker") if client else (b"worker", b"client")
        channel.send_raw(mac[own])
        if not hmac.compare_digest(channel.receive_raw(len(mac[other])), mac[other]):
            raise StrangerError("it does not know the secret")
        channel.limit(0)
    except (EOFError, OSError) as error:
        raise DroppedError(f"it has not proved who it is: {error}") from error


def connect(address: str | tuple[str, int], *, wait_s: float = 20.0) -> Channel:
    """Connect to an address.

    Raises
    ------
    OSError
        Nobody listens there, or there is no way to it.
    """
    if isinstance(address, str):
        end = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            end.connect(address)
        except OSError:
            end.close()
            raise
        return Channel(end)
    end = socket.create_connection(address, timeout=wait_s)
    end.settimeout(None)
    keep_alive(end)
    return Channel(end)


def keep_alive(end: socket.socket) -> None:
    """Have the kernel find out that the machine at the other end is gone.

    It asks by itself, also while this process is deep in compiled code.
    """
    end.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    silent_ms = 1000 * (_IDLE_S + _PROBES * _PROBE_S)
    for name, value in (
        ("TCP_KEEPIDLE", _IDLE_S),
        ("TCP_KEEPINTVL", _PROBE_S),
        ("TCP_KEEPCNT", _PROBES),
        ("TCP_USER_TIMEOUT", silent_ms),
    ):
        with contextlib.suppress(OSError, AttributeError):  # not every kernel has them all
            end.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
