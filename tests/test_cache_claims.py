"""Claims by generation, runs, and what became of a hand-over."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dask_batch.cache.claims import Claims, Owner, Run
from dask_batch.cache.runlog import NOBODY
from dask_batch.cache.store import Cache
from dask_batch.errors import CacheError, DamagedEntryError, FullError, MissingEntryError

KEY = "ab" * 32
OTHER = "cd" * 32


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


@pytest.fixture
def claims(cache: Cache) -> Claims:
    return Claims(cache)


def a_run(name: str, keys: tuple[str, ...] = (KEY, OTHER), owner: Owner | None = None) -> Run:
    jobs = tuple((f"f-{name}-{index}", key) for index, key in enumerate(keys))
    return Run(name, owner or Owner.current(), "local", 1000.0, jobs)


def begun(claims: Claims, name: str, **options: Any) -> Run:
    run = a_run(name, **options)
    claims.begin(run)
    return run


def dead_owner() -> Owner:
    """Return a process of this host that has ended."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(writer, Owner.current().started.encode())
        os._exit(0)
    os.waitpid(pid, 0)
    started = os.read(reader, 100).decode()
    os.close(reader)
    os.close(writer)
    me = Owner.current()
    return Owner(me.host, me.boot_id, pid, started)


# ---- owners ------------------------------------------------------------------------------------


def test_who_lives() -> None:
    me = Owner.current()
    assert me.alive() is True
    assert Owner(me.host, me.boot_id, me.pid, "1").alive() is False, "a reused pid"
    assert Owner(me.host, "an earlier boot", me.pid, me.started).alive() is False
    assert Owner("elsewhere", me.boot_id, me.pid, me.started).alive() is None
    namespace = Owner(me.host, f"{me.boot_id.partition(':')[0]}:1", me.pid, me.started)
    assert namespace.alive() is None
    assert Owner(me.host, me.boot_id, 0, me.started).alive() is False
    assert dead_owner().alive() is False


def test_a_forked_child_is_another_owner() -> None:
    me = Owner.current()
    pid = os.fork()
    if pid == 0:
        child = Owner.current()
        os._exit(0 if child.pid == os.getpid() and child != me and child.alive() else 1)
    assert os.waitpid(pid, 0)[1] == 0


def test_a_zombie_does_not_live() -> None:
    pid = os.fork()
    if pid == 0:
        signal.pause()
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        started = file.read().rpartition(")")[2].split()[19]
    me = Owner.current()
    child = Owner(me.host, me.boot_id, pid, started)
    assert child.alive() is True
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert child.alive() is False
    os.waitpid(pid, 0)


# ---- claims ------------------------------------------------------------------------------------


def test_the_first_claim_holds(cache: Cache, claims: Claims) -> None:
    one, two = begun(claims, "one"), begun(claims, "two")
    mine, claim = claims.claim(KEY, one)
    assert mine
    assert (claim.key, claim.generation, claim.run, claim.job_name) == (KEY, 0, one, "f-one-0")
    assert claims.claim(KEY, two) == (False, claim)
    assert Claims(cache).current(KEY) == claim
    assert Claims(cache).current(OTHER) is None


def test_a_claim_is_the_runs_own_file(cache: Cache, claims: Claims) -> None:
    claims.claim(KEY, begun(claims, "one"))
    claim = os.stat(cache.path / "claims" / "ab" / f"{KEY}.0")
    assert os.path.samestat(claim, os.stat(cache.path / "runs" / "one.json"))


def test_generations_follow_one_another(cache: Cache, claims: Claims) -> None:
    runs = [begun(claims, f"run{n}") for n in range(4)]
    for n, run in enumerate(runs):
        assert claims.claim(KEY, run, after=n - 1)[0]
    assert not claims.claim(KEY, runs[0], after=1)[0]
    assert claims.claim(KEY, runs[0], after=1)[1].generation == 3
    assert [claim.run for claim in Claims(cache).generations(KEY)] == runs


def test_claiming_twice_is_claiming_once(claims: Claims) -> None:
    run = begun(claims, "one")
    assert claims.claim(KEY, run)[0]
    assert claims.claim(KEY, run)[0]


@pytest.mark.parametrize("number", [errno.EMLINK, errno.EXDEV, errno.EPERM, errno.ENOENT])
def test_where_links_are_refused_a_claim_is_a_small_file(
    cache: Cache, claims: Claims, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    one, two = begun(claims, "one"), begun(claims, "two")
    link = os.link

    def within_a_directory(source: Path, target: Path, **options: Any) -> None:
        if source.parent != target.parent:
            raise OSError(number, os.strerror(number), source, None, target)
        link(source, target, **options)

    monkeypatch.setattr("os.link", within_a_directory)
    assert claims.claim(KEY, one)[0]
    assert not claims.claim(KEY, two)[0]
    current = Claims(cache).current(KEY)
    assert current is not None
    assert current.run == one
    assert (cache.path / "claims" / "ab" / f"{KEY}.0").stat().st_size < 100


def test_a_run_that_was_not_begun_claims_nothing(claims: Claims) -> None:
    with pytest.raises(CacheError, match="cannot be written"):
        claims.claim(KEY, a_run("never"))


def race(contestants: int, compete: Callable[[int], bool]) -> list[int]:
    """Let processes compete at the same moment; return who says that it has won."""
    gate, results = os.pipe(), os.pipe()
    children = []
    for number in range(contestants):
        pid = os.fork()
        if pid == 0:
            os.close(gate[1])
            os.read(gate[0], 1)  # returns when the parent closes its end, for all at once
            won = compete(number)
            os.write(results[1], b"%d " % number if won else b"")
            os._exit(0)
        children.append(pid)
    for fd in (*gate, results[1]):
        os.close(fd)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * contestants
    winners = [int(number) for number in os.read(results[0], 1000).split()]
    os.close(results[0])
    return winners


def test_of_several_processes_one_gets_the_claim(cache: Cache, claims: Claims) -> None:
    runs = [begun(claims, f"run{n}") for n in range(4)]
    for generation in range(30):
        winners = race(
            4, lambda n, after=generation - 1: Claims(cache).claim(KEY, runs[n], after=after)[0]
        )
        assert len(winners) == 1
        current = claims.current(KEY)
        assert current is not None
        assert (current.generation, current.run) == (generation, runs[winners[0]])


# ---- runs and their logs -----------------------------------------------------------------------


def test_a_run_is_written_once(cache: Cache, claims: Claims) -> None:
    run = begun(claims, "one")
    assert Claims(cache).run("one") == run
    with pytest.raises(CacheError, match="there is a run one already"):
        claims.begin(run)
    with pytest.raises(MissingEntryError):
        claims.run("two")
    with pytest.raises(ValueError, match="not the id of a run"):
        claims.run("../one")


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"local", b"lucal"))


def test_a_damaged_run_that_cannot_be_recovered_is_named(cache: Cache, claims: Claims) -> None:
    claims.claim(KEY, begun(claims, "one"))
    claims.record_job("one", "f-one-0", "4711")
    damage(cache.path / "runs" / "one.json")
    with pytest.raises(DamagedEntryError, match=r"one\.json is damaged"):
        Claims(cache).current(KEY)


def test_a_damaged_run_that_submitted_nothing_blocks_no_key(cache: Cache, claims: Claims) -> None:
    claims.claim(KEY, begun(claims, "one"))
    damage(cache.path / "runs" / "one.json")
    current = Claims(cache).current(KEY)
    assert current is not None
    assert (current.run.id, current.run.jobs, current.run.owner) == ("one", (), NOBODY)
    assert Claims(cache).latest(KEY, "one") == (0, True)
    other = begun(claims, "two")
    assert Claims(cache).claim(KEY, other, after=0)[0]


def test_one_damaged_run_hides_no_other(cache: Cache, claims: Claims) -> None:
    for name in ("one", "two"):
        begun(claims, name)
    claims.record_job("one", "f-one-0", "4711")
    damage(cache.path / "runs" / "one.json")
    assert [run.id for run in Claims(cache).unsettled()] == ["two"]


def test_what_a_clean_up_takes_between_two_looks_is_looked_for_again(
    cache: Cache, claims: Claims, monkeypatch: pytest.MonkeyPatch
) -> None:
    claims.claim(KEY, begun(claims, "one"))
    claims.claim(KEY, begun(claims, "two"), after=0)
    fresh = Claims(cache)
    stat = os.stat
    highest = cache.path / "claims" / KEY[:2] / f"{KEY}.1"

    def removed(path: Any, *args: Any, **options: Any) -> os.stat_result:
        if path == highest:
            highest.unlink(missing_ok=True)
        return stat(path, *args, **options)

    monkeypatch.setattr(os, "stat", removed)
    current = fresh.current(KEY)
    assert current is not None
    assert (current.generation, current.run.id) == (0, "one")


def test_a_claim_behind_one_that_a_clean_up_has_taken_is_withdrawn(
    cache: Cache, claims: Claims, monkeypatch: pytest.MonkeyPatch
) -> None:
    claims.claim(KEY, begun(claims, "one"))
    claims.claim(KEY, begun(claims, "two"), after=0)
    mine = begun(claims, "three")
    link = os.link
    shard = cache.path / "claims" / KEY[:2]

    def taken(*args: Any, **options: Any) -> None:
        (shard / f"{KEY}.1").unlink(missing_ok=True)
        link(*args, **options)

    with monkeypatch.context() as context:
        context.setattr(os, "link", taken)
        won, current = claims.claim(KEY, mine, after=1)
    assert (won, current.run.id, current.generation) == (False, "one", 0)
    assert [path.name for path in shard.iterdir()] == [f"{KEY}.0"]
    (shard / f"{KEY}.0").unlink()
    won, current = claims.claim(KEY, mine, after=0)
    assert (won, current.generation) == (True, 0)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_told_where_a_claim_is_made(
    claims: Claims, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    run = begun(claims, "one")

    def full(*args: Any, **options: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", full)
    with pytest.raises(FullError, match="clean"):
        claims.claim(KEY, run)


def test_the_log_of_a_hand_over(cache: Cache, claims: Claims) -> None:
    begun(claims, "one")
    assert Claims(cache).log("one").length == 0
    claims.record_job("one", "f-one-0", "4711")
    claims.record("one", {"event": "error", "message": "queue full"})
    log = Claims(cache).log("one")
    assert (log.ids, log.length, log.settled) == ({"f-one-0": "4711"}, 2, False)
    assert [error["message"] for error in log.errors] == ["queue full"]
    claims.record("one", {"event": "accepted"})
    claims.record("one", {"event": "released"})
    log = Claims(cache).log("one")
    assert (log.accepted, log.released, log.aborted, log.settled) == (True, True, False, True)


def test_a_torn_log_keeps_what_came_before(cache: Cache, claims: Claims) -> None:
    begun(claims, "one")
    claims.record_job("one", "f-one-0", "1")
    with open(cache.path / "runs" / "one.log", "ab") as file:
        file.write(b'{"event": "released"')
    log = Claims(cache).log("one")
    assert log.ids == {"f-one-0": "1"}
    assert not log.released


def test_unsettled_runs(cache: Cache, claims: Claims) -> None:
    assert claims.unsettled() == []
    for name, event in (("a", "released"), ("b", "accepted"), ("c", "aborted"), ("d", "closed")):
        begun(claims, name)
        claims.record(name, {"event": event})
    begun(claims, "e")
    assert [run.id for run in Claims(cache).unsettled()] == ["b", "e"]
    # Killed between the log's line and the mark that spares reading it.
    os.unlink(cache.path / "runs" / "a.settled")
    assert [run.id for run in Claims(cache).unsettled()] == ["b", "e"]


# ---- heirs -------------------------------------------------------------------------------------


def test_one_process_inherits_and_is_succeeded_when_dead(cache: Cache, claims: Claims) -> None:
    begun(claims, "one", owner=dead_owner())
    me, dead = Owner.current(), dead_owner()
    assert Claims(cache).heir("one", dead)
    assert claims.heir("one", me)
    assert claims.heir("one", me)
    assert not Claims(cache).heir("one", Owner(me.host, me.boot_id, me.pid, "another"))


def test_heirs_write_logs_of_their_own(cache: Cache, claims: Claims) -> None:
    begun(claims, "one", owner=dead_owner())
    claims.record_job("one", "f-one-0", "1")
    (cache.path / "runs" / "one.log").open("ab").write(b'{"torn')
    first = Claims(cache)
    assert first.heir("one", dead_owner())
    first.record_job("one", "f-one-1", "2")
    assert claims.heir("one", Owner.current())
    claims.record("one", {"event": "released"})
    log = Claims(cache).log("one")
    assert log.ids == {"f-one-0": "1", "f-one-1": "2"}
    assert log.released


def test_an_heir_elsewhere_is_succeeded_when_the_caller_says_so(claims: Claims) -> None:
    begun(claims, "one")
    assert claims.heir("one", Owner("elsewhere", "boot", 1, "1"))
    assert not claims.heir("one", Owner.current())
    assert claims.heir("one", Owner.current(), dead=lambda owner: owner.host == "elsewhere")


def test_a_damaged_heir_is_nobody(cache: Cache, claims: Claims) -> None:
    begun(claims, "one")
    assert claims.heir("one", Owner("elsewhere", "boot", 1, "1"))
    (cache.path / "runs" / "one.heir.0").write_bytes(b"garbage")
    assert claims.heir("one", Owner.current())


def test_of_several_processes_one_is_the_heir(cache: Cache, claims: Claims) -> None:
    for round_ in range(10):
        begun(claims, f"run{round_}")
        deadline = time.monotonic() + 60

        def compete(_: int, run: str = f"run{round_}", deadline: float = deadline) -> bool:
            won = Claims(cache).heir(run, Owner.current())
            while won and time.monotonic() < deadline:
                # The winner stays alive until the losers have seen that it is.
                if (cache.path / f"{run}.lost").exists():
                    break
            if not won:
                (cache.path / f"{run}.lost").touch()
            return won

        assert len(race(2, compete)) == 1


# ---- what happens after the hand-over ----------------------------------------------------------


def test_what_a_full_queue_left_has_no_id(cache: Cache, claims: Claims) -> None:
    begun(claims, "one")
    claims.record_job("one", "f-one-0", "1")
    claims.record_job("one", "f-one-1", "2")  # and withdrawn, to make room
    claims.record("one", {"event": "steward", "name": "steward-one-0", "id": "3"})
    claims.record("one", {"event": "left", "names": ["f-one-1", "f-one-2"]})
    log = Claims(cache).log("one")
    assert log.ids == {"f-one-0": "1", "steward-one-0": "3"}
    assert log.left == {"f-one-1", "f-one-2"}


def test_the_last_repetition_tells_the_id_whoever_wrote_it(cache: Cache, claims: Claims) -> None:
    begun(claims, "one", owner=dead_owner())
    claims.record_job("one", "f-one-0", "1")
    later, earlier = Claims(cache), Claims(cache)
    assert earlier.heir("one", dead_owner())
    repeated = {"event": "repeated", "name": "f-one-0"}
    later.record("one", {**repeated, "generation": 2, "id": "3"})
    earlier.record("one", {**repeated, "generation": 1, "id": "2"})
    assert Claims(cache).log("one").ids == {"f-one-0": "3"}


def test_runs_that_wait_for_jobs_of_another_are_named_there(cache: Cache, claims: Claims) -> None:
    begun(claims, "one")
    for run in ("two", "three", "two"):
        claims.record("one", {"event": "awaited", "run": run})
    assert Claims(cache).log("one").awaited == ("two", "three")


def test_who_writes_about_the_run_of_another_does_it_in_a_file_of_its_own(
    cache: Cache, claims: Claims
) -> None:
    begun(claims, "one", owner=dead_owner())
    claims.record("one", {"event": "released"})
    stranger = Claims(cache)
    stranger.record("one", {"event": "awaited", "run": "two"})
    stranger.record("one", {"event": "awaited", "run": "three"})
    folder = cache.path / "runs"
    assert b"awaited" not in (folder / "one.log").read_bytes()
    assert (folder / "one.log.0").read_bytes().count(b"awaited") == 2
    assert Claims(cache).log("one").awaited == ("two", "three")
