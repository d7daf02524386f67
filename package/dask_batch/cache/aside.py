"""Moving files of the cache out of the way, where they can still be looked at."""

from __future__ import annotations

import secrets
import time
from pathlib import Path

from dask_batch.cache.files import fsync_directory, make_directory
from dask_batch.errors import CacheError

__all__ = ["move_aside"]


def move_aside(cache: Path, path: Path, section: str) -> Path | None:
    """Move a file to ``damaged`` or ``retired``; None if it was not there (any more)."""
    make_directory(cache / section)
    unique = f"{path.stem}.{time.time_ns()}.{secrets.token_hex(4)}{path.suffix}"
    target = cache / section / unique
    try:
        path.rename(target)
        fsync_directory(path.parent)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CacheError(f"{path} cannot be moved away: {error.strerror}") from error
    return target
