"""What verify finds, and what clean removes that nobody refers to, or that is chosen."""

from __future__ import annotations

import datetime
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from dask_batch import SingleNodeExecutor, clean, explain, verify
from dask_batch.backends.base import JobState
from dask_batch.cache import attempts
from dask_batch.cache.claims import Claims, Owner, Run
from dask_batch.cache.files import private_path
from dask_batch.cache.store import Cache
from dask_batch.errors import ConfigurationError, MissingEntryError
from upkeep_harness import DAY_S, KEYS, Asked, aged, hand_over


@pytest.fixture
def batch(monkeypatch: pytest.MonkeyPatch) -> Asked:
    asked = Asked()
    monkeypatch.setattr("dask_batch.upkeep.upkeep.open_backend", asked.open)
    return asked


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


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
    cache.path_of(KEYS[4]).mkdir(parents=True)
    private_path(cache.path / "results").touch()
    report = verify(cache.path)
    assert {finding.path for finding in report.unsafe} == {
        cache.path_of(KEYS[0]),
        cache.path_of(KEYS[1]).parent,
        cache.path_of(KEYS[3]),
    }
    assert {finding.path.name for finding in report.stray} == {
        "notes.txt",
        "ab.h5",
        cache.path_of(KEYS[4]).name,
    }
    assert report.temporary == 1
    assert not report.ok
    assert (cache.path / "notes.txt").exists()


def test_explain_passes_over_what_cannot_be_read(cache: Cache) -> None:
    parts = {"function f": "1", "argument 0": "1"}
    for started, key in enumerate(KEYS[:4]):
        changed = {**parts, "argument 0": str(started)}
        noted = {"function": "f", "started": float(started), "parts": changed}
        cache.publish(key, started, noted)
    cache.path_of(KEYS[2]).chmod(0o666)
    os.truncate(cache.path_of(KEYS[1]), 100)
    assert explain(cache.path, KEYS[3]) == {"argument 0": "changed"}


def test_only_a_cache_is_looked_at(tmp_path: Path) -> None:
    for function in (verify, clean):
        with pytest.raises(MissingEntryError):
            function(tmp_path / "nothing")
        assert not (tmp_path / "nothing").exists()


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
