"""Jobs that are to end, and none besides."""

from __future__ import annotations

from pathlib import Path

from dask_batch.backends.base import JobState, JobStatus
from dask_batch.evidence.standing import Standing
from dask_batch.following.entries import Entry
from dask_batch.following.sweep import Sweep
from watching import Queue, key_of


def entry(name: str, job_id: str) -> Entry:
    standing = Standing(key_of(name), 0, "run", f"{name}-run-0", job_id, "local", Path("0"))
    return Entry(standing, name)


def test_an_id_that_was_given_a_second_time_is_the_second_jobs() -> None:
    queue = Queue()
    queue.states["7"] = JobStatus("7", JobState.WAITING)
    sweep = Sweep(queue)
    lost, found = entry("lost", "7"), entry("found", "7")
    sweep.given(lost.standing)
    sweep.add(lost)
    # The controller has lost its memory, and its next id is one that it had given before.
    sweep.given(found.standing)
    sweep.add(lost)
    sweep.now()
    assert queue.cancels == []
    sweep.add(found)
    sweep.now()
    assert queue.cancels == [["7"]]


def test_what_is_said_twice_of_one_job_changes_nothing() -> None:
    queue = Queue()
    queue.states["7"] = JobStatus("7", JobState.WAITING)
    sweep = Sweep(queue)
    one = entry("one", "7")
    sweep.given(one.standing)
    sweep.add(one)
    sweep.given(one.standing)
    sweep.now()
    assert queue.cancels == [["7"]]
