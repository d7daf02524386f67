"""The socket at which a client waits for its workers, and who is let in.

Whoever connects is heard in a thread of its own until it has proved that it knows the secret: a
stranger who says nothing keeps nobody waiting, and is sent away after a while.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import psutil

from dask_batch.job.channel import Channel, Message, StrangerError, keep_alive, prove

__all__ = ["Door", "local_door", "network_door", "sweep_sockets"]

logger = logging.getLogger(__name__)

_PREFIX = "dask-batch-workers-"
_SOCKET_PATH_BYTES = 100
_BACKLOG = 128
_MOST_STRANGERS = 64
_PROOF_S = 10

Admit = Callable[[Channel, Message], None]


class Door:
    """A listening socket.

    Parameters
    ----------
    listener
        The socket.
    addresses
        How it is found: see :class:`~dask_batch.cache.meeting.Meeting`.
    folder
        A directory that goes with it.
    """

    def __init__(
        self,
        listener: socket.socket,
        addresses: tuple[str | tuple[str, int], ...],
        folder: str | None = None,
    ) -> None:
        self.addresses = addresses
        self._listener = listener
        self._folder = folder
        self._strangers = threading.BoundedSemaphore(_MOST_STRANGERS)
        self._closed = False

    def open(self, secret: str, admit: Admit) -> None:
        """Let workers in from now on.

        Parameters
        ----------
        secret
            What they must know.
        admit
            Called, in some thread, with the connection to a worker and its first message.
        """
        threading.Thread(
            target=self._watch, args=(secret, admit), name="dask-batch-door", daemon=True
        ).start()

    def _watch(self, secret: str, admit: Admit) -> None:
        while True:
            try:
                end, _ = self._listener.accept()
            except OSError as error:
                if self._closed:
                    return
                logger.warning("a connection could not be taken: %s", error)
                continue
            if not self._strangers.acquire(blocking=False):
                end.close()
                continue
            examine = threading.Thread(
                target=self._examine, args=(end, secret, admit), name="dask-batch-door", daemon=True
            )
            examine.start()

    def _examine(self, end: socket.socket, secret: str, admit: Admit) -> None:
        """Let whoever has connected prove who it is."""
        try:
            if end.family == socket.AF_INET:
                keep_alive(end)
            channel = Channel(end)
            try:
                prove(channel, secret, client=True)
                channel.limit(_PROOF_S)
                hello = channel.receive()
                channel.limit(0)
            except (StrangerError, EOFError, OSError) as error:
                logger.info("a connection was refused: %s", error)
                channel.close()
                return
            admit(channel, hello)
        finally:
            self._strangers.release()

    def close(self) -> None:
        """Let nobody in any more. May be called twice."""
        self._closed = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # ends an accept that waits
        self._listener.close()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def local_door() -> Door:
    """Return a door that only processes of this user on this machine can come to."""
    folder = tempfile.mkdtemp(prefix=_PREFIX)
    if len(os.fsencode(folder)) > _SOCKET_PATH_BYTES - len("/sock"):
        shutil.rmtree(folder)
        folder = tempfile.mkdtemp(prefix=_PREFIX, dir="/tmp")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    path = os.path.join(folder, "sock")
    listener.bind(path)
    listener.listen(_BACKLOG)
    return Door(listener, (path,), folder)


def network_door(*, localhost: bool = False) -> Door:
    """Return a door for workers on other machines.

    Parameters
    ----------
    localhost
        Only for processes of this machine, as where names of hosts lead nowhere.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.bind(("127.0.0.1" if localhost else "", 0))
    listener.listen(_BACKLOG)
    port = listener.getsockname()[1]
    hosts = ["127.0.0.1"] if localhost else _hosts()
    return Door(listener, tuple((host, port) for host in hosts))


def _hosts() -> list[str]:
    """Return what this machine may be called by others: its name, then its addresses."""
    found = [socket.gethostname(), socket.getfqdn()]
    for addresses in psutil.net_if_addrs().values():
        found += [
            one.address
            for one in addresses
            if one.family == socket.AF_INET and not one.address.startswith("127.")
        ]
    return list(dict.fromkeys(found))


def sweep_sockets(addresses: tuple[str | tuple[str, int], ...]) -> None:
    """Remove the socket of a client that was killed, if it is one of ours."""
    for address in addresses:
        folder = Path(address).parent if isinstance(address, str) else Path()
        if folder.name.startswith(_PREFIX) and folder.is_dir() and not folder.is_symlink():
            shutil.rmtree(folder, ignore_errors=True)
