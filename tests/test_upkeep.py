"""What verify finds, and what clean removes and leaves, beside clients and jobs at work."""

from __future__ import annotations

import datetime
import os
import re
import shutil
import time
from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np
import pytest

from dask_batch import SingleNodeExecutor, clean, verify
from dask_batch.backends.base import JobState, JobStatus
from dask_batch.cache import attempts
from dask_batch.cache.claims import Claims, Owner, Run
from dask_batch.cache.definitions import DefinitionDraft, write_definitions
from dask_batch.cache.files import private_path
from dask_batch.cache.followers import Followers
from dask_batch.cache.store import Cache
from dask_batch.code import pickling
from dask_batch.errors import BackendUnavailableError, ConfigurationError, MissingEntryError

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


@pytest.fixture
def batch(monkeypatch: pytest.MonkeyPatch) -> Asked:
    asked = Asked()
    monkeypatch.setattr("dask_batch.upkeep.open_backend", asked.open)
    return asked


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


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


# ---- verify ------------------------------------------------------------------------------------


def test_a_whole_cache_is_said_to_be(cache: Cache) -> None:
    hand_over(cache, "run", KEYS[:2])
    cache.publish(KEYS[0], np.arange(9), {})
    attempts.start(cache, KEYS[1], 0, {"job_id": "1"})
    attempts.end(cache, KEYS[1], 0, {"outcome": "exception"})
    cache.bind_name("name", KEYS[0])
    cache.publish(KEYS[2], 1, {})
    cache.retire(KEYS[2])
    report = verify(cache.path)
    assert report.ok, str(report)
    assert report.counts == {
        "attempts": 2, "claims": 2, "definitions": 1, "logs": 1, "names": 1, "results": 1,
        "retired": 1, "runs": 3,
    }  # fmt: skip
    assert report.size_bytes > 1000
    assert not report.stray


@pytest.mark.parametrize("repair", [True, False])
def test_a_damaged_result_is_set_aside_or_told(cache: Cache, repair: bool) -> None:
    cache.publish(KEYS[0], np.zeros(5_000_000), {})  # larger than what a look reads
    with open(cache.path_of(KEYS[0]), "r+b") as file:
        file.seek(-1000, os.SEEK_END)
        file.write(b"\1")
    assert cache.check(KEYS[0]), "only all of it shows the damage"
    report = verify(cache.path, repair=repair)
    assert not report.ok
    (finding,) = report.damaged
    assert (finding.path, finding.section) == (cache.path_of(KEYS[0]), "results")
    assert "checksum" in finding.reason
    assert str(cache.path_of(KEYS[0]).relative_to(cache.path)) in str(report)
    assert report.mended == ((finding.path,) if repair else ())
    assert cache.present(KEYS) == (set() if repair else {KEYS[0]})
    assert verify(cache.path).ok is repair


def test_what_is_unsafe_or_stray_is_told_and_left(cache: Cache) -> None:
    for key in KEYS[:3]:
        cache.publish(key, 1, {})
    cache.path_of(KEYS[0]).chmod(0o666)
    cache.path_of(KEYS[1]).parent.chmod(0o777)
    (cache.path_of(KEYS[3]).parent).mkdir()
    cache.path_of(KEYS[3]).symlink_to(cache.path_of(KEYS[2]))
    (cache.path / "notes.txt").write_text("mine")
    (cache.path / "results" / "ab.h5").write_text("")
    private_path(cache.path / "results").touch()
    report = verify(cache.path)
    assert {finding.path for finding in report.unsafe} == {
        cache.path_of(KEYS[0]),
        cache.path_of(KEYS[1]).parent,
        cache.path_of(KEYS[3]),
    }
    assert {finding.path.name for finding in report.stray} == {"notes.txt", "ab.h5"}
    assert report.temporary == 1
    assert not report.ok
    assert (cache.path / "notes.txt").exists()


def test_only_a_cache_is_looked_at(tmp_path: Path) -> None:
    for function in (verify, clean):
        with pytest.raises(MissingEntryError):
            function(tmp_path / "nothing")
        assert not (tmp_path / "nothing").exists()


# ---- runs --------------------------------------------------------------------------------------


def test_a_run_that_is_over_goes_and_its_results_stay(cache: Cache, batch: Asked) -> None:
    hand_over(cache, "run", KEYS[:2])
    cache.publish(KEYS[0], 1, {"kind": "result", "function": "f"})
    attempts.start(cache, KEYS[1], 0, {"job_id": "1"})
    attempts.end(cache, KEYS[1], 0, {"outcome": "exception"})
    attempts.record_cut(cache, KEYS[1], 0, {"time": 1.0})
    assert clean(cache.path).kept_runs == {"run": "it ended a short while ago"}
    aged(cache, 8)
    before = set(cache.path.rglob("*"))
    told = clean(cache.path, dry_run=True)
    assert set(cache.path.rglob("*")) == before
    done = clean(cache.path)
    assert told.removed == done.removed == {
        "attempts": 3, "claims": 2, "definitions": 1, "logs": 1, "runs": 3,
    }  # fmt: skip
    assert done.freed_bytes > 0
    assert cache.load(KEYS[0]) == 1
    assert {p.name for p in cache.path.rglob("*") if p.is_file()} == {
        ".gitignore", "dask-batch-cache.json", f"{KEYS[0]}.h5",
    }  # fmt: skip
    assert Claims(cache).current(KEYS[1]) is None
    hand_over(cache, "again", KEYS[1:2])
    assert attempts.read_end(cache, KEYS[1], 0) is None


def unfinished_live_client(cache: Cache, batch: Asked) -> None:
    hand_over(cache, "run", KEYS[:2], owner=Owner.current(), settled=False)


def unfinished_running(cache: Cache, batch: Asked) -> None:
    hand_over(cache, "run", KEYS[:2])
    batch.states = {"id-f-run-0": JobState.COMPLETED, "id-f-run-1": JobState.RUNNING}


def unfinished_nameless(cache: Cache, batch: Asked) -> None:
    hand_over(cache, "run", KEYS[:2])
    log = cache.path / "runs" / "run.log"
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(line for line in lines if b"run-1" not in line))
    batch.found, batch.states = {"f-run-1": "9"}, {"9": JobState.WAITING}


def unfinished_window(cache: Cache, batch: Asked) -> None:
    claims = hand_over(cache, "run", KEYS[:2], owner=Owner.current())
    claims.record("run", {"event": "left", "names": ["f-run-1"]})
    cache.publish(KEYS[0], 1, {})


def unfinished_steward(cache: Cache, batch: Asked) -> None:
    claims = hand_over(cache, "run", KEYS[:2])
    attempts.end(cache, KEYS[1], 0, {"outcome": "timeout"})
    claims.record("run", {"event": "steward", "name": "steward-run-0", "id": "77"})
    attempts.start(cache, KEYS[0], 0, {"job_id": "id-f-run-0"})
    batch.states = {"77": JobState.WAITING}


def unfinished_unasked(cache: Cache, batch: Asked) -> None:
    hand_over(cache, "run", KEYS[:2])
    batch.there = False


def unfinished_followed(cache: Cache, batch: Asked) -> None:
    hand_over(cache, "run", KEYS[:2])
    Followers(cache).follow("run", [KEYS[0]])
    for key in KEYS[:2]:
        cache.publish(key, 1, {})


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (unfinished_live_client, "is being handed over"),
        (unfinished_running, "1 job.s. of it are queued or running"),
        (unfinished_nameless, "1 job.s. of it are queued or running"),
        (unfinished_window, "what a full queue did not take"),
        (unfinished_steward, "1 job.s. of it are queued or running"),
        (unfinished_unasked, "cannot be asked after"),
        (unfinished_followed, "a client waits"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_a_job_may_still_need_stays(
    cache: Cache, batch: Asked, make: Callable[[Cache, Asked], None], reason: str
) -> None:
    make(cache, batch)
    aged(cache, 20)
    before = {path for path in cache.path.rglob("*") if path.is_file()}
    report = clean(cache.path, keep=0, keys=KEYS[:2])
    assert list(report.kept_runs) == ["run"]
    assert re.search(reason, report.kept_runs["run"])
    assert {path for path in cache.path.rglob("*") if path.is_file()} == before


def test_what_nobody_has_heard_of_for_a_month_is_over(cache: Cache, batch: Asked) -> None:
    unfinished_unasked(cache, batch)
    aged(cache, 31)
    assert clean(cache.path).kept_runs == {}


@pytest.mark.parametrize("accepted", [True, False])
def test_what_a_dead_client_left_half_handed_over_is_finished_first(
    cache: Cache, batch: Asked, accepted: bool
) -> None:
    claims = hand_over(cache, "run", KEYS[:1], settled=False)
    if accepted:
        claims.record("run", {"event": "accepted"})
    batch.states = {"id-f-run-0": JobState.HELD}
    clean(cache.path, dry_run=True)
    assert batch.released + batch.cancelled == []
    clean(cache.path)
    assert (batch.released, batch.cancelled) == (
        (["id-f-run-0"], []) if accepted else ([], ["id-f-run-0"])
    )


def test_a_run_stays_while_a_later_claim_lies_above_its_own(cache: Cache, batch: Asked) -> None:
    hand_over(cache, "old", KEYS[:1])
    attempts.end(cache, KEYS[0], 0, {"outcome": "exception"})
    aged(cache, 8)
    hand_over(cache, "new", KEYS[:1], after=0)
    batch.states = {"id-f-new-0": JobState.RUNNING}
    report = clean(cache.path)
    assert report.kept_runs.keys() == {"old", "new"}
    assert [claim.run.id for claim in Claims(cache).generations(KEYS[0])] == ["old", "new"]


def test_what_a_later_run_has_taken_over_is_its_own_to_finish(cache: Cache, batch: Asked) -> None:
    claims = hand_over(cache, "window", KEYS[:2])
    claims.record("window", {"event": "left", "names": ["f-window-1"]})
    cache.publish(KEYS[0], 1, {})
    hand_over(cache, "next", KEYS[1:2], after=0)
    cache.publish(KEYS[1], 1, {})
    aged(cache, 8)
    assert clean(cache.path).kept_runs == {}
    assert files(cache, "claims") == set()


def test_a_failure_that_another_run_is_to_hear_of_stays(cache: Cache, batch: Asked) -> None:
    hand_over(cache, "failed", KEYS[:1])
    attempts.end(cache, KEYS[0], 0, {"outcome": "exception"})
    hand_over(cache, "waiting", KEYS[1:2], inputs=(KEYS[0],))
    batch.states = {"id-f-waiting-0": JobState.WAITING}
    aged(cache, 8)
    assert "another run needs" in clean(cache.path).kept_runs["failed"]
    assert attempts.read_end(cache, KEYS[0], 0)


def test_a_client_that_claims_meanwhile_leaves_no_gap(
    cache: Cache, batch: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    hand_over(cache, "old", KEYS[:1])
    attempts.end(cache, KEYS[0], 0, {"outcome": "exception"})
    aged(cache, 8)
    unlink = Path.unlink

    def claimed_just_before(self: Path, missing_ok: bool = False) -> None:
        if self.name == f"{KEYS[0]}.0":
            hand_over(cache, "new", KEYS[:1], owner=Owner.current(), after=0)
        unlink(self, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", claimed_just_before)
    clean(cache.path)
    current = Claims(cache).current(KEYS[0])
    assert current is not None
    assert (current.run.id, current.generation) == ("new", 1)


def test_killed_anywhere_a_clean_up_leaves_a_cache_that_works(
    tmp_path: Path, batch: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        """As good as SIGKILL: nothing catches it."""

    unlink = Path.unlink
    for step in range(1, 40):
        cache = Cache(tmp_path / str(step))
        hand_over(cache, "run", KEYS[:2])
        attempts.end(cache, KEYS[1], 0, {"outcome": "exception"})
        cache.publish(KEYS[0], 1, {})
        aged(cache, 8)
        left = [step]

        def dying(self: Path, missing_ok: bool = False, left: list[int] = left) -> None:
            left[0] -= 1
            if not left[0]:
                raise Killed
            unlink(self, missing_ok=missing_ok)

        monkeypatch.setattr(Path, "unlink", dying)
        finished = False
        try:
            clean(cache.path)
            finished = True
        except Killed:
            pass
        monkeypatch.setattr(Path, "unlink", unlink)
        assert verify(cache.path).ok
        assert Claims(cache).unsettled() == [], "nothing seems half handed over"
        current = Claims(cache).current(KEYS[1])
        ended = attempts.read_end(cache, KEYS[1], 0)
        assert current is not None or ended is None, "no end outlives its claim"
        aged(cache, 8)
        clean(cache.path)
        assert files(cache, "runs") == files(cache, "claims") == set()
        if finished:
            break
    assert step > 7


# ---- what nobody refers to ---------------------------------------------------------------------


def test_arguments_go_when_no_unfinished_run_refers_to_them(cache: Cache, batch: Asked) -> None:
    for key in KEYS[4:7]:
        cache.publish(key, key, {"kind": "value", "function": "an argument"})
    hand_over(cache, "over", KEYS[:1], inputs=(KEYS[4],))
    cache.publish(KEYS[0], 1, {"kind": "result"})
    hand_over(cache, "going on", KEYS[1:2], inputs=(KEYS[5],))
    batch.states = {"id-f-going on-0": JobState.RUNNING}
    assert "arguments" not in clean(cache.path, keep=0).removed, "one may be about to be used"
    aged(cache, 8)
    cache.publish(KEYS[7], 7, {"kind": "value", "function": "an argument"})
    assert clean(cache.path).removed["arguments"] == 2
    assert set(cache.keys()) == {KEYS[0], KEYS[5], KEYS[7]}


def test_while_somebody_hands_over_no_result_goes(cache: Cache, batch: Asked) -> None:
    cache.publish(KEYS[4], 4, {"kind": "value"})
    aged(cache, 8)
    claims = Claims(cache)
    claims.begin(Run("new", Owner.current(), "slurm", time.time(), (("f-new-0", KEYS[0]),)))
    clean(cache.path, keys=KEYS[4])
    assert cache.present(KEYS) == {KEYS[4]}


def test_results_go_by_choice(cache: Cache, batch: Asked) -> None:
    for number, key in enumerate(KEYS[:6]):
        cache.publish(key, 1, {"kind": "result", "function": "fg"[number % 2]})
        then = time.time() - number * DAY_S
        os.utime(cache.path_of(key), (then, then))
    assert clean(cache.path).removed == {}
    clean(cache.path, functions="f", older_than=datetime.timedelta(days=1.5))
    assert cache.present(KEYS) == {KEYS[0], KEYS[1], KEYS[3], KEYS[5]}
    clean(cache.path, keys=[KEYS[0]], functions=["f", "g"])
    clean(cache.path, older_than=4.5 * DAY_S)
    assert cache.present(KEYS) == {KEYS[1], KEYS[3]}
    for bad in ({"keys": "ab"}, {"older_than": -1}, {"keep": float("nan")}):
        with pytest.raises((ValueError, ConfigurationError)):
            clean(cache.path, **bad)  # type: ignore[arg-type]


def test_what_is_out_of_the_way_goes_after_a_while(cache: Cache, batch: Asked) -> None:
    for key in KEYS[:2]:
        cache.publish(key, 1, {})
        cache.retire(key)
    (cache.path / "damaged").mkdir()
    old = f"{KEYS[0]}.{time.time_ns() - int(9 * DAY_S * 1e9)}.00ab00ab.h5"
    (cache.path / "damaged" / old).touch()
    assert clean(cache.path).removed == {"damaged": 1}
    assert clean(cache.path, keep=0).removed == {"retired": 2}


def test_checkpoints_of_what_is_there_go(cache: Cache, batch: Asked) -> None:
    for key in KEYS[:2]:
        folder = cache.path / "checkpoints" / key[:2] / key / "deep"
        folder.mkdir(parents=True)
        (folder / "state").write_text("1")
        (folder / "link").symlink_to(cache.path / "dask-batch-cache.json")
    cache.publish(KEYS[0], 1, {})
    assert clean(cache.path).removed == {"checkpoints": 2}
    assert os.listdir(cache.path / "checkpoints") == [KEYS[1][:2]]
    assert (cache.path / "dask-batch-cache.json").exists()


def test_names_and_attempts_that_belong_to_nothing_go(cache: Cache, batch: Asked) -> None:
    cache.publish(KEYS[0], 1, {})
    for key in KEYS[:2]:
        cache.bind_name(f"name of {key}", key)
        attempts.end(cache, key, 0, {"outcome": "exception"})
    (cache.path / "runs").mkdir()
    (cache.path / "runs" / "gone.settled").touch()
    assert clean(cache.path, keep=0).removed == {}
    aged(cache, 8)
    assert clean(cache.path).removed == {"attempts": 2, "names": 1, "runs": 1}
    assert cache.resolve_name(f"name of {KEYS[0]}") == KEYS[0]


def test_nothing_outside_is_touched(cache: Cache, batch: Asked, tmp_path: Path) -> None:
    (tmp_path / "precious" / "deep").mkdir(parents=True)
    (tmp_path / "precious" / "deep" / "file").write_text("mine")
    (tmp_path / "precious" / f"{KEYS[0]}.txt").write_text("mine")
    (cache.path / "logs").symlink_to(tmp_path / "precious")
    (cache.path / "results").mkdir()
    (cache.path / "results" / "ab").symlink_to(tmp_path / "precious")
    (cache.path / "notes").write_text("mine")
    aged(cache, 100)
    clean(cache.path, keep=0, older_than=0)
    assert (tmp_path / "precious" / "deep" / "file").exists()
    assert (tmp_path / "precious" / f"{KEYS[0]}.txt").exists()
    assert (cache.path / "notes").exists()


# ---- beside a client at work --------------------------------------------------------------------


def test_beside_a_client_and_its_jobs(tmp_path: Path) -> None:
    with SingleNodeExecutor(cache_directory=tmp_path / "cache") as executor:
        last = executor.submit(pow, 2, 0)
        for number in range(12):
            last = executor.submit(max, last, number)
            clean(tmp_path / "cache", keep=0)
        assert last.result(timeout=120) == 11
    report = verify(tmp_path / "cache")
    assert report.ok, str(report)
    shutil.rmtree(tmp_path / "cache")
