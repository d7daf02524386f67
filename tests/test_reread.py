"""Jobs that were handed over are read back as they were."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import dask
import pytest

from dask_batch.cache.claims import Claims
from dask_batch.cache.definitions import DefinitionDraft, write_definitions
from dask_batch.cache.store import Cache
from dask_batch.code.pickling import Pickled
from dask_batch.configuration.options import Options
from dask_batch.errors import MissingEntryError
from dask_batch.evidence.standing import Standings
from dask_batch.preparing.preparation import PreparedJob, Preparer
from dask_batch.preparing.surroundings import Surroundings
from dask_batch.submitting.defining import run_of
from dask_batch.submitting.handover import HandOver
from dask_batch.submitting.reread import job_of, reread_jobs
from graph_running import ingested
from test_handover import Recorder

ENVIRONMENT = {"HOME": "/home/me"}


class Bomb:
    """Goes off when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _explode, ()


def _explode() -> None:
    raise AssertionError("it was unpickled")


@dask.delayed(pure=True)  # type: ignore[untyped-decorator]
def join(*parts: object) -> str:
    return "-".join(map(str, parts))


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def prepare(cache: Cache, *collections: Any, **options: Any) -> tuple[PreparedJob, ...]:
    chosen = Options("local", cache.path, **options)
    preparer = Preparer(cache, Recorder(), chosen)
    return preparer.graph(ingested(*collections), Surroundings.current(ENVIRONMENT)).jobs


def example() -> Any:
    with dask.annotate(retries=2, retry_exceptions=[OSError, "mine.Error"]):
        first = join(1, Bomb())
    prologue = ["module load gcc"]
    with dask.annotate(resources={"memory_max": 2.5, "job_script_prologue": prologue}):
        second = join(first)
    return join(first, second)


def plain(job: PreparedJob) -> PreparedJob:
    """Return a job in the shapes that it has as JSON."""
    return replace(
        job,
        names=(),
        payload=Pickled(job.payload.data, tuple(memoryview(bytes(b)) for b in job.payload.buffers)),
        header=json.loads(json.dumps(job.header)),
        resources=json.loads(json.dumps(job.resources)),
    )


def test_a_run_is_read_back_as_it_was_prepared(cache: Cache) -> None:
    jobs = prepare(cache, example())
    claims = Claims(cache)
    standings = Standings(cache, claims, Recorder(), lambda name: None)
    handed = HandOver(standings, common={})(jobs, {})
    assert handed.run_id is not None
    run = claims.run(handed.run_id)
    again = reread_jobs(cache, run, environment=jobs[0].surroundings.environment)
    assert again == tuple(plain(job) for job in jobs)


def test_a_run_that_was_read_back_can_be_handed_over_and_read_back(cache: Cache) -> None:
    jobs: tuple[PreparedJob, ...] = prepare(cache, example())
    claims = Claims(cache)
    read = []
    for _ in range(2):
        backend = Recorder()
        standings = Standings(cache, claims, backend, lambda name: None)
        handed = HandOver(standings, common={})(jobs, {})
        assert handed.run_id is not None
        jobs = reread_jobs(cache, claims.run(handed.run_id), environment=ENVIRONMENT)
        read.append(jobs)
    assert read[0] == read[1]


def test_one_job_is_as_it_was_handed_over_but_for_its_parents(cache: Cache) -> None:
    backend = Recorder()
    claims = Claims(cache)
    standings = Standings(cache, claims, backend, lambda name: None)
    jobs = prepare(cache, example())
    handed = HandOver(standings, common={})(jobs, {})
    assert handed.run_id is not None
    for job in backend.jobs:
        if "steward" in job.program:
            continue
        again = job_of(cache, claims, handed.run_id, job.name, environment=job.environment)
        resources = json.loads(json.dumps(job.resources))
        assert again == replace(job, parents=(), resources=resources)
    more = job_of(cache, claims, handed.run_id, backend.jobs[0].name, resources={"memory_max": 9})
    assert more.resources == {"memory_max": 9}


def test_how_a_job_is_repeated_is_kept(cache: Cache) -> None:
    first, second, _ = prepare(cache, example(), retry_memory_factor=1.5)
    assert first.header["retry"] == {
        "retries": 2,
        "exceptions": ["builtins.OSError", "mine.Error"],
        "memory_factor": 1.5,
        "time_factor": 2.0,
    }
    assert first.repeatable
    assert second.header["retry"]["retries"] == 0
    assert not second.repeatable


def test_a_run_of_a_version_that_did_not_keep_resources_says_so(cache: Cache) -> None:
    jobs = prepare(cache, join(1))
    claims = Claims(cache)
    standings = Standings(cache, claims, Recorder(), lambda name: None)
    run = run_of(jobs, standings.backend.name)
    claims.begin(run)
    write_definitions(cache, run.id, {"run": run.id}, [DefinitionDraft({}, Pickled(b""))])
    with pytest.raises(MissingEntryError, match="compute again"):
        reread_jobs(cache, run)
