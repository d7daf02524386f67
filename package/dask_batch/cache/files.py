"""Files that appear whole or not at all.

A file is published by writing it under a private name in the same directory and linking it to its
own name once it is on the disk. The link is atomic, on NFS and Lustre too, and fails if the name
is taken: of two writers one succeeds, and nothing is ever replaced. (``rename`` would replace.)
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from dask_batch.cache.opening import check_directory, open_owned, read_owned
from dask_batch.cache.owner import Owner
from dask_batch.cache.refusals import FULL, NO_LINKS, explain
from dask_batch.cache.renaming import rename_no_replace
from dask_batch.cache.sections import MARKER, SECTIONS
from dask_batch.errors import CacheError

__all__ = [
    "PRIVATE_PREFIX",
    "check_directory",
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
_NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF, errno.EACCES)
_TRIES = 3

_T = TypeVar("_T")


# ---- publishing ------------------------------------------------------------------------------


def publish_no_clobber(
    path: Path,
    write: Callable[[Path], None],
    *,
    durable: bool = True,
    size: int | None = None,
) -> bool:
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
    size
        How many bytes it will have, or nearly so: told if they do not fit.

    Returns
    -------
    bool
        False if the name was taken.

    Raises
    ------
    FullError
        No space is left, a quota is exceeded, or the file is too large; nothing is left behind.
    CacheError
        The file system refuses; nothing is left behind either.
    """
    private = _create_private(path)
    try:
        write(private)
        if durable:
            _fsync(private)
        published = _link(private, path)
        if durable and published:
            fsync_directory(path.parent)
    except OSError as error:
        _discard(private)  # before it is told how much is free
        explain(error, path, size=size)
    finally:
        _discard(private)
    return published


def _discard(private: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(private)


def publish_bytes(path: Path, data: bytes, *, durable: bool = True) -> bool:
    """Publish a file with this content; see :func:`publish_no_clobber`."""

    def write(private: Path) -> None:
        fd = os.open(private, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            write_all(fd, data)
        finally:
            os.close(fd)

    return publish_no_clobber(path, write, durable=durable, size=len(data))


def write_all(fd: int, data: bytes | bytearray | memoryview) -> None:
    """Write all of a buffer: ``os.write`` may write less."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view[:_WRITE_SIZE]) :]


def private_path(directory: Path) -> Path:
    """Return a name that nobody else has, and that tells which process will write it."""
    me = Owner.current()
    host = "".join(c if (c.isalnum() and c.isascii()) or c == "-" else "-" for c in me.host)[:64]
    boot, _, namespace = me.boot_id.partition(":")
    boot = boot.replace("-", "")[:8] + (f"-{namespace}" if namespace else "")
    parts = (PRIVATE_PREFIX, host, boot, str(me.pid), me.started, secrets.token_hex(6))
    return directory / "~".join(parts)


def _create_private(path: Path) -> Path:
    """Make the empty private file beside a name, and its directory if that is missing."""
    private = private_path(path.parent)
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = _in_made_directory(path.parent, lambda: os.open(private, flags, 0o600))
        try:
            os.fchmod(fd, 0o600)  # a umask may have taken our own bits
        finally:
            os.close(fd)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(private)
        explain(error, path)
    return private


def _in_made_directory(directory: Path, make: Callable[[], _T]) -> _T:
    """Make something in a directory; make that first if it is missing, or a clean-up took it."""
    for _ in range(_TRIES):
        try:
            return make()
        except FileNotFoundError:
            make_directory(directory)
    return make()


def _link(private: Path, path: Path) -> bool:
    try:
        os.link(private, path, follow_symlinks=False)
    except FileExistsError:
        # An NFS server may have done it and lost the answer: the client asks again, and is told
        # that the name is taken, by ourselves.
        with contextlib.suppress(FileNotFoundError):
            return os.path.samestat(os.lstat(private), os.lstat(path))
        return False
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        return _rename(private, path, error)
    return True


def _rename(private: Path, path: Path, refused: OSError) -> bool:
    """Give a file its name where there are no hard links, in one step too."""
    try:
        rename_no_replace(private, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno in (*NO_LINKS, errno.EINVAL):
            raise refused from error
        raise
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


# ---- directories -----------------------------------------------------------------------------


def _made(path: Path) -> bool:
    """Make one directory; False if it is there."""
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        if not path.is_dir():
            raise
        return False
    return True


def make_directory(path: Path, *, section: bool = True) -> None:
    """Make a directory, and those above it that are missing, for nobody but us (0700).

    Parameters
    ----------
    path
        Its path.
    section
        Whether it is, or lies in, a section of a cache, so that the cache has to be there. A job
        that comes to its end when its cache has been removed must not bring a part of it back.

    Raises
    ------
    CacheError
        It cannot be made, something else has its name, or the cache is gone.
    """
    try:
        try:
            if section and path.name in SECTIONS and not (path.parent / MARKER).exists():
                raise CacheError(f"the cache {path.parent} is gone: it has been removed")
            made = _made(path)
        except FileNotFoundError:
            if path.parent == path:
                raise
            make_directory(path.parent)
            made = _made(path)  # some file systems (/proc) say so of whatever is to be made
        if not made:
            return
        if stat.S_IMODE(os.stat(path).st_mode) & 0o700 != 0o700:
            os.chmod(path, 0o700)  # a umask took our own bits
        fsync_directory(path.parent)
    except CacheError:
        raise
    except OSError as error:
        if error.errno in FULL:
            explain(error, path)
        explained = CacheError(f"the directory {path} cannot be made: {error.strerror or error}")
        explained.errno = error.errno
        raise explained from error
