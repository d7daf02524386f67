"""The queue's hold on its directory: the lock of its life, its socket, its log."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from pathlib import Path

from dask_batch.backends.local.runtime import Runtime
from dask_batch.errors import BackendUnavailableError

__all__ = ["Housing", "TakenError"]

_LOG_BYTES = 2**20
_ENTER_S = 15.0
_RETRY_S = 0.02
_BACKLOG = 1024


class TakenError(Exception):
    """Another queue lives here, and answers."""


class Housing:
    """A queue's directory, lived in.

    Attributes
    ----------
    runtime
        The directory.
    listener
        The socket that clients connect to.
    """

    def __init__(self, runtime: Runtime, life: int) -> None:
        self.runtime = runtime
        self._life = life
        self._directory = self._hold_directory()
        self.listener = self._listen()

    @classmethod
    def enter(cls, runtime: Runtime) -> Housing:
        """Take the directory, as soon as a queue that is about to end has left it.

        Raises
        ------
        TakenError
            A living queue has it.
        BackendUnavailableError
            One has it that does not answer.
        """
        life = runtime.open_private("life", os.O_RDWR)
        deadline = time.monotonic() + _ENTER_S
        while not _try_lock(life):
            if _answers(runtime):
                os.close(life)
                raise TakenError
            if time.monotonic() > deadline:
                raise BackendUnavailableError(f"the queue in {runtime.directory} does not answer")
            time.sleep(_RETRY_S)
        return cls(runtime, life)

    def _hold_directory(self) -> int:
        """Lock the directory itself (shared): systemd-tmpfiles leaves locked directories alone."""
        descriptor = os.open(self.runtime.directory, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return descriptor

    def _listen(self) -> socket.socket:
        """Bind the socket in place of what a killed queue left. The lock makes that safe."""
        self.runtime.path("sock").unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with self.runtime.socket_address() as address:
            listener.bind(address)
        self._bound = os.stat(self.runtime.path("sock"))
        listener.listen(_BACKLOG)
        listener.setblocking(False)
        return listener

    def check(self) -> bool:
        """Move in again if the directory was swept away; True if there is a new listener.

        If another queue has moved in meanwhile, this one only serves the clients it has.
        """
        self._shorten_log()
        if not _same_file(self.runtime.path("life"), self._life) and not self._move_in_again():
            return False
        try:
            if os.path.samestat(os.stat(self.runtime.path("sock")), self._bound):
                return False
        except FileNotFoundError:
            pass  # only the socket was swept away, or all was
        self.listener = self._listen()
        return True

    def _move_in_again(self) -> bool:
        """Make the directory anew, and lock it; False if another queue has been faster."""
        life = Runtime.prepare().open_private("life", os.O_RDWR)
        if not _try_lock(life):
            os.close(life)
            return False
        os.close(self._life)
        os.close(self._directory)
        self._life, self._directory = life, self._hold_directory()
        return True

    def _shorten_log(self) -> None:
        """Empty the log when it has grown large. It is opened for appending."""
        if os.fstat(2).st_size > _LOG_BYTES and _same_file(self.runtime.path("log"), 2):
            os.ftruncate(2, 0)

    def leave(self) -> None:
        """Take the socket away, so that nobody finds it any more; the lock goes with the process.

        Connections that nobody has accepted are closed by the kernel.
        """
        if _same_file(self.runtime.path("life"), self._life):
            self.runtime.path("sock").unlink(missing_ok=True)
        self.listener.close()


def _try_lock(descriptor: int) -> bool:
    """Take an exclusive lock if it is free."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _answers(runtime: Runtime) -> bool:
    """Whether somebody listens at the directory's socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe, runtime.socket_address() as to:
        probe.settimeout(1.0)
        try:
            probe.connect(to)
        except OSError:
            return False
    return True


def _same_file(path: Path, descriptor: int) -> bool:
    """Whether a path still leads to the file that a descriptor has open."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False
