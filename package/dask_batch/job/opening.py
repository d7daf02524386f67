"""A job's first act: it opens the cache and reads what it is to do, or says why it cannot.

Where it cannot there is no place to leave a record: the exit code and the log tell.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from pathlib import Path

from dask_batch.cache.definitions import Definition, read_definition
from dask_batch.cache.sections import MARKER
from dask_batch.cache.store import Cache
from dask_batch.errors import CacheError, DamagedEntryError, MissingEntryError
from dask_batch.job.exit_codes import BAD_DEFINITION, NO_CACHE

__all__ = ["RefusedError", "open_task"]

_LATE_S = 10.0
"""How long a network file system may take to show a node what another machine has just made."""
_POLL_S = 0.5


class RefusedError(Exception):
    """The job cannot begin; carries its exit code."""

    def __init__(self, exit_code: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def open_task(path: Path, index: int, *, late_s: float = _LATE_S) -> tuple[Cache, Definition]:
    """Open a cache and read one task of a definition file in it.

    Parameters
    ----------
    path
        The definition file, ``<cache>/definitions/<run>.h5``.
    index
        Which of its tasks.
    late_s
        How long to wait for what is not there, in seconds.

    Raises
    ------
    RefusedError
        The node does not share the cache, or may not use it, or the task cannot be read.
    """
    deadline = time.monotonic() + late_s
    directory = path.parent.parent
    while True:
        try:
            return Cache(directory, create=False), read_definition(path, index)
        except MissingEntryError as error:
            if os.path.exists(path):
                raise RefusedError(BAD_DEFINITION, str(error)) from error
            if time.monotonic() >= deadline:
                raise RefusedError(NO_CACHE, _not_shared(directory, path)) from error
        except DamagedEntryError as error:
            raise RefusedError(BAD_DEFINITION, str(error)) from error
        except (CacheError, OSError) as error:
            message = f"the cache cannot be used on {socket.gethostname()}: {error}"
            raise RefusedError(NO_CACHE, message) from error
        time.sleep(_POLL_S)
        _look_again(path)


def _look_again(path: Path) -> None:
    """Open the directories on the way: an NFS client then asks its server what is in them."""
    for folder in reversed(path.parents):
        with contextlib.suppress(OSError):
            os.close(os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))


def _not_shared(directory: Path, path: Path) -> str:
    host = socket.gethostname()
    if not directory.exists():
        what = f"there is no directory {directory} on {host}"
    elif not (directory / MARKER).exists():
        what = f"{directory} on {host} is another directory than the cache: it has no {MARKER}"
    else:
        what = (
            f"{directory} on {host} is another cache than the client's, or has been cleaned: it "
            f"has no {path.relative_to(directory)}"
        )
    return (
        f"{what}. The node does not share the cache directory with the machine that handed this "
        "job over: name one on a file system that all nodes share, cache_directory=..."
    )
