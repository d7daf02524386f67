"""Where the queue lives: a short owner-only directory with its socket, locks, log and journal.

The directory is ``/tmp/dask-batch-<uid>``. ``XDG_RUNTIME_DIR`` would be the usual place, but it
is removed when the user's last session ends, which the queue is there to outlive: the next login
would find no queue, start a second one, and take the first one's jobs for dead. ``TMPDIR`` differs
between sessions and batch jobs, and the queue must be the same for all.

Two locks, both ``flock``. ``life`` is held by the queue from before it listens until it is gone,
so there is never a second one. ``start`` is held by a client while it starts a queue, so that of
many clients one does so and the others wait.
"""

from __future__ import annotations

import fcntl
import os
import socket
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dask_batch.backends.local.protocol import PROTOCOL_VERSION
from dask_batch.errors import BackendUnavailableError

__all__ = ["DIRECTORY_VARIABLE", "Runtime", "lock", "peer_uid"]

DIRECTORY_VARIABLE = "DASK_BATCH_QUEUE_DIR"
_SOCKET_PATH_BYTES = 100
"""The kernel takes 108 on Linux and 104 on macOS, the closing zero included."""

_LOCK_RETRY_S = 0.02
_LOCAL_PEERCRED = 1  # from <sys/un.h>; the socket module does not have it


@dataclass(frozen=True, slots=True)
class Runtime:
    """The queue's directory, made and checked."""

    directory: Path

    @classmethod
    def prepare(cls) -> Runtime:
        """Make the directory if need be, and check that nobody else can reach into it.

        Raises
        ------
        BackendUnavailableError
            It belongs to someone else, or others may enter it.
        """
        directory = _choose_directory()
        try:
            _make(directory)
            descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError as error:
            raise BackendUnavailableError(
                f"the local queue's directory {directory} cannot be used: {error}; "
                f"name another one in {DIRECTORY_VARIABLE}"
            ) from error
        try:
            _refuse_foreign(directory, os.fstat(descriptor))
        finally:
            os.close(descriptor)
        return cls(directory)

    def path(self, kind: str) -> Path:
        """Return the path of the queue's file of a kind (``sock``, ``life``, ``log``, ...)."""
        return self.directory / f"queue-{PROTOCOL_VERSION}.{kind}"

    @contextmanager
    def socket_address(self) -> Iterator[str]:
        """Give the socket's address, short enough for the kernel, while in the context."""
        path = self.path("sock")
        if len(os.fsencode(path)) <= _SOCKET_PATH_BYTES:
            yield str(path)
            return
        if sys.platform != "linux":
            raise BackendUnavailableError(
                f"the path {path} is too long for a socket; name a shorter directory in "
                f"{DIRECTORY_VARIABLE}"
            )
        descriptor = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            yield f"/proc/self/fd/{descriptor}/{path.name}"
        finally:
            os.close(descriptor)

    def open_private(self, kind: str, flags: int) -> int:
        """Open one of the queue's files, owner-only, and return its descriptor."""
        descriptor = os.open(self.path(kind), flags | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        os.fchmod(descriptor, 0o600)  # a umask may have taken our own bits
        return descriptor


def _choose_directory() -> Path:
    """Return the directory for this user on this host."""
    if given := os.environ.get(DIRECTORY_VARIABLE):
        return Path(os.path.abspath(given))
    shared = Path("/tmp")
    usable = sys.platform != "darwin" and os.access(shared, os.W_OK | os.X_OK)
    return (shared if usable else Path(tempfile.gettempdir())) / f"dask-batch-{os.getuid()}"


def _make(directory: Path) -> None:
    """Make the directory if it is missing."""
    try:
        directory.mkdir(mode=0o700, parents=DIRECTORY_VARIABLE in os.environ)
    except FileExistsError:
        return  # whose it is, and of what mode, is asked of the open directory
    if stat.S_IMODE(directory.lstat().st_mode) != 0o700:
        os.chmod(directory, 0o700)  # a umask took our own bits


def _refuse_foreign(directory: Path, status: os.stat_result) -> None:
    """Raise if anyone but this user owns or may enter the directory."""
    if status.st_uid != os.getuid():
        trouble = f"belongs to user {status.st_uid}"
    elif stat.S_IMODE(status.st_mode) & 0o077:
        trouble = f"has mode {stat.S_IMODE(status.st_mode):04o}, others may enter it"
    else:
        return
    raise BackendUnavailableError(
        f"the local queue's directory {directory} {trouble}: it must be yours alone (mode 0700)"
    )


@contextmanager
def lock(descriptor: int, *, timeout_s: float) -> Iterator[None]:
    """Hold an exclusive lock on an open file while in the context.

    Raises
    ------
    TimeoutError
        Another process kept it all the time.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise TimeoutError(f"a lock was not to be had within {timeout_s} s") from None
            time.sleep(_LOCK_RETRY_S)
    try:
        yield
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)


def peer_uid(connection: socket.socket) -> int:
    """Return the user id of the process at the other end, as the kernel knows it."""
    if sys.platform == "darwin":
        credentials = connection.getsockopt(0, _LOCAL_PEERCRED, 76)  # struct xucred
        return int.from_bytes(credentials[4:8], sys.byteorder)
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int.from_bytes(credentials[4:8], sys.byteorder)
