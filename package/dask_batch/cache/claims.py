"""Who runs what: runs, the claims they hold on keys, and what became of their hand-over.

A *run* is one hand-over of jobs. It is written to ``runs/<id>.json`` once, with the names of its
jobs and their keys. A *claim* on attempt *n* of a key is a hard link to that file,
``claims/<shard>/<key>.<n>``: making it is one atomic operation that fails if the name is taken.
The highest generation counts. To take over from the dead, or to try a failed task again, is to
make generation *n + 1*: of two that try, one succeeds, and nothing is ever replaced.

Links are not forced to the disk. On a local disk they are lost only together with the machine,
and the jobs with it; a network file system's server commits a link before it answers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dask_batch.cache.files import make_directory, publish_bytes
from dask_batch.cache.owner import Owner
from dask_batch.cache.records import read_record, seal
from dask_batch.cache.runlog import NOBODY, RunLog, append_event, heirs, read_log
from dask_batch.cache.store import Cache
from dask_batch.errors import CacheError, MissingEntryError

__all__ = ["Claim", "Claims", "Owner", "Run", "RunLog"]

_NO_LINK_HERE = (
    errno.EMLINK,  # ext4 gives a file 65,000 names
    errno.EXDEV,  # some network file systems link only within a directory
    errno.EPERM,
    errno.ENOTSUP,
    errno.EOPNOTSUPP,
)


@dataclass(frozen=True, slots=True)
class Run:
    """One hand-over of jobs to a batch system."""

    id: str
    owner: Owner
    backend: str
    created: float
    jobs: tuple[tuple[str, str], ...]
    """Of each job its unique name and its task's key; the position is the job's index."""


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to make one attempt at a key."""

    key: str
    generation: int
    run: Run
    job_name: str


class Claims:
    """The claims and runs of a cache, as one client sees and makes them."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._runs: dict[str, Run] = {}
        self._names: dict[str, dict[str, str]] = {}
        self._run_of_file: dict[tuple[int, int, int], str] = {}
        self._heir: dict[str, int] = {}
        self._begun: set[str] = set()

    # ---- runs ------------------------------------------------------------------------------

    def begin(self, run: Run) -> None:
        """Write a run down, on the disk when this returns, before anything is claimed for it.

        Raises
        ------
        CacheError
            There is one of that id, or it cannot be written.
        """
        record = dataclasses.asdict(run)
        if not publish_bytes(self._run_path(run.id), seal(record)):
            raise CacheError(f"there is a run {run.id} already in {self._cache.path}")
        self._remember(run)
        self._begun.add(run.id)

    def run(self, run_id: str) -> Run:
        """Return a run by its id.

        Raises
        ------
        MissingEntryError
            There is none.
        DamagedEntryError
            Its record is damaged.
        """
        if run_id not in self._runs:
            path = self._run_path(run_id)
            try:
                record = read_record(path)
            except FileNotFoundError as error:
                raise MissingEntryError(f"there is no run {run_id}") from error
            self._remember(_run_from(record))
        return self._runs[run_id]

    def run_ids(self) -> list[str]:
        """Return the ids of all runs, in their order, which is that of time."""
        try:
            names = os.listdir(self._cache.path / "runs")
        except FileNotFoundError:
            return []
        return sorted(name.removesuffix(".json") for name in names if name.endswith(".json"))

    def unsettled(self) -> list[Run]:
        """Return the runs whose hand-over never came to an end, oldest first."""
        try:
            names = set(os.listdir(self._cache.path / "runs"))
        except FileNotFoundError:
            return []
        ids = (name.removesuffix(".json") for name in names if name.endswith(".json"))
        open_ids = [i for i in ids if f"{i}.settled" not in names and not self.log(i).settled]
        return sorted((self.run(i) for i in open_ids), key=lambda run: (run.created, run.id))

    def _run_path(self, run_id: str) -> Path:
        if not run_id or "/" in run_id or "\0" in run_id or run_id.startswith("."):
            raise ValueError(f"not the id of a run: {run_id!r}")
        return self._cache.path / "runs" / f"{run_id}.json"

    def _remember(self, run: Run) -> None:
        self._runs[run.id] = run
        self._names[run.id] = {key: name for name, key in run.jobs}

    # ---- claims ----------------------------------------------------------------------------

    def claim(self, key: str, run: Run, *, after: int = -1) -> tuple[bool, Claim]:
        """Claim the attempt that follows generation ``after``.

        Returns
        -------
        mine : bool
            Whether the claim is this run's.
        claim : Claim
            This run's claim; or the current one, of whoever was first.
        """
        path = self._claim_path(key, after + 1)
        if self._create(path, run):
            return True, self._claim(key, after + 1, run)
        current = self.current(key)
        if current is None or current.generation <= after:
            # It was there a moment ago: a clean-up is under way, or the file system is late.
            raise CacheError(f"the claim {path} is there and cannot be found: try again")
        return current.run.id == run.id and current.generation == after + 1, current

    def current(self, key: str) -> Claim | None:
        """Return the claim of the highest generation on a key."""
        generation = self._last_generation(key)
        return None if generation < 0 else self._read(key, generation)

    def superseded(self, key: str, generation: int) -> bool:
        """Whether a later attempt at a key has been claimed. Reads no run: a job can ask."""
        return self._last_generation(key) > generation

    def latest(self, key: str, run_id: str) -> tuple[int, bool]:
        """Return the highest generation of a key, and whether that claim is the run's.

        It is -1 if there is none. No run is read, whose record may be long: a job can ask.
        """
        generation = self._last_generation(key)
        if generation < 0:
            return generation, False
        path = self._claim_path(key, generation)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.lstat(path), os.lstat(self._run_path(run_id))):
                return generation, True
        record = read_record(path)  # where links were not to be had, a short one
        return generation, record.get("run", record.get("id")) == run_id

    def generations(self, key: str) -> list[Claim]:
        """Return all claims on a key, in the order of their generations."""
        return [self._read(key, n) for n in range(self._last_generation(key) + 1)]

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
                raise CacheError(f"{path} cannot be made: {error.strerror}") from error
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
            record = read_record(path)
            run = self.run(record["run"]) if "run" in record else _run_from(record)
            if run.id not in self._runs:
                self._remember(run)
            self._run_of_file[file] = run.id
        return self._claim(key, generation, self._runs[self._run_of_file[file]])

    # ---- what became of a hand-over --------------------------------------------------------

    def log(self, run_id: str) -> RunLog:
        """Read what was recorded about a run's hand-over, by its owner and its heirs."""
        return read_log(self._run_path(run_id))

    def record_job(self, run_id: str, name: str, job_id: str) -> None:
        """Record that the batch system has accepted a job."""
        self.record(run_id, {"event": "job", "name": name, "id": job_id})

    def record(self, run_id: str, event: Mapping[str, Any]) -> None:
        """Record an event of a hand-over.

        Parameters
        ----------
        run_id
            The run, ours or one that we are the heir of.
        event
            JSON; ``event["event"]`` says what: ``job``, ``steward`` and ``repeated`` (with ``name``
            and ``id``), ``left`` (with ``names``: a full queue did not take them), ``awaited``
            (with the id of a later ``run`` whose jobs wait for some of this one), ``accepted``
            (all others are), ``released``, ``aborted``, ``closed``, ``error``, or anything else,
            which is kept.
        """
        append_event(self._run_path(run_id), event, self._writer(run_id))

    def _writer(self, run_id: str) -> int | None:
        """Return the number under which this process writes about a run; None for its owner."""
        if run_id in self._heir:
            return self._heir[run_id]
        me = Owner.current()
        if run_id in self._begun or self.run(run_id).owner == me:
            return None
        path = self._run_path(run_id)
        for number, holder in heirs(path):
            free = holder is None
            if free and publish_bytes(path.with_suffix(f".heir.{number}"), seal(_plain(me))):
                holder = me
            if holder == me:
                self._heir[run_id] = number
                return number
            if free:
                break
        return self._writer(run_id)  # another one was faster

    def heir(
        self,
        run_id: str,
        owner: Owner,
        *,
        dead: Callable[[Owner], bool] = lambda heir: heir.alive() is False,
    ) -> bool:
        """Become the one that finishes the hand-over of a dead run.

        Parameters
        ----------
        run_id
            The run.
        owner
            Who wants to be it: what is recorded from now on is recorded as this heir.
        dead
            Tells whether an earlier heir is dead, and may be succeeded.

        Returns
        -------
        bool
            False if another process is it, and may be alive.
        """
        path = self._run_path(run_id)
        for number, holder in heirs(path):
            if holder is None:
                if publish_bytes(path.with_suffix(f".heir.{number}"), seal(_plain(owner))):
                    holder = owner
                else:
                    return self.heir(run_id, owner, dead=dead)
            if holder == owner:
                self._heir[run_id] = number
                return True
            if holder != NOBODY and not dead(holder):
                return False
        raise AssertionError("heirs end with a vacancy")


def _plain(owner: Owner) -> dict[str, Any]:
    return dataclasses.asdict(owner)


def _run_from(record: Mapping[str, Any]) -> Run:
    return Run(
        id=record["id"],
        owner=Owner(**record["owner"]),
        backend=record["backend"],
        created=record["created"],
        jobs=tuple((name, key) for name, key in record["jobs"]),
    )
