"""What the dead have left behind: private files that nobody will finish."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from dask_batch.cache.files import PRIVATE_PREFIX, private_path
from dask_batch.cache.owner import Owner
from dask_batch.cache.sections import SECTIONS
from dask_batch.cache.store import Cache

__all__ = ["clean_temporary", "dead_files", "file_system_time"]

_GRACE_S = 7 * 24 * 3600.0


def clean_temporary(cache: Cache, *, grace_s: float = _GRACE_S) -> int:
    """Remove private files whose writers have gone.

    Parameters
    ----------
    cache
        Where.
    grace_s
        How old a file must be, in seconds, whose writer cannot be asked after because it ran on
        another host. Its age is reckoned by the file system's own clock.

    Returns
    -------
    int
        How many were removed.
    """
    removed = 0
    for path in dead_files(cache, file_system_time(cache.path), grace_s=grace_s):
        try:
            path.unlink()
            removed += 1
        except FileNotFoundError:
            continue  # somebody else cleans, too
    return removed


def dead_files(cache: Cache, now: float, *, grace_s: float = _GRACE_S) -> Iterator[Path]:
    """Yield the private files whose writers have gone; ``now`` is the file system's time."""
    for path in _private_files(cache.path):
        alive = _writer_lives(path.name)
        try:
            if alive is False or (alive is None and now - path.lstat().st_mtime > grace_s):
                yield path
        except FileNotFoundError:
            continue  # its writer has finished just now


def _private_files(root: Path) -> Iterator[Path]:
    for top in (root, *(root / section for section in SECTIONS)):
        depth_first = os.walk(top) if top != root else [(str(root), [], os.listdir(root))]
        for directory, _, names in depth_first:
            yield from (Path(directory, n) for n in names if n.startswith(f"{PRIVATE_PREFIX}~"))


def _writer_lives(name: str) -> bool | None:
    """Tell whether the writer that a private file's name tells of is alive; None: unknown."""
    mine = private_path(Path()).name.split("~")
    theirs = name.split("~")
    if len(theirs) != len(mine) or theirs[1] != mine[1] or not theirs[3].isdigit():
        return None
    if theirs[2] != mine[2]:
        # Of an earlier boot; or in another process-id namespace, whose processes are not seen here.
        same_boot = theirs[2].partition("-")[0] == mine[2].partition("-")[0]
        return None if same_boot else False
    me = Owner.current()
    return Owner(me.host, me.boot_id, int(theirs[3]), theirs[4]).alive()


def file_system_time(directory: Path) -> float:
    """Return the time that the file system would give a file now: its server's, if it has one.

    Where there is no room for a file (which is when one cleans) the directory itself is given it.
    """
    try:
        return _time_of_a_new_file(private_path(directory))
    except OSError:
        os.utime(directory)
        return os.stat(directory).st_mtime


def _time_of_a_new_file(probe: Path) -> float:
    fd = os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, b"\0")
        return os.fstat(fd).st_mtime
    finally:
        os.close(fd)
        os.unlink(probe)
