"""The socket at which a client waits for its workers, and who is let in.

Whoever connects is heard in a thread of its own until it has proved that it knows the secret: a
stranger who says nothing, or little, keeps nobody waiting, and is sent away after a while; the one
who has been here longest goes at once when there are too many.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import socket
import stat
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from multiprocessing.connection import wait
from pathlib import Path

import psutil

from dask_batch.backends.workers.forks import let_go_in_forks
from dask_batch.cache.files import publish_bytes
from dask_batch.cache.owner import Owner
from dask_batch.cache.records import read_record, seal
from dask_batch.errors import CacheError
from dask_batch.job.channel import Channel, Message, StrangerError, keep_alive, prove

__all__ = ["Door", "local_door", "network_door", "sweep_sockets"]

logger = logging.getLogger(__name__)

_PREFIX = "dask-batch-workers-"
_SOCKET_PATH_BYTES = 100
_BACKLOG = 128
_MOST_STRANGERS = 64
_PROOF_S = 10
_LOOK_S = 1.0
_OWNER = "owner.json"
_UNFINISHED_S = 24 * 3600.0
"""A directory so old that does not say whose it is was left by a client that was killed early."""

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
        self._lock = threading.Lock()
        self._strangers: dict[socket.socket, float] = {}
        """Who has not proved who it is, by when it must have; the oldest first."""
        self._closed = threading.Event()
        let_go_in_forks(self)

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
        said = False
        while not self._closed.is_set():
            self._send_away()
            try:
                if not wait([self._listener], _LOOK_S if self._strangers else None):
                    continue
                taken = self._taken()
            except (OSError, ValueError) as error:
                if not self._closed.is_set() and not said:
                    logger.warning("a connection could not be taken, and waits: %s", error)
                    said = True
                self._closed.wait(_LOOK_S)
                continue
            said = False
            threading.Thread(
                target=self._examine,
                args=(*taken, secret, admit),
                name="dask-batch-door",
                daemon=True,
            ).start()

    def _taken(self) -> tuple[socket.socket, socket.socket]:
        """Take a connection; return it, and by what it is sent away if it does not prove itself."""
        end, _ = self._listener.accept()
        try:
            handle = end.dup()
        except OSError:
            end.close()
            raise
        with self._lock:
            self._strangers[handle] = time.monotonic() + _PROOF_S
        return end, handle

    def _send_away(self) -> None:
        """End the connections of strangers who have been here too long, or are too many."""
        with self._lock:
            now = time.monotonic()
            beyond = len(self._strangers) - _MOST_STRANGERS
            for number, (handle, until) in enumerate(self._strangers.items()):
                if number < beyond or now >= until:
                    with contextlib.suppress(OSError):  # it has gone by itself
                        handle.shutdown(socket.SHUT_RDWR)

    def _examine(
        self, end: socket.socket, handle: socket.socket, secret: str, admit: Admit
    ) -> None:
        """Let whoever has connected prove who it is."""
        channel = Channel(end)
        try:
            if end.family == socket.AF_INET:
                keep_alive(handle)
            prove(channel, secret, client=True)
            channel.limit(_PROOF_S)
            hello = channel.receive()
            channel.limit(0)
        except (StrangerError, EOFError, OSError) as error:
            logger.info("a connection was refused: %s", error)
            channel.close()
            return
        finally:
            with self._lock:
                del self._strangers[handle]
                handle.close()
        admit(channel, hello)

    def abandon(self) -> None:
        """Let go of all descriptors, in a fork of the client: it is not whom workers work for."""
        self._closed.set()
        self._listener.close()
        for handle in self._strangers:
            handle.close()

    def close(self) -> None:
        """Let nobody in any more. May be called twice."""
        self._closed.set()
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
    publish_bytes(Path(folder, _OWNER), seal(asdict(Owner.current())), durable=False)
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


def sweep_sockets() -> None:
    """Remove the sockets of clients on this machine that were killed."""
    for top in {Path(tempfile.gettempdir()), Path("/tmp")}:
        for folder in top.glob(f"{_PREFIX}*"):
            if _abandoned(folder):
                shutil.rmtree(folder, ignore_errors=True)


def _abandoned(folder: Path) -> bool:
    """Whether a directory is ours, and its client is gone."""
    try:
        status = folder.lstat()
        if status.st_uid != os.geteuid() or not stat.S_ISDIR(status.st_mode):
            return False
        return Owner(**read_record(folder / _OWNER)).alive() is False
    except FileNotFoundError:  # the directory, or its owner's name
        return folder.is_dir() and time.time() - status.st_mtime > _UNFINISHED_S
    except (OSError, CacheError, TypeError):
        return False
