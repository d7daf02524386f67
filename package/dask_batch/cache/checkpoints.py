"""Where a task may leave what its next attempt is to find: ``checkpoints/<shard>/<key>/``."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

from dask_batch.cache.store import Cache

__all__ = ["checkpoint_path", "remove_checkpoints"]


def checkpoint_path(cache: Cache, key: str) -> Path:
    """Return the directory of a key's checkpoints, which need not exist."""
    cache.path_of(key)  # refuses what is no key
    return cache.path / "checkpoints" / key[:2] / key


def remove_checkpoints(cache: Cache, key: str) -> None:
    """Remove the checkpoints of a key whose result is there, as far as they can be.

    What a file system refuses to remove now is left to a clean-up.
    """
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(checkpoint_path(cache, key), ignore_errors=True)
