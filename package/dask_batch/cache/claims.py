"""Who runs what: the claims that runs hold on keys.

A *claim* on attempt *n* of a key is a hard link to the record of a run,
``claims/<shard>/<key>.<n>``: making it is one atomic operation that fails if the name is taken.
The highest generation counts. To take over from the dead, or to try a failed task again, is to
make generation *n + 1*: of two that try, one succeeds, and nothing is ever replaced.

Links are not forced to the disk. On a local disk they are lost only together with the machine,
and the jobs with it; a network file system's server commits a link before it answers.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from dask_batch.cache.files import make_directory, publish_bytes
from dask_batch.cache.owner import Owner
from dask_batch.cache.records import read_record, seal
from dask_batch.cache.recovery import run_of_file
from dask_batch.cache.refusals import explain
from dask_batch.cache.run import Run
from dask_batch.cache.runlog import RunLog
from dask_batch.cache.runs import Runs
from dask_batch.cache.store import Cache
from dask_batch.errors import CacheError, DamagedEntryError

__all__ = ["Claim", "Claims", "Owner", "Run", "RunLog"]

_NO_LINK_HERE = (
    errno.EMLINK,  # ext4 gives a file 65,000 names
    errno.EXDEV,  # some network file systems link only within a directory
    errno.EPERM,
    errno.ENOTSUP,
    errno.EOPNOTSUPP,
)
_TRIES = 5

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to make one attempt at a key."""

    key: str
    generation: int
    run: Run
    job_name: str


class Claims(Runs):
    """The runs of a cache and their claims, as one client sees and makes them."""

    def __init__(self, cache: Cache) -> None:
        super().__init__(cache)
        self._run_of_file: dict[tuple[int, int, int], str] = {}

    def claim(self, key: str, run: Run, *, after: int = -1) -> tuple[bool, Claim]:
        """Claim the attempt that follows generation ``after``.

        Returns
        -------
        mine : bool
            Whether the claim is this run's.
        claim : Claim
            This run's claim; or the current one, of whoever was first.
        """
        for _ in range(_TRIES):
            path = self._claim_path(key, after + 1)
            created = self._create(path, run)
            if created and self._last_generation(key) > after:
                return True, self._claim(key, after + 1, run)
            if created:
                # A clean-up has removed what was to be followed: no gap may stay below a claim.
                path.unlink(missing_ok=True)
            current = self.current(key)
            if current is not None and (created or current.generation > after):
                # A clean-up that saw the gap may have filled it with our claim.
                ours = (after, after + 1) if created else (after + 1,)
                return current.run.id == run.id and current.generation in ours, current
            if created:
                after = -1
            elif current is None or current.generation <= after:
                break
        # It was there a moment ago: a clean-up is under way, or the file system is late.
        raise CacheError(f"the claim {path} is there and cannot be found: try again")

    def current(self, key: str) -> Claim | None:
        """Return the claim of the highest generation on a key."""
        return self._steadily(key, lambda: self._current(key))

    def _current(self, key: str) -> Claim | None:
        generation = self._last_generation(key)
        return None if generation < 0 else self._read(key, generation)

    def _steadily(self, key: str, look: Callable[[], _T]) -> _T:
        """Look, and look again where a clean-up has removed a claim between two steps."""
        for _ in range(_TRIES):
            try:
                return look()
            except FileNotFoundError:
                continue
        raise CacheError(f"the claims on {key} cannot be told: they vanish while they are read")

    def superseded(self, key: str, generation: int) -> bool:
        """Whether a later attempt at a key has been claimed. Reads no run: a job can ask."""
        return self._last_generation(key) > generation

    def latest(self, key: str, run_id: str) -> tuple[int, bool]:
        """Return the highest generation of a key, and whether that claim is the run's.

        It is -1 if there is none. No run is read, whose record may be long: a job can ask.
        """
        return self._steadily(key, lambda: self._latest(key, run_id))

    def _latest(self, key: str, run_id: str) -> tuple[int, bool]:
        generation = self._last_generation(key)
        if generation < 0:
            return generation, False
        path = self._claim_path(key, generation)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.lstat(path), os.lstat(self._run_path(run_id))):
                return generation, True
        try:
            record = read_record(path)  # where links were not to be had, a short one
        except DamagedEntryError:
            return generation, run_of_file(self._cache, path) == run_id
        return generation, record.get("run", record.get("id")) == run_id

    def generations(self, key: str) -> list[Claim]:
        """Return all claims on a key, in the order of their generations."""
        return self._steadily(
            key, lambda: [self._read(key, n) for n in range(self._last_generation(key) + 1)]
        )

    def _claim_path(self, key: str, generation: int) -> Path:
        self._cache.path_of(key)  # refuses what is no key
        return self._cache.path / "claims" / key[:2] / f"{key}.{generation}"

    def _claim(self, key: str, generation: int, run: Run) -> Claim:
        if run.id not in self._names:
            self._remember(run)
        return Claim(key, generation, run, self._names[run.id].get(key, ""))

    def _create(self, path: Path, run: Run) -> bool:
        source = self._run_path(run.id)
        try:
            try:
                os.link(source, path, follow_symlinks=False)
            except FileNotFoundError:
                make_directory(path.parent)
                os.link(source, path, follow_symlinks=False)
        except FileExistsError:
            return False
        except OSError as error:
            # BeeGFS says ENOENT to a link between directories, though both are there.
            gone = error.errno == errno.ENOENT and not source.exists()
            if gone or error.errno not in (*_NO_LINK_HERE, errno.ENOENT):
                explain(error, path)
            return publish_bytes(path, seal({"run": run.id}))
        return True

    def _last_generation(self, key: str) -> int:
        """Return the highest generation, -1 if there is none: they follow one another.

        Opening the directory makes an NFS client ask its server whether it has changed.
        """
        shard = self._claim_path(key, 0).parent
        try:
            fd = os.open(shard, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            return -1
        generation = -1
        try:
            while True:
                os.stat(f"{key}.{generation + 1}", dir_fd=fd, follow_symlinks=False)
                generation += 1
        except FileNotFoundError:
            return generation
        finally:
            os.close(fd)

    def _read(self, key: str, generation: int) -> Claim:
        path = self._claim_path(key, generation)
        status = os.stat(path, follow_symlinks=False)
        file = (status.st_dev, status.st_ino, status.st_mtime_ns)
        if file not in self._run_of_file:
            self._run_of_file[file] = self._run_id(path)
        return self._claim(key, generation, self.run(self._run_of_file[file]))

    def _run_id(self, path: Path) -> str:
        """Return the run whose claim a file is."""
        try:
            record = read_record(path)
        except DamagedEntryError:
            return run_of_file(self._cache, path)
        if "run" in record:
            return str(record["run"])
        run = Run.from_record(record)
        if run.id not in self._runs:
            self._remember(run)
        return run.id
