"""Which attempt a job makes, and which of several jobs makes it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from clients import poll
from dask_batch.cache import attempts
from dask_batch.cache.claims import Claims, Run
from dask_batch.cache.owner import Owner
from dask_batch.cache.store import Cache
from dask_batch.job.turn import Turn

KEY = "ab" * 32


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def run_of(cache: Cache, name: str) -> Run:
    run = Run(name, Owner.current(), "local", 1.0, ((f"f-{name}-0", KEY),))
    Claims(cache).begin(run)
    return run


def claim(cache: Cache, run: Run, after: int = -1) -> None:
    mine, _ = Claims(cache).claim(KEY, run, after=after)
    assert mine


def test_a_repeated_job_attempts_the_latest_generation_of_its_own_run(cache: Cache) -> None:
    one = run_of(cache, "one")
    turn = Turn(cache, KEY, "one", 0)
    assert turn.generation() == 0, "before anything is claimed"
    claim(cache, one)
    assert turn.generation() == 0
    claim(cache, one, 0)
    claim(cache, one, 1)
    assert turn.generation() == 2
    claim(cache, run_of(cache, "two"), 2)
    assert turn.generation() is None
    assert Turn(cache, KEY, "two", 3).generation() == 3


def test_claims_where_links_are_not_to_be_had(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = run_of(cache, "one")
    claim(cache, one)
    link = os.link

    def refuse(source: object, target: object, **options: object) -> None:
        if Path(str(source)).parent.name == "runs":
            raise OSError(31, "Too many links")
        link(source, target, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "link", refuse)
    claim(cache, one, 0)
    assert Turn(cache, KEY, "one", 0).generation() == 1
    claim(cache, run_of(cache, "two"), 1)
    assert Turn(cache, KEY, "one", 0).generation() is None


def test_the_first_job_makes_the_attempt_and_others_wait_for_what_comes_of_it(
    cache: Cache,
) -> None:
    turn = Turn(cache, KEY, "one", 0)
    assert turn.take(0, "1", 0.0)
    waited: list[bool] = []
    other = threading.Thread(target=lambda: waited.append(turn.take(0, "2", 0.0)))
    other.start()
    assert not waited
    cache.publish(KEY, 1, {})
    other.join(60)
    assert waited == [False]


@pytest.mark.parametrize("event", ["end", "superseded"])
def test_waiting_ends_with_the_attempt(cache: Cache, event: str) -> None:
    claim(cache, run_of(cache, "one"))
    turn = Turn(cache, KEY, "one", 0)
    assert turn.take(0, "1", 0.0)
    if event == "end":
        attempts.end(cache, KEY, 0, {"outcome": "exception"})
    else:
        claim(cache, run_of(cache, "two"), 0)
    assert not turn.take(0, "2", 0.0)


STARTER = """
import sys, time
from dask_batch.cache.store import Cache
from dask_batch.job.turn import Turn

assert Turn(Cache(sys.argv[1]), sys.argv[2], "one", 0).take(0, "1", 0.0)
print("taken", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("job_id", ["1", "2"])
def test_the_turn_of_a_job_that_was_killed_is_taken_over(cache: Cache, job_id: str) -> None:
    first = subprocess.Popen(
        [sys.executable, "-c", STARTER, str(cache.path), KEY], stdout=subprocess.PIPE, text=True
    )
    try:
        assert first.stdout is not None
        assert first.stdout.readline() == "taken\n"
        turn = Turn(cache, KEY, "one", 0)
        taken: list[bool] = []
        later = threading.Thread(target=lambda: taken.append(turn.take(0, job_id, 0.0)))
        later.start()
        assert attempts.start(cache, KEY, 0, {"job_id": job_id}) is not None, "the first one lives"
        assert not taken
    finally:
        first.kill()
        first.wait()
    poll(lambda: bool(taken), 60, "the succession")
    assert taken == [True]
    later.join()
