"""Removing files of a cache, and keeping account of it.

Nothing here decides by itself whether something is still needed but what can be told from the file
alone: its age by the file system's own clock, and what it belongs to.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from dask_batch.cache import attempts
from dask_batch.cache.entries import listed
from dask_batch.cache.files import PRIVATE_PREFIX
from dask_batch.cache.meeting import POOL, Meeting, meeting_directory
from dask_batch.cache.records import read_record
from dask_batch.cache.store import Cache
from dask_batch.errors import CacheError, DamagedEntryError

__all__ = ["Sweep"]

_SHARDED = ("results", "claims", "attempts", "names", "checkpoints")
_MOVED = re.compile(r".*\.([0-9]{15,20})\.[0-9a-f]{8}\.[a-z0-9]+")
_EXCHANGE = re.compile(r"([0-9a-f]{64})\.([0-9]+)")
_SHARD = re.compile(r"[0-9a-f]{2}")
_RUN = re.compile(r"[0-9]{8}-[0-9]{6}-[0-9a-f]{8}")
_OF_A_RUN = re.compile(
    r"\.((wanted|disowned)\.[^.]*|heir\.[0-9]+|log(\.[0-9]+)?(\.aborted)?|settled)\Z"
)


_OUT_OF_SIGHT_S = 30 * 24 * 3600.0
"""So long a client that cannot be asked after from here is believed to live."""


class Sweep:
    """One clean-up of a cache.

    Parameters
    ----------
    cache
        Where.
    now
        The time by the file system's clock, in seconds since 1970.
    dry_run
        Only tell what would be removed.

    Attributes
    ----------
    removed : Counter
        How many files of each kind.
    freed_bytes : int
        Their size.
    """

    def __init__(self, cache: Cache, now: float, *, dry_run: bool = False) -> None:
        self.cache = cache
        self.now = now
        self.dry_run = dry_run
        self.removed: Counter[str] = Counter()
        self.freed_bytes = 0

    # ---- one by one ------------------------------------------------------------------------

    def remove(self, path: Path, kind: str) -> None:
        """Remove a file, if it is still there."""
        try:
            status = path.lstat()
            if not self.dry_run:
                path.unlink()
        except (FileNotFoundError, IsADirectoryError):
            return  # nothing of ours has that name (any more)
        except OSError as error:
            raise CacheError(f"{path} cannot be removed: {error.strerror}") from error
        self.removed[kind] += 1
        if status.st_nlink == 1:  # a claim is a name more of a file that others name as well
            self.freed_bytes += status.st_size

    def remove_tree(self, directory: Path, kind: str) -> None:
        """Remove a directory with all that is in it; links are removed, not followed."""
        for parent, directories, names in os.walk(directory, topdown=False):
            for name in names:
                self.remove(Path(parent, name), kind)
            for name in directories:
                below = Path(parent, name)
                if below.is_symlink():
                    self.remove(below, kind)
                else:
                    self._remove_directory(below)
        self._remove_directory(directory)

    def _remove_directory(self, path: Path) -> None:
        if not self.dry_run:
            try:
                path.rmdir()
            except OSError:
                return  # gone, or somebody has put something into it just now

    def age_s(self, path: Path) -> float:
        """Return how long ago a file was written, in seconds; of one that has gone, 0."""
        try:
            return self.now - path.lstat().st_mtime
        except FileNotFoundError:
            return 0.0

    # ---- section by section ----------------------------------------------------------------

    def out_of_the_way(self, keep_s: float) -> None:
        """Remove what was moved out of the way longer ago than ``keep_s``."""
        for section in ("damaged", "retired"):
            for path in self._files(self.cache.path / section):
                moved = _MOVED.fullmatch(path.name)
                age_s = self.now - int(moved[1]) / 1e9 if moved else self.age_s(path)
                if age_s > keep_s:
                    self.remove(path, section)

    def ranks(self) -> None:
        """Remove what ranks and leaders of attempts that are over have told each other."""
        top = self.cache.path / "ranks"
        for name in listed(top):
            exchange = _EXCHANGE.fullmatch(name)
            if exchange is None:
                continue
            key, generation = exchange[1], int(exchange[2])
            if self.cache.present({key}) or attempts.ended(self.cache, {key: generation}):
                self.remove_tree(top / name, "ranks")

    def workers(self, keep_s: float) -> None:
        """Remove what clients have left that long-lived workers met them at, and their logs."""
        top = meeting_directory(self.cache.path)
        held = {name for name in _pools(listed(top)) if self._is_held(top / f"{name}.json")}
        for name in listed(top):
            pool, path = name.partition(".")[0], top / name
            if pool in held or not re.fullmatch(POOL, pool) or self.age_s(path) <= keep_s:
                continue
            if path.is_dir() and not path.is_symlink():
                self.remove_tree(path, "workers")
            else:
                self.remove(path, "workers")
        logs = self.cache.path / "logs"
        for name in _pools(listed(logs)):
            if name not in held and self.age_s(logs / name) > keep_s:
                self.remove_tree(logs / name, "logs")

    def _is_held(self, place: Path) -> bool:
        """Whether a client may wait at a meeting place."""
        try:
            alive = Meeting.read(place).owner.alive()
        except FileNotFoundError:
            return False
        except CacheError:
            alive = None
        return self.age_s(place) <= _OUT_OF_SIGHT_S if alive is None else alive

    def checkpoints(self) -> None:
        """Remove the checkpoints of keys that have a result."""
        top = self.cache.path / "checkpoints"
        for shard in listed(top):
            keys = {name for name in listed(top / shard) if re.fullmatch("[0-9a-f]{64}", name)}
            for key in self.cache.present(keys):
                self.remove_tree(top / shard / key, "checkpoints")

    def names(self, needed: Collection[str], keep_s: float) -> None:
        """Remove names that stand for keys without a result, unless these are needed."""
        top = self.cache.path / "names"
        for shard in listed(top):
            for path in self._files(top / shard):
                try:
                    key = str(read_record(path).get("key"))
                except (FileNotFoundError, DamagedEntryError):
                    continue
                vain = key not in needed and not self.cache.present({key})
                if vain and self.age_s(path) > keep_s:
                    self.remove(path, "names")

    def attempts_without_claims(self, keep_s: float) -> None:
        """Remove the attempts of keys that nobody has claimed any more."""
        top = self.cache.path / "attempts"
        for shard in listed(top):
            paths = list(self._files(top / shard))
            # Listed after the attempts: what was claimed in between has none among them.
            claimed = {
                name.partition(".")[0] for name in listed(self.cache.path / "claims" / shard)
            }
            for path in paths:
                if path.name.partition(".")[0] not in claimed and self.age_s(path) > keep_s:
                    self.remove(path, "attempts")

    def without_a_run(self, runs: Collection[str], keep_s: float) -> None:
        """Remove what belongs to runs that have no record any more."""
        path = self.cache.path
        for file in self._files(path / "runs"):
            suffix = re.search(
                r"\.((wanted|disowned)\.[^.]*|heir\.[0-9]+|log(\.[0-9]+)?|settled)$", file.name
            )
            if suffix and file.name[: suffix.start()] not in runs and self.age_s(file) > keep_s:
                self.remove(file, "runs")
        for file in self._files(path / "definitions"):
            if file.stem not in runs and self.age_s(file) > keep_s:
                self.remove(file, "definitions")
        for name in filter(_RUN.fullmatch, listed(path / "logs")):
            if name not in runs and self.age_s(path / "logs" / name) > keep_s:
                self.remove_tree(path / "logs" / name, "logs")

    def empty_shards(self) -> None:
        """Remove the directories of shards that are empty: who needs one makes it again."""
        for section in _SHARDED:
            for shard in filter(_SHARD.fullmatch, listed(self.cache.path / section)):
                self._remove_directory(self.cache.path / section / shard)

    def _files(self, directory: Path) -> Iterator[Path]:
        for name in listed(directory):
            if not name.startswith(PRIVATE_PREFIX):
                yield directory / name


def _pools(names: Iterable[str]) -> set[str]:
    """Return the names of workers' pools among some names of files."""
    return {pool for pool in (name.partition(".")[0] for name in names) if re.fullmatch(POOL, pool)}
