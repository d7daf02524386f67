"""Runs as hand-overs leave them, and a batch system that says what it is told to."""

from __future__ import annotations

import os
import time
from collections.abc import Collection

from dask_batch.backends.base import JobState, JobStatus
from dask_batch.cache.claims import Claims, Owner, Run
from dask_batch.cache.definitions import DefinitionDraft, write_definitions
from dask_batch.cache.store import Cache
from dask_batch.code import pickling
from dask_batch.errors import BackendUnavailableError

DAY_S = 24 * 3600.0
KEYS = [f"{n:02x}" * 32 for n in range(16)]
DEAD = Owner(Owner.current().host, "an earlier boot", 1, "1")
ELSEWHERE = Owner("elsewhere", "boot", 1, "1")


class Asked:
    """A batch system that says of jobs what it is told to."""

    def __init__(self) -> None:
        self.states: dict[str, JobState] = {}
        self.found: dict[str, str] = {}
        self.cancelled: list[str] = []
        self.released: list[str] = []
        self.name = "slurm"
        self.shared = False
        self.there = True

    def open(self, _: str) -> Asked:
        if not self.there:
            raise BackendUnavailableError("there is no sbatch")
        return self

    def status(self, ids: Collection[str]) -> dict[str, JobStatus]:
        return {i: JobStatus(i, self.states[i]) for i in ids if i in self.states}

    def find(self, names: Collection[str]) -> dict[str, str]:
        return {name: self.found[name] for name in names if name in self.found}

    def cancel(self, ids: Collection[str]) -> None:
        self.cancelled += ids

    def release(self, ids: Collection[str]) -> None:
        self.released += ids

    def close(self) -> None:
        """Nothing is open."""


def hand_over(
    cache: Cache,
    run_id: str,
    keys: list[str],
    *,
    owner: Owner = DEAD,
    inputs: tuple[str, ...] = (),
    settled: bool = True,
    after: int = -1,
) -> Claims:
    """Do as a hand-over does."""
    claims = Claims(cache)
    names = [f"f-{run_id}-{index}" for index in range(len(keys))]
    run = Run(run_id, owner, "slurm", time.time(), tuple(zip(names, keys, strict=True)))
    claims.begin(run)
    for key in keys:
        assert claims.claim(key, run, after=after)[0]
    headers = [{"key": key, "inputs": list(inputs)} for key in keys]
    drafts = [DefinitionDraft(header, pickling.dumps(1)) for header in headers]
    write_definitions(cache, run_id, {"run": run_id}, drafts)
    (cache.path / "logs" / run_id).mkdir(parents=True)
    (cache.path / "logs" / run_id / "0.err").write_text("printed")
    claims = Claims(cache)  # of another process
    claims._begun = {run_id}  # type: ignore[attr-defined]
    for name in names:
        claims.record_job(run_id, name, f"id-{name}")
    if settled:
        claims.record(run_id, {"event": "accepted"})
        claims.record(run_id, {"event": "released"})
    return claims


def aged(cache: Cache, days: float) -> None:
    """Let everything in a cache be older."""
    for path in cache.path.rglob("*"):
        if path.is_file():
            then = path.stat().st_mtime - days * DAY_S
            os.utime(path, (then, then))


def files(cache: Cache, section: str) -> set[str]:
    return {path.name for path in (cache.path / section).rglob("*") if path.is_file()}
