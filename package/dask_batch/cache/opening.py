"""Reading only what is ours: owner and mode are asked of the very file that is read.

What is read may be unpickled. So a file is opened first, without following a symbolic link, and
the open file is asked whose it is.

Every look-up goes through :func:`look_again`: a network file system may be late.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from dask_batch.errors import CacheError

__all__ = ["check_directory", "look_again", "open_owned", "read_owned"]

_STALE_TRIES = 3
# Without O_NONBLOCK a fifo of that name would hold us for ever.
_READ_FLAGS = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK

_T = TypeVar("_T")


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
        fd = look_again(path, lambda: os.open(path, flags | _READ_FLAGS))
    except FileNotFoundError:
        raise
    except OSError as error:
        reason = (
            "it is a symbolic link: remove it" if error.errno == errno.ELOOP else error.strerror
        )
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


def look_again(path: Path, look: Callable[[], _T]) -> _T:
    """Look something up; if it seems absent, once more after its directory has been opened.

    An NFS client remembers for a while that a name was absent. To open the directory makes it ask
    its server whether that has changed. What it knew of a file may be stale, too: that is looked up
    anew.
    """
    for _ in range(_STALE_TRIES):
        try:
            return look()
        except FileNotFoundError:
            break
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
        _revalidate(path.parent)
    _revalidate(path.parent)
    return look()


def _revalidate(directory: Path) -> None:
    with contextlib.suppress(OSError):  # that it is absent, or stale, is for the look to find
        os.close(os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))


def read_owned(path: Path) -> bytes:
    """Return the content of a file that :func:`open_owned` accepts.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    CacheError
        It is not ours, or it cannot be read.
    """
    for _ in range(_STALE_TRIES):
        with os.fdopen(open_owned(path), "rb") as file:
            try:
                return file.read()
            except OSError as error:
                failure = error
        if failure.errno != errno.ESTALE:
            break
    explained = CacheError(f"{path} cannot be read: {failure.strerror}")
    explained.errno = failure.errno
    raise explained from failure
