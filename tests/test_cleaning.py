"""Which runs a clean-up removes, and which it leaves: beside clients and jobs at work."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from dask_batch import clean, verify
from dask_batch.backends.base import JobState
from dask_batch.cache import attempts
from dask_batch.cache.claims import Claims, Owner
from dask_batch.cache.files import make_directory, publish_bytes
from dask_batch.cache.followers import Followers
from dask_batch.cache.meeting import Meeting
from dask_batch.cache.store import Cache
from dask_batch.job.ranks.exchange import Exchange
from upkeep_harness import DAY_S, DEAD, ELSEWHERE, KEYS, Asked, aged, files, hand_over


@pytest.fixture
def batch(monkeypatch: pytest.MonkeyPatch) -> Asked:
    asked = Asked()
    monkeypatch.setattr("dask_batch.upkeep.upkeep.open_backend", asked.open)
    return asked


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


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


def workers_of(cache: Cache, digit: str, owner: Owner) -> None:
    """Leave what long-lived workers, and their client, leave."""
    name = f"workers-{digit * 12}"
    top, logs = cache.path / "workers", cache.path / "logs" / name
    meeting = Meeting((), "ab" * 32, False, owner)
    make_directory(top)
    publish_bytes(top / f"{name}.json", meeting.text())
    Exchange.begin(top / f"{name}.0.4711" / "1", {"task": None})
    make_directory(logs)
    (logs / "0.err").write_text("hello\n")


def test_what_workers_have_left_goes_with_their_client(cache: Cache, batch: Asked) -> None:
    for digit, owner in (("a", DEAD), ("b", Owner.current()), ("c", ELSEWHERE)):
        workers_of(cache, digit, owner)
    (cache.path / "workers" / "notes").write_text("mine")
    assert not clean(cache.path).removed
    aged(cache, 8)
    for folder in (*(cache.path / "workers").iterdir(), *(cache.path / "logs").iterdir()):
        if folder.is_dir():
            then = folder.stat().st_mtime - 8 * DAY_S
            os.utime(folder, (then, then))
    assert clean(cache.path).removed == {"workers": 2, "logs": 1}
    left = {p.name.partition(".")[0] for p in (cache.path / "workers").iterdir()}
    assert left == {"workers-" + "b" * 12, "workers-" + "c" * 12, "notes"}
    assert {p.name for p in (cache.path / "logs").iterdir()} == left - {"notes"}


def test_what_workers_have_left_is_verified(cache: Cache) -> None:
    workers_of(cache, "a", DEAD)
    assert verify(cache.path).counts["workers"] == 2
    place = cache.path / "workers" / f"workers-{'a' * 12}.json"
    place.write_text("{}")
    (place.parent / "notes").write_text("mine")
    found = verify(cache.path)
    assert [finding.path for finding in found.damaged] == [place]
    assert [finding.path.name for finding in found.stray] == ["notes"]


def with_environments(cache: Cache) -> list[Path]:
    folder = cache.path / "logs" / "run"
    names = [f"environment-{'0a' * 8}.sh", f"environment-{'0a' * 8}.17-3"]
    for name in names:
        (folder / name).write_text("export TOKEN=secret")
    return [folder / name for name in names]


def test_the_environment_of_a_run_that_is_over_goes_at_once(cache: Cache, batch: Asked) -> None:
    hand_over(cache, "run", KEYS[:1])
    cache.publish(KEYS[0], 1, {"kind": "result", "function": "f"})
    written = with_environments(cache)
    assert clean(cache.path, dry_run=True).removed == {"environments": 2}
    assert all(path.exists() for path in written)
    done = clean(cache.path)
    assert done.kept_runs == {"run": "it ended a short while ago"}
    assert done.removed == {"environments": 2}
    assert not any(path.exists() for path in written)
    assert (cache.path / "logs" / "run" / "0.err").exists()


def test_a_job_that_may_still_run_keeps_its_environment(cache: Cache, batch: Asked) -> None:
    unfinished_live_client(cache, batch)
    written = with_environments(cache)
    assert list(clean(cache.path).kept_runs) == ["run"]
    assert all(path.exists() for path in written)


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


@pytest.mark.parametrize("state", [JobState.HELD, JobState.WAITING, JobState.DEPENDENCY_FAILED])
def test_what_is_queued_for_nothing_is_ended(cache: Cache, batch: Asked, state: JobState) -> None:
    """A controller that was killed brings it back."""
    claims = hand_over(cache, "run", KEYS[:2])
    claims.record("run", {"event": "steward", "name": "steward-run-0", "id": "77"})
    batch.states = {"id-f-run-0": state, "id-f-run-1": JobState.COMPLETED, "77": state}
    cache.publish(KEYS[0], 1, {})
    clean(cache.path)
    assert not batch.cancelled  # the other one is open, and may be repeated
    cache.publish(KEYS[1], 1, {})
    clean(cache.path, dry_run=True)
    assert not batch.cancelled
    clean(cache.path)
    assert sorted(batch.cancelled) == ["77", "id-f-run-0"]


def test_what_another_run_waits_for_or_is_at_work_is_not_ended(cache: Cache, batch: Asked) -> None:
    claims = hand_over(cache, "run", KEYS[:1])
    cache.publish(KEYS[0], 1, {})
    batch.states = {"id-f-run-0": JobState.RUNNING}
    clean(cache.path)
    hand_over(cache, "later", KEYS[1:2], inputs=(KEYS[0],))
    claims.record("run", {"event": "awaited", "run": "later"})
    batch.states = {"id-f-run-0": JobState.WAITING}
    clean(cache.path)
    assert not batch.cancelled
    cache.publish(KEYS[1], 1, {})
    clean(cache.path)
    assert batch.cancelled == ["id-f-run-0"]


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


def test_what_is_damaged_is_mended_and_goes_later(cache: Cache, batch: Asked) -> None:
    hand_over(cache, "damaged", KEYS[:1])
    attempts.end(cache, KEYS[0], 0, {"outcome": "exception"})
    hand_over(cache, "below", KEYS[1:2])
    hand_over(cache, "above", KEYS[1:2], after=0)
    for run_id in ("damaged", "above"):
        path = cache.path / "runs" / f"{run_id}.json"
        path.write_bytes(path.read_bytes().replace(b"slurm", b"slurn"))
    aged(cache, 40)
    kept = clean(cache.path).kept_runs
    assert kept.keys() == {"damaged", "below", "above"}
    assert verify(cache.path).ok
    aged(cache, 40)
    assert clean(cache.path).kept_runs == {}
    assert files(cache, "claims") == files(cache, "runs") == set()
