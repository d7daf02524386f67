"""What a job leaves behind beside a result."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from dask_batch.cache import attempts
from dask_batch.cache.owner import Owner
from dask_batch.cache.store import Cache

KEY = "ab" * 32
OTHER = "cd" * 32


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def record(job_id: str | None, restart: int = 0, **more: Any) -> dict[str, Any]:
    return {"job_id": job_id, "restart": restart, "host": "node", **more}


def test_the_first_job_makes_the_attempt(cache: Cache) -> None:
    assert attempts.read_start(cache, KEY, 0) is None
    assert attempts.start(cache, KEY, 0, record("1")) is None
    assert attempts.start(cache, KEY, 0, record("2", restart=5)) == record("1")
    assert attempts.read_start(cache, KEY, 0) == record("1")
    assert attempts.start(cache, KEY, 1, record("2")) is None


def test_a_job_that_is_started_again_succeeds_itself(cache: Cache) -> None:
    attempts.start(cache, KEY, 0, record("1"))
    assert attempts.start(cache, KEY, 0, record("1")) is None, "a start without a number"
    assert attempts.start(cache, KEY, 0, record("1", restart=1)) is None
    assert attempts.start(cache, KEY, 0, record("1", restart=3)) is None
    assert attempts.start(cache, KEY, 0, record("1", restart=2)) == record("1", restart=3)
    assert attempts.start(cache, KEY, 0, record("2", restart=4)) == record("1", restart=3)
    assert attempts.read_start(cache, KEY, 0) == record("1", restart=3)


def process(job_id: str, pid: int) -> dict[str, Any]:
    me = Owner.current()
    started = me.started if pid == me.pid else "1"
    who = {"host": me.host, "boot_id": me.boot_id, "pid": pid, "process_started": started}
    return {"job_id": job_id, "restart": 0, **who}


def test_who_is_seen_to_live_is_not_succeeded_and_who_is_dead_is(cache: Cache) -> None:
    living, dead = process("1", os.getpid()), process("1", 2**22 + 1)
    assert attempts.start(cache, KEY, 0, living) is None
    for later in (record("1"), record("1", restart=1), record("2")):
        assert attempts.start(cache, KEY, 0, later) == living
    assert attempts.start(cache, OTHER, 0, dead) is None
    assert attempts.start(cache, OTHER, 0, process("2", os.getpid())) is None
    assert attempts.read_start(cache, OTHER, 0) == process("2", os.getpid())


def test_jobs_without_an_id_are_not_each_other(cache: Cache) -> None:
    for nothing, key in ((None, KEY), ("", OTHER)):
        attempts.start(cache, key, 0, record(nothing))
        assert attempts.start(cache, key, 0, record(nothing, restart=1)) == record(nothing)


def test_whom_a_damaged_start_names_nobody_waits_for(cache: Cache) -> None:
    attempts.start(cache, KEY, 0, record("1"))
    (cache.path / "attempts" / "ab" / f"{KEY}.0.start").write_bytes(b"garbage")
    first = attempts.read_start(cache, KEY, 0)
    assert first is not None
    assert first["damaged"]
    assert {"job_id", "host", "pid", "boot_id", "process_started", "restart"} <= first.keys()
    assert attempts.start(cache, KEY, 0, record("2")) is None
    assert attempts.start(cache, KEY, 0, record("3")) == record("2")


@pytest.mark.parametrize("left", [b"", bytes(100)])
def test_a_start_that_a_crash_has_emptied_holds_nobody_up(cache: Cache, left: bytes) -> None:
    attempts.start(cache, KEY, 0, record("1"))
    (cache.path / "attempts" / "ab" / f"{KEY}.0.start").write_bytes(left)
    assert attempts.read_start(cache, KEY, 0) is None
    assert attempts.start(cache, KEY, 0, record("1", restart=1)) is None
    assert attempts.start(cache, KEY, 0, record("2")) == record("1", restart=1)


def test_where_an_attempt_stood_is_recorded_once(cache: Cache) -> None:
    assert attempts.read_cut(cache, KEY, 0) is None
    cut = {"time": 1.0, "signal": "SIGUSR1", "left_s": 60.0, "traceback": "in f", "job_id": "1"}
    assert attempts.record_cut(cache, KEY, 0, cut)
    assert not attempts.record_cut(cache, KEY, 0, {"time": 2.0})
    assert attempts.read_cut(cache, KEY, 0) == cut
    assert attempts.ended(cache, {KEY: 0}) == set(), "it goes on"
    (cache.path / "attempts" / "ab" / f"{KEY}.0.cut").write_bytes(b"garbage")
    assert attempts.read_cut(cache, KEY, 0) is None


def test_an_end_is_recorded_once(cache: Cache) -> None:
    assert attempts.read_end(cache, KEY, 0) is None
    first = {"outcome": "exception", "message": "größe \ud800", "path": Path("/log")}
    assert attempts.end(cache, KEY, 0, first)
    assert not attempts.end(cache, KEY, 0, {"outcome": "timeout"})
    assert attempts.read_end(cache, KEY, 0) == {**first, "path": "/log"}


def test_any_damage_to_an_end_leaves_that_it_ended(cache: Cache) -> None:
    attempts.end(cache, KEY, 0, {"outcome": "exception", "message": "m"})
    path = cache.path / "attempts" / "ab" / f"{KEY}.0.end"
    data = path.read_bytes()
    for position in range(len(data)):
        for bit in (0, 5):
            damaged = bytearray(data)
            damaged[position] ^= 1 << bit
            path.write_bytes(damaged)
            read = attempts.read_end(cache, KEY, 0)
            assert read is not None
            assert read["damaged"]
    for length in range(len(data)):
        path.write_bytes(data[:length])
        read = attempts.read_end(cache, KEY, 0)
        assert read is not None
        assert read["damaged"]
    assert attempts.ended(cache, {KEY: 0}) == {KEY}


def test_which_attempts_ended(cache: Cache) -> None:
    near = KEY[:-1] + "c"
    for key, generation in ((KEY, 0), (near, 1), (OTHER, 0)):
        attempts.end(cache, key, generation, {})
    attempts.start(cache, "ef" * 32, 0, {})
    wanted = {KEY: 1, near: 1, OTHER: 0, "ef" * 32: 0, "01" * 32: 0}
    assert attempts.ended(cache, wanted) == {near, OTHER}
    assert attempts.ended(cache, {}) == set()


def test_of_several_processes_one_starts(cache: Cache) -> None:
    for generation in range(10):
        children = []
        for job in range(3):
            pid = os.fork()
            if pid == 0:
                first = attempts.start(cache, KEY, generation, record(str(job)))
                os._exit(0 if first is None else 7)
            children.append(pid)
        ends = sorted(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children)
        assert ends == [0, 7, 7]
