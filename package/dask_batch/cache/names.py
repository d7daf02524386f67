"""Names that users give to entries: each is a small file that says which key it stands for."""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path

from dask_batch.cache.aside import move_aside
from dask_batch.cache.files import fsync_directory, publish_bytes
from dask_batch.cache.records import read_record, seal
from dask_batch.errors import ConfigurationError, DamagedEntryError

__all__ = ["bind", "resolve", "unbind"]

logger = logging.getLogger(__name__)


def bind(cache: Path, name: str, key: str) -> str | None:
    """Let a name stand for a key; return the key that it already stands for, if any."""
    while not publish_bytes(_path(cache, name), seal({"name": name, "key": key})):
        standing = resolve(cache, name)
        if standing is not None:
            return standing
    return None


def resolve(cache: Path, name: str) -> str | None:
    """Return the key that a name stands for; a damaged record is set aside, and stands for none."""
    path = _path(cache, name)
    try:
        key: str = read_record(path)["key"]
    except FileNotFoundError:
        return None
    except DamagedEntryError as error:
        if move_aside(cache, path, "damaged") is not None:
            logger.warning("cache_key=%r stands for nothing now: %s", name, error)
        return None
    return key


def unbind(cache: Path, name: str) -> None:
    """Let a name stand for nothing."""
    path = _path(cache, name)
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
    fsync_directory(path.parent)


def _path(cache: Path, name: str) -> Path:
    """Return the file of a name: called by a digest, so that no name is too long or too odd."""
    parts = name.split("/") if isinstance(name, str) else []
    if not parts or any(part in ("", ".", "..") or "\0" in part for part in parts):
        raise ConfigurationError(
            f"cache_key={name!r} is not a name: give parts such as 'survey/2024', relative, "
            "without '.', '..' or an empty part"
        )
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
    return cache / "names" / digest[:2] / f"{digest}.json"
