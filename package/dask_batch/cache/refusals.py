"""What a file system refuses, in words: what was to be written, how much is free, what to do."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import NoReturn

from dask_batch.errors import CacheError, FullError

__all__ = ["FULL", "NO_LINKS", "explain", "free_bytes"]

NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def explain(error: OSError, path: Path, *, size: int | None = None) -> NoReturn:
    """Raise a CacheError that says what the file system refused, and what to do.

    Parameters
    ----------
    error
        What it said.
    path
        What was to be made.
    size
        How many bytes were to be written, if that is known.

    Raises
    ------
    FullError
        No space or no inodes are left, a quota is used up, or the file would be too large.
    CacheError
        Anything else.
    """
    if isinstance(error, CacheError):
        raise error
    if error.errno in FULL:
        explained: CacheError = FullError(_full(error, path, size))
    elif error.errno in NO_LINKS and error.filename2 is not None:
        explained = CacheError(
            f"the file system of {path.parent} has no hard links ({error.strerror}), and cannot "
            "rename without replacing: use a cache directory on another one"
        )
    else:
        explained = CacheError(f"{path} cannot be written: {error.strerror or error}")
    explained.errno = error.errno
    raise explained from error


def _full(error: OSError, path: Path, size: int | None) -> str:
    what = path.name if size is None else f"{path.name} ({_readable(size)})"
    tried = f"{what} could not be written to {path.parent}"
    if error.errno == errno.EFBIG:
        return (
            f"{tried}: files may not become that large here (ulimit -f, or the file system's own "
            "limit): raise the limit, or use a cache directory on another file system"
        )
    free = free_bytes(path.parent)
    left = "" if free is None else f" ({_readable(free)} and {_free_files(path.parent)} free)"
    if error.errno == errno.EDQUOT:
        return (
            f"{tried}: your disk quota is exceeded{left}: remove files of yours, or results with "
            "dask_batch.clean, or use a cache directory on another file system"
        )
    return (
        f"{tried}: no space is left on its file system{left}: free some, for instance with "
        "dask_batch.clean, or use a cache directory on another file system"
    )


def free_bytes(directory: Path) -> int | None:
    """Return how much a plain user may still write there, in bytes; None if nobody says."""
    try:
        found = os.statvfs(_existing(directory))
    except OSError:
        return None
    return found.f_bavail * found.f_frsize


def _free_files(directory: Path) -> str:
    found = os.statvfs(_existing(directory))
    # Some file systems make inodes as they go, and say 0 of 0.
    return f"{found.f_favail} inodes" if found.f_files else "any number of inodes"


def _existing(directory: Path) -> Path:
    while not directory.exists() and directory != directory.parent:
        directory = directory.parent
    return directory


def _readable(size: int) -> str:
    amount = float(size)
    for unit in ("bytes", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.3g} {unit}" if unit != "bytes" else f"{size} bytes"
        amount /= 1000
    return f"{amount:.3g} TB"
