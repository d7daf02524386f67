"""Files that appear whole or not at all, and are read only if they are ours.

A file is published by writing it under a private name in the same directory and linking it to its
own name once it is on the disk. The link is atomic, on NFS and Lustre too, and fails if the name
is taken: of two writers one succeeds, and nothing is ever replaced. (``rename`` would replace.)

What is read may be unpickled, so a file is opened first and then asked whose it is: the answer is
about the very file that is read.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from dask_batch.cache.owner import Owner
from dask_batch.errors import CacheError

__all__ = [
    "PRIVATE_PREFIX",
    "check_directory",
    "explain",
    "fsync_directory",
    "make_directory",
    "open_owned",
    "private_path",
    "publish_bytes",
    "publish_no_clobber",
    "read_owned",
    "write_all",
]

PRIVATE_PREFIX = ".tmp"
_WRITE_SIZE = 1 << 26  # Linux writes at most 2 GiB less a page at once
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
_NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF, errno.EACCES)


# ---- publishing ------------------------------------------------------------------------------


def publish_no_clobber(path: Path, write: Callable[[Path], None], *, durable: bool = True) -> bool:
    """Let a file appear under its name, whole, unless there is one already.

    Parameters
    ----------
    path
        The name. Its directory is made if it is missing.
    write
        Writes the content into the private file, which exists and is empty.
    durable
        Whether it must be on the disk before it appears: False only for what may be lost with
        the machine.

    Returns
    -------
    bool
        False if the name was taken.

    Raises
    ------
    CacheError
        No space is left, a quota is exceeded, or the file system refuses; nothing is left behind.
    """
    private = _create_private(path.parent)
    try:
        write(private)
        if durable:
            _fsync(private)
        published = _link(private, path)
        if durable and published:
            fsync_directory(path.parent)
    except OSError as error:
        if isinstance(error, CacheError):
            raise
        explain(error, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(private)
    return published


def publish_bytes(path: Path, data: bytes, *, durable: bool = True) -> bool:
    """Publish a file with this content; see :func:`publish_no_clobber`."""

    def write(private: Path) -> None:
        fd = os.open(private, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            write_all(fd, data)
        finally:
            os.close(fd)

    return publish_no_clobber(path, write, durable=durable)


def write_all(fd: int, data: bytes | bytearray | memoryview) -> None:
    """Write all of a buffer: ``os.write`` may write less."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view[:_WRITE_SIZE]) :]


def private_path(directory: Path) -> Path:
    """Return a name that nobody else has, and that tells which process will write it."""
    me = Owner.current()
    host = "".join(c if (c.isalnum() and c.isascii()) or c == "-" else "-" for c in me.host)[:64]
    boot = me.boot_id.replace("-", "")[:8]
    parts = (PRIVATE_PREFIX, host, boot, str(me.pid), me.started, secrets.token_hex(6))
    return directory / "~".join(parts)


def _create_private(directory: Path) -> Path:
    private = private_path(directory)
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        try:
            fd = os.open(private, flags, 0o600)
        except FileNotFoundError:
            make_directory(directory)
            fd = os.open(private, flags, 0o600)
        try:
            os.fchmod(fd, 0o600)  # a umask may have taken our own bits
        finally:
            os.close(fd)
    except CacheError:
        raise
    except OSError as error:
        explain(error, private)
    return private


def _link(private: Path, path: Path) -> bool:
    try:
        os.link(private, path, follow_symlinks=False)
    except FileExistsError:
        # An NFS server may have done it and lost the answer: the client asks again, and is told
        # that the name is taken, by ourselves.
        with contextlib.suppress(FileNotFoundError):
            return os.path.samestat(os.lstat(private), os.lstat(path))
        return False
    return True


def _fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def fsync_directory(path: Path) -> None:
    """Bring a directory's names to the disk, where the file system knows how."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(fd)


def explain(error: OSError, path: Path) -> NoReturn:
    """Raise a CacheError that says what the file system refused, and what to do."""
    if error.errno == errno.ENOSPC:
        message = f"no space is left on the file system of {path.parent}: free some"
    elif error.errno == errno.EDQUOT:
        message = f"the disk quota is exceeded in {path.parent}: free some space or files"
    elif error.errno in _NO_LINKS and error.filename2 is not None:
        message = (
            f"the file system of {path.parent} has no hard links ({error.strerror}): "
            "use a cache directory on another one"
        )
    else:
        message = f"{path} cannot be written: {error.strerror or error}"
    explained = CacheError(message)
    explained.errno = error.errno
    raise explained from error


# ---- directories -----------------------------------------------------------------------------


def make_directory(path: Path) -> None:
    """Make a directory, and those above it that are missing, for nobody but us (0700).

    Raises
    ------
    CacheError
        It cannot be made, or something else has its name.
    """
    try:
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            if not path.is_dir():
                raise
            return None
        except FileNotFoundError:
            if path.parent == path:
                raise
            make_directory(path.parent)
            return make_directory(path)
        if stat.S_IMODE(os.stat(path).st_mode) & 0o700 != 0o700:
            os.chmod(path, 0o700)  # a umask took our own bits
        fsync_directory(path.parent)
    except CacheError:
        raise
    except OSError as error:
        explained = CacheError(f"the directory {path} cannot be made: {error.strerror or error}")
        explained.errno = error.errno
        raise explained from error


def check_directory(path: Path) -> None:
    """Refuse a directory that somebody else owns or may write.

    Raises
    ------
    CacheError
        Names what is wrong with it, and the remedy.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        raise CacheError(f"{path} cannot be looked at: {error.strerror}") from error
    if not stat.S_ISDIR(status.st_mode):
        raise CacheError(f"{path} is not a directory: name another cache directory")
    _refuse_foreign(path, status)


def _refuse_foreign(path: Path, status: os.stat_result) -> None:
    if status.st_uid != os.geteuid():
        raise CacheError(
            f"{path} belongs to user {status.st_uid}, not to you ({os.geteuid()}): what is "
            "unpickled from there would run as you. Use a cache directory of your own"
        )
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise CacheError(
            f"{path} may be written by others (mode {stat.S_IMODE(status.st_mode):04o}): what is "
            f"unpickled from there would run as you. If you trust its content: chmod go-w '{path}'"
        )


# ---- reading ---------------------------------------------------------------------------------


def open_owned(path: Path, flags: int = os.O_RDONLY) -> int:
    """Open a regular file that is ours and that nobody else may write.

    Returns
    -------
    int
        The file descriptor; the caller closes it.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    CacheError
        It is not ours, others may write it, or it is no regular file.
    """
    try:
        # Without O_NONBLOCK a fifo of that name would hold us for ever.
        fd = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise
    except OSError as error:
        reason = "it is a symbolic link" if error.errno == errno.ELOOP else error.strerror
        explained = CacheError(f"{path} cannot be opened: {reason}")
        explained.errno = error.errno
        raise explained from error
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise CacheError(f"{path} is not a regular file: remove it")
        _refuse_foreign(path, status)
    except BaseException:
        os.close(fd)
        raise
    return fd


def read_owned(path: Path) -> bytes:
    """Return the content of a file that :func:`open_owned` accepts."""
    with os.fdopen(open_owned(path), "rb") as file:
        return file.read()
