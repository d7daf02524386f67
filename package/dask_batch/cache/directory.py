"""The cache directory itself: made, recognised, or refused with a remedy."""

from __future__ import annotations

import json
import os
from pathlib import Path

from dask_batch.cache.files import (
    PRIVATE_PREFIX,
    check_directory,
    make_directory,
    publish_bytes,
    read_owned,
)
from dask_batch.cache.sections import MARKER, SECTIONS
from dask_batch.errors import CacheError, MissingEntryError

__all__ = ["FORMAT_VERSION", "prepare"]

FORMAT_VERSION = 1
_TEXT = b'{"format": "dask-batch cache", "version": %d}\n' % FORMAT_VERSION


def prepare(path: Path, *, create: bool) -> Path:
    """Return the absolute path of a cache directory that can be used, made if need be.

    Raises
    ------
    CacheError
        It cannot be used.
    """
    path = Path(os.path.abspath(path.expanduser()))
    if os.path.lexists(path) and not path.is_dir():
        what = "is a symbolic link to nowhere" if path.is_symlink() else "is a file"
        raise CacheError(f"{path} {what}: name another cache directory, or remove it")
    if not path.exists():
        if not create:
            raise MissingEntryError(f"there is no cache directory {path}")
        _make(path)
    check_directory(path)
    if create and not os.access(path, os.W_OK | os.X_OK):
        raise CacheError(
            f"{path} is not writable: name another cache directory, or make this one writable"
        )
    if not _is_marked(path):
        if not create:
            raise MissingEntryError(
                f"{path} is not a dask-batch cache: it has no {MARKER}. Name the folder that was "
                "given as cache_directory; caches of executorlib's cannot be read"
            )
        _mark(path)
    return path


def _make(path: Path) -> None:
    try:
        # Those above it are the user's, and get what her umask says.
        os.makedirs(path.parent, exist_ok=True)
    except OSError as error:
        raise CacheError(
            f"the cache directory {path} cannot be made: {error.strerror} ({error.filename})"
        ) from error
    make_directory(path, section=False)


def _is_marked(path: Path) -> bool:
    """Tell whether a directory is a cache of our format; refuse one of another."""
    try:
        marker = read_owned(path / MARKER)
    except FileNotFoundError:
        return False
    try:
        version = json.loads(marker)["version"]
    except (ValueError, KeyError, TypeError) as error:
        raise CacheError(
            f"{path / MARKER} cannot be read, it is damaged: write "
            f"{_TEXT.decode().strip()} into it, or name another directory"
        ) from error
    if version != FORMAT_VERSION:
        raise CacheError(
            f"{path} is a cache of format {version!r}, and this version of dask-batch knows format "
            f"{FORMAT_VERSION}: use the version that made it, or another cache directory"
        )
    return True


def _mark(path: Path) -> None:
    """Make a directory a cache. The marker comes first: what lacks it is no cache of ours."""
    held = {name for name in os.listdir(path) if not name.startswith(PRIVATE_PREFIX)}
    taken = sorted(held & set(SECTIONS))
    if taken and not _is_marked(path):  # another client may have marked it meanwhile
        raise CacheError(
            f"{path} is not a dask-batch cache, yet holds '{taken[0]}', a name that a cache "
            "needs: use another cache directory, or remove this one if it is what is left of one"
        )
    publish_bytes(path / MARKER, _TEXT)
    if held <= {MARKER}:
        # Only where the directory is ours alone: elsewhere it would hide the user's own files.
        publish_bytes(path / ".gitignore", b"*\n")
