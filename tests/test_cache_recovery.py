"""A damaged run is put together again, so that its keys are not blocked for ever."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dask_batch import verify
from dask_batch.cache.claims import Claims, Owner, Run
from dask_batch.cache.definitions import DefinitionDraft, write_definitions
from dask_batch.cache.recovery import mend_run, recovered_run, run_of_file
from dask_batch.cache.store import Cache
from dask_batch.code import pickling
from dask_batch.errors import DamagedEntryError

KEY, OTHER = "ab" * 32, "cd" * 32


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def a_run(cache: Cache) -> tuple[Claims, Run]:
    claims = Claims(cache)
    jobs = tuple((f"f-run-{i}", key) for i, key in enumerate((KEY, OTHER)))
    run = Run("run", Owner.current(), "local", 1000.0, jobs)
    claims.begin(run)
    for key in (KEY, OTHER):
        claims.claim(key, run)
    return claims, run


def define(cache: Cache, run: Run) -> None:
    headers = [{"key": key, "attributes": {"function": "f"}} for _, key in run.jobs]
    drafts = [DefinitionDraft(header, pickling.dumps(1)) for header in headers]
    write_definitions(cache, run.id, {"run": run.id, "backend": run.backend}, drafts)


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[60] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize("logged", [True, False])
def test_a_damaged_run_is_put_together_again(cache: Cache, logged: bool) -> None:
    claims, run = a_run(cache)
    define(cache, run)
    if logged:
        for number, (name, _) in enumerate(run.jobs):
            claims.record_job(run.id, name, str(number))
    damage(cache.path / "runs" / "run.json")
    back = recovered_run(cache, "run")
    assert (back.id, back.backend, back.jobs) == (run.id, run.backend, run.jobs)
    assert back.owner.alive() is None, "nobody knows whose it was"
    report = verify(cache.path)
    assert [finding.path.name for finding in report.damaged] == [
        f"{KEY}.0",
        f"{OTHER}.0",
        "run.json",
    ]
    for key in (KEY, OTHER):
        current = Claims(cache).current(key)
        assert current is not None
        assert (current.run, current.generation) == (back, 0)
        assert Claims(cache).latest(key, "run") == (0, True)
    assert verify(cache.path).ok
    mine, claim = Claims(cache).claim(KEY, back, after=0)
    assert (mine, claim.generation) == (True, 1), "the key is not blocked"


def test_who_needs_a_damaged_run_mends_it(cache: Cache) -> None:
    _, run = a_run(cache)
    define(cache, run)
    damage(cache.path / "runs" / "run.json")
    current = Claims(cache).current(KEY)
    assert current is not None
    assert (current.job_name, current.run.jobs) == (run.jobs[0][0], run.jobs)
    assert verify(cache.path).ok
    assert Claims(cache).latest(OTHER, "run") == (0, True)


@pytest.mark.parametrize(("job_id", "backend"), [("local-1-2", "local"), ("4711", "slurm")])
def test_where_a_damaged_run_went_is_told_by_its_ids(
    cache: Cache, job_id: str, backend: str
) -> None:
    claims, run = a_run(cache)
    headers = [{"key": key, "attributes": {"function": "f"}} for _, key in run.jobs]
    drafts = [DefinitionDraft(header, pickling.dumps(1)) for header in headers]
    write_definitions(cache, run.id, {"run": run.id}, drafts)
    claims.record_job(run.id, run.jobs[0][0], job_id)
    damage(cache.path / "runs" / "run.json")
    assert recovered_run(cache, "run").backend == backend


def test_a_damaged_run_that_submitted_nothing_has_no_jobs(cache: Cache) -> None:
    a_run(cache)
    damage(cache.path / "runs" / "run.json")
    assert mend_run(cache, "run").jobs == ()
    assert verify(cache.path).ok


def test_a_run_whose_definitions_are_damaged_too_is_left_alone(cache: Cache) -> None:
    _, run = a_run(cache)
    define(cache, run)
    damage(cache.path / "runs" / "run.json")
    os.truncate(cache.path / "definitions" / "run.h5", 100)
    report = verify(cache.path)
    assert report.mended == ()
    assert len(report.damaged) == 4


def test_a_damaged_claim_tells_its_run_by_being_the_same_file(cache: Cache) -> None:
    a_run(cache)
    claim = cache.path / "claims" / "ab" / f"{KEY}.0"
    damage(claim)
    assert run_of_file(cache, claim) == "run"
    claim.unlink()
    claim.write_text("garbage")
    with pytest.raises(DamagedEntryError, match="nothing tells"):
        run_of_file(cache, claim)
